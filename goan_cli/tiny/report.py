"""The tiny pack's README: what it is, how it came to be, and what was measured of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from goan_cli.files import write_text

# The background of a video may stray this far, in 256ths.
DRIFT_BOUND = 12.0
_TEXT = """\
# The tiny packs

FramePack's parts at small widths, trained from nothing on a procedural world (`goan_cli/tiny/world.py`): one coloured
shape on a calm background that moves left, right, up or down, bounces, grows, shrinks or stands still, 64 x 64 pixels.
`tiny` renders from the end to the start as FramePack I2V does, `tiny-f1` forward as F1 does; they share every part but
the transformer. Llama, CLIP and SigLIP are frozen random networks. Weights are stored in float16.

Prompts it knows: `a red circle moves right`, with `red green blue yellow purple white`, `circle square triangle`, and
`moves left|right|up|down`, `bounces`, `grows`, `shrinks`, `stands still`. It was trained at 64 x 64 and window 3 alone.
What it does not do well: an outline that moves loses its corners, so that after a second or two a circle and a square
are hard to tell apart. Nothing below measures the kind of shape. From nothing, some shapes are lost at once.

`make tiny` trains all of it again; `make tiny-eval` measures what follows. Both files beside this one are their output.

## How it was made

{training}

## What it can do

Held-out clips through the autoencoder, PSNR in dB:

{autoencoder}

{prompts} prompts x seeds for each family, four sections each. Every start image is told to go each of the four ways,
so only the prompt decides; everything is read from the decoded frames. Drift is the worst frame's mean difference to
the first frame over all pixels away from the shape; {bound} is the bound.

{families}

The other motions, share of twelve videos of two sections each in which they are seen: growth or shrinkage by a fifth of
the area, a hop of two pixels, or less than two pixels of height and two and a half of way.

{motions}

Text to video: {blanks} videos of three sections for each family, from black, grey, white, noise and two other colours,
each told to go the four ways. A shape appears within eight frames and crosses the middle of the picture; directions and
colours are read from there on. First frames are compared with the start's colour, of noise with its mean.

{from_nothing}

The demonstration LoRAs, trained on `tiny` and measured there, by weight, mean of four videos: how far the background
goes to dusk, and how far (in pixels) a shape that stands still swings.

{loras}

Baked weights against PEFT's dynamic layers, relative difference of a whole render's latents: {peft}. After both, the
base model's video is bit for bit the one before: {again}.

TeaCache against the exact render of the same seed, {cache_steps} steps; speed is from the least of three runs, PSNR is
over the frames of four videos together:

{teacache}
"""


def write_report(pack: Path) -> None:
    """Write `README.md` from `training.json` and `evaluation.json` in the pack."""
    training = json.loads((pack / "training.json").read_text(encoding="utf-8"))
    figures = json.loads((pack / "evaluation.json").read_text(encoding="utf-8"))
    write_text(pack / "README.md", report(training, figures))


def report(training: dict[str, Any], figures: dict[str, Any]) -> str:
    """The README's text."""
    tiny, forward, loras, caches = (figures[key] for key in ("tiny", "tiny-f1", "loras", "step_caches"))
    autoencoder = figures["autoencoder"]
    return _TEXT.format(
        training=_table(
            ("stage", "steps", "held-out figures"),
            [(stage["name"], stage["steps"], _figures(stage["held_out"])) for stage in training["stages"]],
        )
        + f"\n\nSeed {training['seed']}; {_versions(training['versions'])}; code {training['code'][:12]}.",
        bound=f"{DRIFT_BOUND:g}/256",
        motions=_table(
            ("", "tiny", "tiny-f1"),
            [
                (motion, *(f"{family['motions'][motion]:.0%}" for family in (tiny, forward)))
                for motion in tiny["motions"]
            ],
        ),
        blanks=tiny["from_nothing"]["videos"],
        from_nothing=_table(
            ("", "tiny", "tiny-f1"), _family_rows(_BLANK_ROWS, tiny["from_nothing"], forward["from_nothing"])
        ),
        autoencoder=_table(
            ("single pictures", "clips of 13 frames", "the worst clip", "decoded from the third latent on"),
            [tuple(f"{autoencoder[key]:.1f}" for key in ("pictures", "clips", "clips_worst", "from_the_third_latent"))],
        ),
        prompts=tiny["prompts"],
        families=_table(("", "tiny", "tiny-f1"), _family_rows(_FAMILY_ROWS, tiny, forward)),
        loras=_table(
            ("weight", *(f"{weight:g}" for weight in loras["weights"])),
            [
                ("dusk", *(f"{share:.0%}" for share in loras["dusk"])),
                ("sway", *(f"{swing:.2f}" for swing in loras["sway"])),
            ],
        ),
        peft=", ".join(f"{name} {error:.1e}" for name, error in loras["baked_against_peft"].items()),
        again="yes" if loras["base_again_bit_for_bit"] else "NO",
        cache_steps=caches["steps"],
        teacache=_table(
            ("threshold", "steps computed", "sampling speed", "PSNR against exact, dB"),
            [
                (f"{row['threshold']:g}", f"{row['computed']:.0%}", f"{row['speed']:.2f}x", f"{row['psnr']:.1f}")
                for row in caches["teacache"]
            ],
        ),
    )


_FAMILY_ROWS = (
    ("direction as told, % of videos", "direction", 100, "{:.0f}"),
    ("colour kept, %", "colour", 100, "{:.0f}"),
    ("shape still there, % (over half of its area in every frame)", "shape_present", 100, "{:.0f}"),
    ("first frame against the start image, dB, mean", "first_frame", 1, "{:.1f}"),
    ("the worst first frame, dB", "first_frame_worst", 1, "{:.1f}"),
    ("drift of the background, mean of videos, in 256ths", "drift_mean", 1, "{:.1f}"),
    ("the worst drift", "drift_worst", 1, "{:.1f}"),
)


_BLANK_ROWS = (
    ("direction as told, % of videos", "direction", 100, "{:.0f}"),
    ("colour kept, %", "colour", 100, "{:.0f}"),
    ("first frame against the start, dB, mean", "first_frame", 1, "{:.1f}"),
    ("the worst first frame, dB", "first_frame_worst", 1, "{:.1f}"),
)


def _family_rows(rows: Sequence[tuple[str, str, int, str]], *families: dict[str, Any]) -> list[tuple[str, ...]]:
    """A label and each family's figure under a key, times a factor, in a format."""
    return [(label, *(text.format(family[key] * factor) for family in families)) for label, key, factor, text in rows]


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _figures(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)
