"""Rendering a sidecar's job again, and whether the same came of it; if not, what was different."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from goan_cli.batch.outcome import End, Outcome, RunListener, ignore_run
from goan_cli.batch.run import render_jobs
from goan_cli.batch.standing import OnExists
from goan_cli.batch.survey import RunSettings
from goan_cli.documents import Document
from goan_cli.errors import GoanError, InvalidInput, RenderFailed
from goan_cli.jobs.job import Compile
from goan_cli.jobs.load import request_from_settings
from goan_cli.output.sidecar import read_sidecar, value_at
from goan_cli.output.video import read_video
from goan_cli.render.device import choose_device
from goan_cli.render.execution import lacking_compiler
from goan_cli.render.plan import RenderPlan, plan_renders

# What may explain another result, and where sidecars have it.
_CAUSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("image", ("inputs", "image", "sha256")),
    ("picture of the timeline or the end", ("inputs", "pictures")),
    ("video", ("inputs", "video", "sha256")),
    ("model pack", ("pack", "identity")),
    ("LoRA recipe", ("bake", "recipe")),
    ("device", ("device",)),
    ("precision", ("dtype",)),
    ("compilation", ("compiled",)),
    ("machines it was sampled on", ("machines",)),
)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Whether latents, frames and the file are the same; `causes` are differences that may explain it.

    `psnr` is that of the two videos in dB, None where it was not taken or they are equal.
    """

    latents: bool
    frames: bool
    video: bool
    psnr: float | None
    causes: tuple[str, ...]
    outcome: Outcome

    @property
    def same(self) -> bool:
        """Whether the render is reproduced: latents and frames; the file may differ by its encoder."""
        return self.latents and self.frames


def plan_replay(sidecar: Path, folder: Path) -> RenderPlan:
    """The plan of a sidecar's job, with its results in `folder`, and no gate.

    Raises InvalidInput for what is no sidecar or has no digests, and InvalidJobs where its files are not there.
    """
    content = read_sidecar(sidecar)
    if not {"latents_sha256", "frames_sha256"} <= content.keys():
        raise InvalidInput(f"{sidecar}: has no digests of latents and frames to compare with")
    gates = dict.fromkeys(("nan", "black", "frozen", "drift"), "off")
    settings = {**content["settings"], "gates": gates, "retry_seeds": 0}
    document = Document(data=settings, file=sidecar)
    requests, problems = request_from_settings(document, name=sidecar.stem)
    (plan,) = plan_renders(requests, problems, out=folder)
    return plan


def replay(
    sidecar: Path, folder: Path, *, device: str = "auto", cache: Path | None = None, listener: RunListener = ignore_run
) -> Replay:
    """Render a sidecar's job again into `folder`, and compare. Raises what planning raises, and the job's failure."""
    before, plan = read_sidecar(sidecar), plan_replay(sidecar, folder)
    if taken := next((path for path in plan.job.results if os.path.lexists(path)), None):
        raise InvalidInput(f"{taken}: is there already", hint="replay into another folder")
    plan = _compiled_where_possible(plan, device)
    settings = RunSettings(device=device, force=True, on_exists=OnExists.REPLACE, cache=cache)
    (outcome,) = render_jobs([plan], settings, listener=listener)
    if outcome.end is not End.DONE:
        raise outcome.error or RenderFailed(f"{plan.job.name}: {outcome.end}, {outcome.reason}")
    after = read_sidecar(outcome.plan.job.sidecar)
    frames = before["frames_sha256"] == after["frames_sha256"]
    return Replay(
        latents=before["latents_sha256"] == after["latents_sha256"],
        frames=frames,
        video=before["video"]["sha256"] == after["video"]["sha256"],
        psnr=None if frames else _psnr(sidecar.with_name(before["video"]["file"]), outcome.plan.job.video),
        causes=tuple(_causes(before, after)),
        outcome=outcome,
    )


def _compiled_where_possible(plan: RenderPlan, device: str) -> RenderPlan:
    """The plan, without compiling where nothing can: the comparison then says so."""
    execution = plan.job.execution
    if execution.compile is not Compile.ON or lacking_compiler(choose_device(device)) is None:
        return plan
    return replace(plan, job=replace(plan.job, execution=replace(execution, compile=Compile.OFF)))


def _causes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    found = []
    for name, path in _CAUSES:
        was, now = value_at(before, path), value_at(after, path)
        if was != now:
            shown = "" if path[-1] in ("sha256", "pictures", "identity", "recipe") else f": {was} then, {now} now"
            found.append(f"another {name}{shown}")
    was, now = before.get("versions", {}), after.get("versions", {})
    found += [f"{name} {was.get(name)} then, {now[name]} now" for name in now if was.get(name) != now[name]]
    return found


def _psnr(first: Path, second: Path) -> float | None:
    """Between two videos, in dB; None where one cannot be read or they have other shapes."""
    try:
        one, other = read_video(first), read_video(second)
    except GoanError:
        return None
    if one.shape != other.shape:
        return None
    error = np.mean([(np.square(a.astype(np.float32) - b)).mean() for a, b in zip(one, other, strict=True)])
    return float(10 * np.log10(255**2 / error)) if error else None
