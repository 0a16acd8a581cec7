"""A queue zip, read as what it is: a stranger's. Its images come out under names of our own, or nothing does."""

import io
import re
import stat
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from lzma import LZMAError
from pathlib import Path, PurePosixPath, PureWindowsPath

from PIL import Image

from goan_cli.errors import EnvironmentFault, InvalidInput

MOST_MEMBERS = 10_000
MOST_IMAGE_BYTES = 64 << 20
MOST_BYTES = 1 << 30
# What Pillow calls a format -> the suffix of its files. Others are refused: some, as PostScript, run programs.
FORMATS: Mapping[str, str] = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
    "TIFF": ".tif",
}

_HIGHEST_NUMBER = 10_000
_LONGEST_NAME = 80
_NOT_FOR_NAMES = re.compile(r"[^\w.+@=-]+")
_ENCRYPTED = 1
# Of the others, Python unpacks all at once, however little is asked for.
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGED = (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError, RuntimeError, NotImplementedError, ValueError)


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip whose members all have plain names inside it. Raises InvalidInput for any other."""
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGED as error:
        raise InvalidInput(f"{path}: not a zip file that can be read: {error}") from error
    with archive:
        members = archive.infolist()
        if len(members) > MOST_MEMBERS:
            raise InvalidInput(f"{path}: {len(members)} files in it, more than a queue has")
        for member in members:
            _refuse_unsafe(path, member)
        yield archive


def _refuse_unsafe(path: Path, member: zipfile.ZipInfo) -> None:
    name = member.orig_filename
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    rooted = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    kind = stat.S_IFMT(member.external_attr >> 16)
    reason = None
    if rooted or ".." in parts or "\0" in name:
        reason = "leads out of the zip"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        reason = "is a link or another special file"
    elif member.flag_bits & _ENCRYPTED:
        reason = "is encrypted"
    elif member.compress_type not in _PACKINGS:
        reason = "is packed in another way than a queue's files are"
    if reason is not None:
        raise InvalidInput(f"{path}: {name[:100]!r} in it {reason}", hint="nothing was taken out of it")


def content_of(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> bytes:
    """A member's bytes, counted as they come, whatever the zip says. Raises InvalidInput for more than `most`."""
    try:
        with archive.open(member) as file:
            content = file.read(most + 1)
    except _DAMAGED as error:
        raise InvalidInput(f"{path}: {member.filename[:100]!r} in it is damaged: {error}") from error
    if len(content) > most:
        raise InvalidInput(f"{path}: {member.filename[:100]!r} in it is larger than {most >> 20} MB")
    return content


def member_of(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo | None:
    """The file of this name, in whatever folder of the zip where no other has it; None for none."""
    members = [member for member in archive.infolist() if not member.is_dir()]
    exact = [member for member in members if member.filename == name]
    last = re.split(r"[/\\]", name)[-1]
    alike = exact or [member for member in members if PurePosixPath(member.filename).name == last]
    return alike[0] if len(alike) == 1 else None


@contextmanager
def extracted(path: Path, names: Iterable[str], folder: Path) -> Iterator[dict[str, Path]]:
    """Write these members, as images, into `folder`; yields where each is. All are removed when the block fails.

    No file is written over: names that are taken get a number. Raises InvalidInput for a member that is no image, or
    too large, and EnvironmentFault where the folder cannot be written.
    """
    written: list[Path] = []
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        where: dict[str, Path] = {}
        total = 0
        with opened(path) as archive:
            for name in names:
                member = member_of(archive, name)
                if member is None:
                    continue
                content = content_of(path, archive, member, MOST_IMAGE_BYTES)
                total += len(content)
                if total > MOST_BYTES:
                    raise InvalidInput(f"{path}: its images are larger than {MOST_BYTES >> 30} GB together")
                suffix = _suffix_of(path, member.filename, content)
                where[name] = _write(folder, _stem_of(member.filename), suffix, content, written)
        yield where
    except BaseException:
        for file in written:
            with suppress(OSError):
                file.unlink()
        for each in made:
            with suppress(OSError):
                each.rmdir()
        raise


def _suffix_of(path: Path, name: str, content: bytes) -> str:
    """The suffix for an image's format, after decoding all of it. Raises InvalidInput for what is none."""
    try:
        with warnings.catch_warnings():
            # Large photographs are welcome; true bombs raise an error of their own.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=list(FORMATS)) as image:
                image.load()
                return FORMATS[image.format or ""]
    except Exception as error:  # Pillow's decoders raise whatever their formats make them stumble over
        what = str(error) if isinstance(error, Image.DecompressionBombError) else "no image, or a damaged one"
        raise InvalidInput(f"{path}: {name[:100]!r} in it is {what}", hint="nothing was taken out of it") from error


def _stem_of(name: str) -> str:
    """A file name of letters and digits, of the member's own."""
    stem = _NOT_FOR_NAMES.sub("_", PurePosixPath(name).stem).strip("._")
    return stem.encode("utf-8", "ignore")[:_LONGEST_NAME].decode("utf-8", "ignore") or "image"


def _write(folder: Path, stem: str, suffix: str, content: bytes, written: list[Path]) -> Path:
    """Write under the first name that is free, and note it before anything is in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(1, _HIGHEST_NUMBER):
            file = folder / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
            with suppress(FileExistsError), file.open("xb") as output:
                written.append(file)
                output.write(content)
                return file
    except OSError as error:
        raise EnvironmentFault(f"{folder}: cannot be written: {error.strerror or error}") from error
    raise EnvironmentFault(f"{folder}: every name for {stem}{suffix} is taken")
