"""`goan recipe`: from results back to job files, and from the original goan's files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from goan_cli.documents import parse_document
from tests.cli.conftest import Goan, content_of
from tests.conftest import MINIMAL, write_jobs
from tests.recipes.files import DEFAULTS, picture, write_png, write_queue, write_zip

SHORT = {"prompt": "x", "steps": 2}
_IMPORTED = """
import sys
from goan_cli.cli.app import main
sys.argv = ["goan", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
heavy = {"torch", "diffusers", "transformers", "einops", "accelerate"} & set(sys.modules)
print("heavy", sorted(heavy), file=sys.stderr)
"""


def test_there_and_back(folder: Path, goan: Goan) -> None:
    """A recipe of a sidecar is a job that is done already; a recipe of its video is the same job."""
    job = {**MINIMAL, "size": [32, 32], "steps": 2, "window": 2, "loras": ["style.safetensors"], "seed": 5}
    write_jobs(folder / "shot.yaml", job)
    assert goan("render", "shot.yaml", "--device", "cpu").code == 0
    run = goan("recipe", "renders/shot.json", "-o", "again.yaml")
    assert (run.code, run.out, run.err) == (0, "again.yaml: 1 job\n", "")
    results = content_of(folder / "renders")
    run = goan("render", "again.yaml", "--device", "cpu")
    assert run.code == 0
    assert "up to date" in run.out
    assert content_of(folder / "renders") == results
    printed = goan("recipe", "renders/shot.mp4")
    assert (printed.code, printed.err) == (0, "")
    of_video, of_sidecar = (parse_document(text).data for text in (printed.out, (folder / "again.yaml").read_text()))
    assert of_sidecar == {**of_video, "output": {"dir": "renders"}}
    assert of_video["image"] == "start.png"
    # As an entry of its own it is another command's, and the same.
    assert goan("recipe", "show", "renders/shot.mp4").out == printed.out


def test_missing_files_are_noted(folder: Path, goan: Goan) -> None:
    """What a job names and is not here is told beside it; the job is printed all the same."""
    settings = {**MINIMAL, "image": "/gone/start.png"}
    recipe = json.dumps({"tool": "goan", "version": 1, "settings": settings})
    run = goan("recipe", write_png(folder / "poster.png", {"goan": recipe}))
    assert run.code == 0
    assert run.err == "note: /gone/start.png is not on this machine\n"
    assert parse_document(run.out).data == {"name": "poster", **settings}


@pytest.mark.parametrize("command", [("recipe",), ("recipe", "import")])
def test_files_are_not_written_over(folder: Path, goan: Goan, command: tuple[str, ...]) -> None:
    """A job file that is there stays, unless it may be replaced; never is it the file that is read."""
    recipe = json.dumps({"tool": "goan", "version": 1, "settings": dict(MINIMAL)})
    path = write_png(folder / "both.png", {"goan": recipe, "parameters": json.dumps(SHORT)})
    (folder / "jobs.yaml").write_text("mine")
    (folder / "link.yaml").symlink_to(path)
    before = content_of(folder)
    for arguments in (
        ("-o", "jobs.yaml"),
        ("-o", "both.png", "--replace"),
        ("-o", "link.yaml", "--replace"),
        ("-o", ".", "--replace"),
    ):
        run = goan(*command, path, *arguments)
        assert (run.code, run.out) == (2, "")
        assert content_of(folder) == before
    assert goan(*command, path, "-o", "jobs.yaml", "--replace").code == 0
    wanted = SHORT["prompt"] if "import" in command else MINIMAL["prompt"]
    assert SHORT["prompt"] != MINIMAL["prompt"]
    assert parse_document((folder / "jobs.yaml").read_text()).data["prompt"] == wanted


@pytest.mark.parametrize("command", [("recipe",), ("recipe", "import")])
def test_input_that_cannot_be_used(folder: Path, goan: Goan, command: tuple[str, ...]) -> None:
    """A file without a recipe, half a file, a folder, and none at all: one line, exit code 2, nothing written."""
    (folder / "half.png").write_bytes(picture()[:40])
    (folder / "list.json").write_text("[1, 2, 3]")
    (folder / "empty.json").write_text("")
    before = content_of(folder)
    for name in ("start.png", "half.png", "list.json", "empty.json", "gone.mp4", "."):
        run = goan(*command, name, "-o", "jobs.yaml")
        assert (run.code, run.out) == (2, ""), name
        assert len(run.err.splitlines()) == 1
        assert run.err.startswith("error: "), name
        assert content_of(folder) == before


def test_help(goan: Goan) -> None:
    """Help of the group and of both commands; without anything the group's is shown."""
    assert "goan recipe FILE" in " ".join(goan("recipe", "--help").out.split())
    assert "import" in goan("recipe").out
    assert "--replace" in goan("recipe", "import", "--help").out
    assert "--replace" in goan("recipe", "show", "--help").out
    assert goan("recipe", "-o", "jobs.yaml").code == 2


def test_a_file_with_a_commands_name(folder: Path, goan: Goan) -> None:
    """A file called import is reached by its path."""
    run = goan("recipe", "./import")
    assert (run.code, run.err) == (2, "error: import: no such file\n")


def test_import_a_png(folder: Path, goan: Goan) -> None:
    """A PNG of the original's is a job of FramePack from that picture; whatever is not the same is a line."""
    path = write_png(folder / "a.png", {"parameters": json.dumps({**DEFAULTS, "zoom": 2})})
    run = goan("recipe", "import", path)
    assert run.code == 0
    job = parse_document(run.out).data
    assert (job["model"], job["image"], job["seconds"]) == ("framepack-i2v", "a.png", 5)
    lines = run.err.splitlines()
    assert all(line.startswith("note: ") for line in lines)
    assert "note: zoom: unknown key, left out" in lines
    assert any(line.startswith("note: video_length: ") for line in lines)


def test_import_a_queue(folder: Path, goan: Goan) -> None:
    """A queue's jobs can be planned at once, with their images beside the job file."""
    jobs = [{**SHORT, "video_length": 1, "image_ref": "a.png"}, {**SHORT, "prompt": "y", "image_ref": "b.png"}]
    write_queue(folder / "queue.zip", jobs, {"a.png": picture("red"), "b.png": picture("blue")})
    run = goan("recipe", "import", "queue.zip", "-o", "night/jobs.yaml", "--model", "tiny")
    assert (run.code, run.out) == (0, "night/jobs.yaml: 2 jobs, 2 images in jobs-images/\n")
    content = parse_document((folder / "night" / "jobs.yaml").read_text()).data
    assert content["defaults"] == {"model": "tiny"}
    assert [job["image"] for job in content["jobs"]] == ["jobs-images/a.png", "jobs-images/b.png"]
    planned = goan("plan", "night/jobs.yaml")
    assert planned.code == 0
    assert "jobs-1" in planned.out
    # Again, the images that are there are left alone.
    assert goan("recipe", "import", "queue.zip", "-o", "night/jobs.yaml", "--replace").code == 0
    assert sorted(path.name for path in (folder / "night" / "jobs-images").iterdir()) == [
        "a-2.png",
        "a.png",
        "b-2.png",
        "b.png",
    ]


def test_a_queue_needs_a_place(folder: Path, goan: Goan) -> None:
    """A queue's images are not strewn about: without -o nothing is written."""
    write_queue(folder / "queue.zip", [{**SHORT, "image_ref": "a.png"}], {"a.png": picture()})
    before = content_of(folder)
    run = goan("recipe", "import", "queue.zip")
    assert (run.code, run.out) == (2, "")
    assert "give -o jobs.yaml" in run.err
    assert content_of(folder) == before


def test_hostile_queues(folder: Path, goan: Goan) -> None:
    """Zips that lead out of themselves, bombs, and images that are none: exit code 2, and nothing is left."""
    job = {**SHORT, "image_ref": "a.png"}
    write_queue(folder / "slip.zip", [job], {"a.png": picture(), "../../evil.png": picture()})
    write_queue(folder / "bomb.zip", [job], {"a.png": bytes(70 << 20)})
    write_queue(folder / "text.zip", [job], {"a.png": b"no image"})
    write_queue(folder / "second.zip", [job, {**job, "image_ref": "b.png"}], {"a.png": picture(), "b.png": b"?"})
    write_zip(folder / "array.zip", {"queue_state.json": b"[1, [2], null]"})
    write_zip(folder / "other.zip", {"a.png": picture()})
    before = content_of(folder)
    for name in ("slip", "bomb", "text", "second", "array", "other"):
        run = goan("recipe", "import", f"{name}.zip", "-o", "new/jobs.yaml")
        assert (run.code, run.out, len(run.err.splitlines())) == (2, "", 1), name
        assert content_of(folder) == before, name


def test_nothing_is_left_when_the_job_file_cannot_be_written(
    folder: Path, goan: Goan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job file comes last; when it fails, the images are gone again."""
    write_queue(folder / "queue.zip", [{**SHORT, "image_ref": "a.png"}], {"a.png": picture()})
    before = content_of(folder)

    def full(path: Path, text: str) -> None:
        assert (folder / "new" / "jobs-images" / "a.png").is_file()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    run = goan("recipe", "import", "queue.zip", "-o", "new/jobs.yaml")
    assert (run.code, run.out) == (3, "")
    assert "No space left" in run.err
    assert content_of(folder) == before


def test_many_notes(folder: Path, goan: Goan) -> None:
    """However many unknown keys there are, the lines come to an end."""
    (folder / "w.json").write_text(json.dumps({**SHORT, **{f"key-{number}": 1 for number in range(5000)}}))
    run = goan("recipe", "import", "w.json")
    assert run.code == 0
    assert len(run.err.splitlines()) == 101
    assert run.err.splitlines()[-1] == "note: and 4901 more"


def test_hostile_comments(folder: Path, goan: Goan) -> None:
    """What a file's name or a sidecar holds stays in its comment."""
    path = write_png(folder / "a\nmodel: b.png", {"parameters": json.dumps(SHORT)})
    run = goan("recipe", "import", path)
    assert run.code == 0
    assert parse_document(run.out).data["model"] == "framepack-i2v"


def test_light(folder: Path) -> None:
    """Recipes import neither torch nor what needs it."""
    write_png(folder / "a.png", {"parameters": json.dumps(SHORT)})
    for arguments in (("recipe", "import", "a.png"), ("recipe", "--help")):
        run = subprocess.run([sys.executable, "-c", _IMPORTED, *arguments], capture_output=True, text=True, check=False)
        assert run.stderr.splitlines()[-1] == "heavy []"
