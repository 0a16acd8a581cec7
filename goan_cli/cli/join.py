"""`goan join`: videos one after another in one file."""

from pathlib import Path
from typing import Annotated

import typer


def join(
    videos: Annotated[list[Path], typer.Argument(help="Two or more videos, in order.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The new video, *.mp4.")],
    cross_fade: Annotated[
        float, typer.Option(min=0, max=60, help="Seconds over which each video goes over into the next one.")
    ] = 0.0,
    crf: Annotated[int, typer.Option(min=1, max=51, help="x264 quality, lower is better.")] = 16,
    replace: Annotated[bool, typer.Option("--replace", help="Write over a file that is there.")] = False,
) -> None:
    """Join videos of one size and rate. Sound is kept where all of them have some."""
    from goan_cli.cli.terminal import make_console
    from goan_cli.errors import InvalidInput
    from goan_cli.files import refuse_taken
    from goan_cli.output.join import join_videos

    if len(videos) < 2:
        raise InvalidInput("there is nothing to join to a single video")
    if out.suffix.lower() != ".mp4":
        raise InvalidInput(f"--out {out}: joined videos are named *.mp4")
    target = out.absolute()
    refuse_taken(target, *videos, replacing=replace)
    joined = join_videos(videos, target, cross_fade=cross_fade, crf=crf)
    console = make_console()
    if 0 < len(joined.silent) < len(videos):
        names = ", ".join(path.name for path in joined.silent)
        console.print(f"note: without sound, since there is none in {names}", markup=False)
    video = joined.video
    console.print(f"wrote {target}", markup=False)
    console.print(f"{video.frames} frames of {video.size[0]}x{video.size[1]}, {video.frames / video.fps:.2f} s")
