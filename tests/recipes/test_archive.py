"""Zips from strangers: images come out where they may, or nothing comes out at all."""

import io
import stat
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image

from goan_cli.errors import EnvironmentFault, InvalidInput
from goan_cli.recipes import archive
from goan_cli.recipes.archive import content_of, extracted, member_of, opened
from tests.cli.conftest import content_of as files_in
from tests.recipes.files import picture, write_zip


@pytest.mark.parametrize(
    "name",
    ["../evil.png", "a/../../evil.png", "/abs/evil.png", "..\\evil.png", "C:\\evil.png", "\\evil.png", "C:evil.png"],
)
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    """A zip with a name that leads out of it is refused whole, and nothing is written anywhere."""
    path = write_zip(tmp_path / "queue.zip", {"good.png": picture(), name: picture()})
    before = files_in(tmp_path)
    with (
        pytest.raises(InvalidInput, match="leads out of the zip"),
        extracted(path, ["good.png"], tmp_path / "in" / "x"),
    ):
        pass
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices(tmp_path: Path, kind: int) -> None:
    """A member that is a link, or anything else than a file or folder, is refused."""
    member = zipfile.ZipInfo("a.png")
    member.create_system = 3
    member.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "queue.zip", "w") as made:
        made.writestr(member, "/etc/passwd")
    with pytest.raises(InvalidInput, match="is a link or another special file"), opened(tmp_path / "queue.zip"):
        pass


def test_encrypted(tmp_path: Path) -> None:
    """An encrypted member is refused for what it is."""
    path = write_zip(tmp_path / "queue.zip", {"a.png": b"x"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # the flags of the entry in the directory
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match="is encrypted"), opened(path):
        pass


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_packings(tmp_path: Path, packing: int) -> None:
    """Packings that Python unpacks all at once are refused before it does."""
    path = write_zip(tmp_path / "queue.zip", {"a.png": bytes(1 << 20)}, packing)
    with pytest.raises(InvalidInput, match="packed in another way"), opened(path):
        pass


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zip of more files than a queue has is refused."""
    monkeypatch.setattr(archive, "MOST_MEMBERS", 2)
    path = write_zip(tmp_path / "queue.zip", {"a": b"", "b": b"", "c": b""})
    with pytest.raises(InvalidInput, match="3 files in it"), opened(path):
        pass


def test_a_bomb(tmp_path: Path) -> None:
    """A member that unpacks to far more than an image is read no further than the limit."""
    path = write_zip(tmp_path / "queue.zip", {"a.png": bytes(80 << 20)})
    assert path.stat().st_size < 100_000
    with pytest.raises(InvalidInput, match="larger than 64 MB"), extracted(path, ["a.png"], tmp_path / "images"):
        pass
    assert not (tmp_path / "images").exists()


def test_no_more_than_the_limit_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a member that is too large, one byte more than the limit is unpacked, and no other."""
    unpacked: list[int] = []
    read = zipfile.ZipExtFile.read

    def counted(file: zipfile.ZipExtFile, most: int | None = -1) -> bytes:
        content = read(file, most)
        unpacked.append(len(content))
        return content

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    path = write_zip(tmp_path / "queue.zip", {"a.png": bytes(1 << 20)})
    with opened(path) as made, pytest.raises(InvalidInput, match="larger than"):
        content_of(path, made, made.infolist()[0], 1000)
    assert unpacked == [1001]


def test_no_program_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture in PostScript, whose decoder is a program, never gets to it."""
    run: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: run.append(given))
    eps = picture(form="EPS")
    with Image.open(io.BytesIO(eps)) as image, suppress(Exception):
        image.load()
    assert run  # as it would without the list of formats
    run.clear()
    path = write_zip(tmp_path / "queue.zip", {"a.png": eps})
    with pytest.raises(InvalidInput, match="is no image"), extracted(path, ["a.png"], tmp_path / "images"):
        pass
    assert run == []


def test_a_bomb_that_lies(tmp_path: Path) -> None:
    """What the zip says of a size is not believed."""
    path = write_zip(tmp_path / "queue.zip", {"a.png": bytes(1 << 20)})
    data = bytearray(path.read_bytes())
    size = (1 << 20).to_bytes(4, "little")
    assert size in data
    path.write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    with opened(path) as made:
        (member,) = made.infolist()
        with pytest.raises(InvalidInput, match="is damaged"):
            content_of(path, made, member, 1000)


def test_a_bomb_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of more pixels than Pillow opens is refused."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = write_zip(tmp_path / "queue.zip", {"a.png": picture(size=(100, 100))})
    with pytest.raises(InvalidInput, match="exceeds limit"), extracted(path, ["a.png"], tmp_path / "images"):
        pass
    assert not (tmp_path / "images").exists()


def test_all_images_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many images of a size that each may have are too large together, and those that were written go again."""
    monkeypatch.setattr(archive, "MOST_BYTES", 3 * len(picture()) - 1)
    path = write_zip(tmp_path / "queue.zip", {f"{name}.png": picture() for name in "abc"})
    with (
        pytest.raises(InvalidInput, match="together"),
        extracted(path, ["a.png", "b.png", "c.png"], tmp_path / "images"),
    ):
        pass
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", picture()[:60], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", picture(form="PPM")],
    ids=["empty", "text", "truncated", "postscript", "another-format"],
)
def test_what_is_no_image(tmp_path: Path, content: bytes) -> None:
    """Only whole images of the usual formats come out; after any other, nothing has."""
    path = write_zip(tmp_path / "queue.zip", {"a.png": picture(), "b.png": content})
    with (
        pytest.raises(InvalidInput, match=r"'b\.png' in it is no image"),
        extracted(path, ["a.png", "b.png"], tmp_path),
    ):
        pass
    assert list(files_in(tmp_path)) == ["queue.zip"]


