"""The architecture of a packed transformer as one dataclass."""

from dataclasses import dataclass, fields
from pathlib import Path

from goan_cli.errors import InvalidInput
from goan_cli.model.checkpoint import read_json

_CLASSES = ("HunyuanVideoTransformer3DModelPacked", "HunyuanVideoFramepackTransformer3DModel")
# Keys of the public configurations that name the one behaviour implemented here.
_FIXED: dict[str, tuple[object, ...]] = {
    "patch_size": (2,),
    "patch_size_t": (1,),
    "qk_norm": ("rms_norm",),
    "guidance_embeds": (True,),
    "has_image_proj": (True, 1),
    "has_clean_x_embedder": (True, 1),
    "image_condition_type": (None,),
}


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Widths and depths, defaulting to the full-size checkpoints' (12.87 B parameters)."""

    in_channels: int = 16
    out_channels: int = 16
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    num_layers: int = 20
    num_single_layers: int = 40
    num_refiner_layers: int = 2
    mlp_ratio: float = 4.0
    text_embed_dim: int = 4096
    pooled_projection_dim: int = 768
    image_proj_dim: int = 1152
    rope_theta: float = 256.0
    rope_axes_dim: tuple[int, int, int] = (16, 56, 56)

    @property
    def width(self) -> int:
        """Width of a token: heads times head size."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_width(self) -> int:
        """Inner width of a feed-forward layer."""
        return int(self.width * self.mlp_ratio)


def read_config(part: Path) -> TransformerConfig:
    """The configuration in a transformer's folder, or a JSON file itself; a single file of weights is full-size.

    Raises InvalidInput for a configuration of another class of model.
    """
    if not part.is_dir() and part.suffix != ".json":
        return TransformerConfig()
    file = part / "config.json" if part.is_dir() else part
    values = read_json(file)
    if (name := values.get("_class_name", _CLASSES[0])) not in _CLASSES:
        raise InvalidInput(f"{file}: describes a {name}, not a packed FramePack transformer")
    for key, allowed in _FIXED.items():
        if key in values and values[key] not in allowed:
            raise InvalidInput(f"{file}: {key} = {values[key]!r} is not FramePack's {allowed[0]!r}")
    known = {field.name for field in fields(TransformerConfig)}
    unknown = [key for key in values if key not in known and key not in _FIXED and not key.startswith("_")]
    if unknown:
        raise InvalidInput(f"{file}: unknown settings: {', '.join(sorted(unknown))}")
    chosen = {key: values[key] for key in known if key in values}
    axes = chosen.pop("rope_axes_dim", None)
    if axes is not None and not (isinstance(axes, list) and len(axes) == 3):
        raise InvalidInput(f"{file}: rope_axes_dim must be three numbers, not {axes!r}")
    for key, value in (*chosen.items(), *(("rope_axes_dim", axis) for axis in axes or ())):
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise InvalidInput(f"{file}: {key} must be a positive number, not {value!r}")
    if axes is not None:
        chosen["rope_axes_dim"] = tuple(axes)
    return TransformerConfig(**chosen)
