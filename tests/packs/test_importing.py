"""Manifests of what a user already has: the base by the transformer's name, and names that packs can have."""

from pathlib import Path

import pytest

from goan_cli.documents import parse_document
from goan_cli.errors import InvalidInput
from goan_cli.packs.importing import BASES, base_for, base_manifest, check_name, manifest_text
from goan_cli.packs.manifest import PARTS, SHIPPED
from goan_cli.packs.places import snapshots_of

REPOSITORIES = [("FramePackI2V_HY", "framepack-i2v"), ("FramePack_F1_I2V_HY_20250503", "framepack-f1")]


def test_bases() -> None:
    """What other packs are made on top of are those with a repository."""
    assert set(BASES) == {"framepack-i2v", "framepack-f1"}


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("FramePackI2V_HY_bf16.safetensors", "framepack-i2v"),
        ("FramePackI2V_HY_fp16.safetensors", "framepack-i2v"),
        ("framepacki2v_hy_bf16.safetensors", "framepack-i2v"),
        ("FramePackI2V_HY", "framepack-i2v"),
        ("FramePack_F1_I2V_HY_20250503_bf16.safetensors", "framepack-f1"),
        ("FramePackF1_I2V_HY_bf16.safetensors", "framepack-f1"),
        ("FramePack_F1_I2V_HY_20250503", "framepack-f1"),
    ],
)
@pytest.mark.parametrize("folder", ["", "models", "FramePack_F1_I2V_HY_20250503"])
def test_base_by_name(folder: str, name: str, base: str) -> None:
    """The published files and folders say their family by their own name, whatever folder they lie in."""
    assert base_for(Path(folder) / name) == base


@pytest.mark.parametrize(("repository", "base"), REPOSITORIES)
def test_base_by_folder(tmp_path: Path, repository: str, base: str) -> None:
    """What lies in a repository's folder, as in the hub's cache, is of its family, whatever it is called itself."""
    snapshot = snapshots_of(f"lllyasviel/{repository}", tmp_path) / "snapshots" / "0123456789abcdef"
    assert base_for(snapshot) == base
    assert base_for(tmp_path / repository / "diffusion_pytorch_model.safetensors") == base


@pytest.mark.parametrize("name", ["finetune.safetensors", "diffusion_pytorch_model.safetensors", "FramePack", "F1", ""])
def test_paths_that_say_nothing(name: str) -> None:
    """Any other name is not guessed about: both bases are offered."""
    with pytest.raises(InvalidInput, match="family") as caught:
        base_for(Path("/models/FramePack") / name)
    assert caught.value.hint == "give --base framepack-i2v or --base framepack-f1"


@pytest.mark.parametrize("name", ["mine", "Mine-2.1", "_x", "é", "2025", "a.yaml", "framepack-i2v-mine"])
def test_names_of_packs(name: str) -> None:
    """Letters of any language, digits, dots, dashes and underscores are names."""
    check_name(name)


@pytest.mark.parametrize(
    "name", [*SHIPPED, "", ".", "..", "../x", "a/b", "a\\b", "/x", "~", "-x", ".x", "a b", "a\n", "a\0b", "a:b", "*"]
)
def test_names_of_no_pack(name: str) -> None:
    """Shipped names, and what could lead out of the folder of packs or be an option, are none."""
    with pytest.raises(InvalidInput, match="cannot be the name of a pack"):
        check_name(name)


@pytest.mark.parametrize(
    "name", ["mine", "081127", "1e3", "off", "null", "0x1f", "0o17", "1_000", "12:30", "é", "2025-01-01"]
)
def test_manifest_text(name: str) -> None:
    """Read as packs are read, a manifest says what was given, names and paths as text whatever they look like."""
    parts = {part: Path("/models") / folder / "a" for part, folder in zip(PARTS, _FOLDERS, strict=True)}
    data = parse_document(manifest_text(name, base_manifest("framepack-f1"), parts)).data
    assert data == {"version": 1, "name": name, "base": "framepack-f1", **{part: str(parts[part]) for part in PARTS}}


_FOLDERS = ("plain", "with space", "#hash", "a: b", "né", "'quoted\"", "long" * 60 + " and" * 30, "back\\slash")
