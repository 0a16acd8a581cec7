"""The smoke render: a clip with a prompt and a LoRA through the whole way to the MP4, and a look at its frames."""

from dataclasses import dataclass
from pathlib import Path

from goan_cli.batch.outcome import End
from goan_cli.batch.run import render_jobs
from goan_cli.batch.standing import OnExists
from goan_cli.batch.survey import RunSettings
from goan_cli.output.video import read_video
from goan_cli.tiny.measures import Frames, Track, colour_kept, colour_name, direction, fallen_share, psnr_between, track
from goan_cli.tiny.parts import LORAS, PACK
from goan_cli.tiny.rendering import pixels_of, plan_scene
from goan_cli.tiny.world import Scene, render_clip

PROMPT = "a red circle moves right"
SCENE = Scene(
    shape="circle",
    colour="red",
    motion="right",
    x=22.0,
    y=34.0,
    radius=10.0,
    top=(0.44, 0.50, 0.40),
    bottom=(0.56, 0.62, 0.52),
)
_SECTIONS = 2
# Of what the H.264 file shows, so a little less than is asked of the frames themselves.
_FIRST_FRAME_DB = 22.0
# The LoRA must move the background at least this far of the way from where it was to dusk.
_LORA_SHARE = 0.4


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at, whether it is as it should be, and what was seen."""

    name: str
    passed: bool
    seen: str


def run_smoke(folder: Path, *, model: str = "tiny", device: str = "auto") -> list[Check]:
    """Render with and without the LoRA into `folder`, and check direction, colour, first frame and the LoRA.

    Raises what rendering raises; a job that failed is a failed check.
    """
    settings = {"model": model, "sections": _SECTIONS, "output": {"dir": str(folder), "contact_sheet": True}}
    plans = [
        plan_scene(folder, "plain", SCENE, PROMPT, settings=settings),
        plan_scene(folder, "dusk", SCENE, PROMPT, loras=[(PACK / LORAS["dusk"], 1.0)], settings=settings),
    ]
    outcomes = render_jobs(plans, RunSettings(device=device, force=True, on_exists=OnExists.REPLACE))
    checks = [
        Check(
            name=f"{outcome.plan.job.name} renders",
            passed=outcome.end is End.DONE,
            seen=f"{outcome.plan.job.sections.frames} frames"
            if outcome.end is End.DONE
            else str(outcome.error or outcome.reason),
        )
        for outcome in outcomes
    ]
    if not all(check.passed for check in checks):
        return checks
    plain, dusk = (read_video(plan.job.video) for plan in plans)
    whole = len(plain) == len(dusk) == plans[0].job.sections.frames
    checks.append(Check(name="the files are whole", passed=whole, seen=f"{len(plain)} and {len(dusk)} frames"))
    return [*checks, *_clip_checks(plain), _lora_check(track(plain), track(dusk))]


def _clip_checks(frames: Frames) -> list[Check]:
    found = track(frames)
    seen = direction(found)
    colours = sorted({colour_name(rgb) for rgb in found.colour})
    wanted = pixels_of(render_clip(SCENE, 1))
    first = psnr_between(frames[:1], wanted)
    return [
        Check(name="the shape moves as told", passed=seen == SCENE.motion, seen=seen),
        Check(name="its colour stays", passed=colour_kept(found, SCENE.colour), seen=", ".join(colours)),
        Check(
            name="the first frame is the start image",
            passed=first >= _FIRST_FRAME_DB,
            seen=f"{first:.1f} dB (at least {_FIRST_FRAME_DB:g})",
        ),
    ]


def _lora_check(plain: Track, dusk: Track) -> Check:
    share = fallen_share(plain, dusk)
    seen = f"{share:.0%} of the way to dusk (at least {_LORA_SHARE:.0%})"
    return Check(name="the LoRA acts", passed=share >= _LORA_SHARE, seen=seen)