def test_images_come_out(tmp_path: Path) -> None:
    """Images come out whole, under plain names and the suffix of what they are; taken names get numbers."""
    members = {"in/a b!.png": picture("red"), "c.png": picture("blue", "JPEG"), ".hidden.png": picture("green")}
    path = write_zip(tmp_path / "queue.zip", members)
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a_b.png").write_bytes(b"mine")
    (folder / "c.jpg").symlink_to(tmp_path / "nowhere")
    with extracted(path, [*members, "gone.png"], folder) as images:
        pass
    assert images == {
        "in/a b!.png": folder / "a_b-2.png",
        "c.png": folder / "c-2.jpg",
        ".hidden.png": folder / "hidden.png",
    }
    assert [images[name].read_bytes() for name in members] == list(members.values())
    assert (folder / "a_b.png").read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()


def _interrupted(path: Path, folder: Path) -> None:
    with suppress(KeyboardInterrupt), extracted(path, ["a.png"], folder) as images:
        assert images["a.png"].is_file()
        raise KeyboardInterrupt


def test_nothing_is_left(tmp_path: Path) -> None:
    """When what follows fails, the images are gone again, and the folders that were made; others' files stay."""
    path = write_zip(tmp_path / "queue.zip", {"a.png": picture()})
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a.png").write_bytes(b"mine")
    before = files_in(tmp_path)
    for folder in (tmp_path / "new" / "images", tmp_path / "kept"):
        _interrupted(path, folder)
        assert files_in(tmp_path) == before


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    """Where images cannot be written, the reason is the machine's."""
    path = write_zip(tmp_path / "queue.zip", {"a.png": picture()})
    (tmp_path / "images").write_text("a file")
    with pytest.raises(EnvironmentFault, match="cannot be written"), extracted(path, ["a.png"], tmp_path / "images"):
        pass
    assert (tmp_path / "images").read_text() == "a file"


@pytest.mark.parametrize("content", [b"PK", b"PK\3\4 and no more", b"", b"{}"])
def test_no_zip(tmp_path: Path, content: bytes) -> None:
    """What is no zip, or half of one, is told as such."""
    (tmp_path / "queue.zip").write_bytes(content)
    with pytest.raises(InvalidInput, match="not a zip file"), opened(tmp_path / "queue.zip"):
        pass


def test_members(tmp_path: Path) -> None:
    """A member is found by its name, or by the last part of it where that is no other's."""
    path = write_zip(
        tmp_path / "queue.zip", {"a.png": b"1", "x/b.png": b"2", "y/c.png": b"3", "z/c.png": b"4", "d/": b""}
    )
    with opened(path) as made:
        found = {
            name: member_of(made, name) for name in ("a.png", "/abs/a.png", "D:\\b.png", "c.png", "z/c.png", "d", "")
        }
    assert {name: member and member.filename for name, member in found.items()} == {
        "a.png": "a.png",
        "/abs/a.png": "a.png",
        "D:\\b.png": "x/b.png",
        "c.png": None,
        "z/c.png": "z/c.png",
        "d": None,
        "": None,
    }
