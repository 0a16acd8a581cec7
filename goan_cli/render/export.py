"""A transformer with LoRAs baked in, written as a checkpoint of its own."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from goan_cli.errors import InvalidInput
from goan_cli.files import replaced_when_complete, write_text
from goan_cli.lora.bake import LoraFile, bake
from goan_cli.lora.report import BakeReport
from goan_cli.model.mapped import mapped_tensors
from goan_cli.model.weights import WeightStore

_WEIGHTS = "diffusion_pytorch_model"


def write_baked(
    part: Path, loras: Sequence[LoraFile], out: Path, *, base: str, config: Path | None = None
) -> tuple[BakeReport, list[Path]]:
    """Bake into a checkpoint's tensors in its own dtype and write them, sharded as the source is.

    `out` is a `.safetensors` file (shards get numbers and an index beside it) or a folder, which gets the configuration
    too: `config`, or the one beside the weights. Raises InvalidInput when `out` lies in the source's folder, where the
    pack would take it for its own. The final projection is rounded to the checkpoint's dtype like all else; a render
    keeps it in fp32.
    """
    store = WeightStore(part)
    folder, stem = (out.parent, out.stem) if out.suffix == ".safetensors" else (out, _WEIGHTS)
    sources = store.checkpoint.files
    targets = [folder / name for name in _names(stem, len(sources))]
    if folder.resolve() in {path.parent.resolve() for path in sources}:
        raise InvalidInput(f"{out}: lies in the checkpoint's own folder", hint="choose another place")
    # Mapped privately: what the bake writes is copied page by page, and the source stays as it is.
    mapped = {source: mapped_tensors(source) for source in sources}
    tensors: dict[str, Tensor] = {name: mapped[file][name] for name, file in store.checkpoint.file_of.items()}
    with store.opened() as pristine:
        report = bake(tensors, pristine, loras, base=base)
    metadata = {"format": "pt", "goan_base": base, "goan_recipe": report.recipe, "goan_loras": _baked(report)}
    for source, target in zip(sources, targets, strict=True):
        with replaced_when_complete(target) as temporary:
            save_file({name: tensors[name] for name in mapped[source]}, temporary, metadata=metadata)
    written = list(targets)
    if len(targets) > 1:
        index = folder / f"{stem}.safetensors.index.json"
        write_text(index, _index(store, dict(zip(sources, targets, strict=True))))
        written.append(index)
    config = config or (part if part.is_dir() else part.parent) / "config.json"
    if folder == out and config.is_file():
        shutil.copyfile(config, folder / "config.json")
    return report, written


def _names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _baked(report: BakeReport) -> str:
    files = [{"file": file.path.name, "sha256": file.sha256, "weight": file.weight} for file in report.files]
    return json.dumps(files)


def _index(store: WeightStore, target_of: Mapping[Path, Path]) -> str:
    weight_map = {name: target_of[file].name for name, file in sorted(store.checkpoint.file_of.items())}
    size = sum(file.stat().st_size for file in target_of.values())
    return json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}, indent=2) + "\n"
