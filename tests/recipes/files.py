"""Files as the original goan writes them, and as a hostile hand does."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

# A recipe of the original's with every key of its own at its default.
DEFAULTS: Mapping[str, Any] = {
    "prompt": "a dancer turns",
    "negative_prompt": "",
    "video_length": 5.0,
    "seed": -1,
    "preview_frequency": 5,
    "preview_specified_segments": "",
    "fps": 30,
    "distilled_cfg_start": 10.0,
    "variable_cfg_shape": "Off",
    "distilled_cfg_end": 10.0,
    "roll_off_start": 75,
    "roll_off_factor": 1.0,
    "steps": 25,
    "real_cfg": 1.0,
    "guidance_rescale": 0.0,
    "use_teacache": True,
    "use_fp32_transformer_output": False,
    "gpu_memory_preservation": 6.0,
    "mp4_crf": 18,
    "output_folder": "/home/someone/outputs",
    "latent_window_size": 9,
}


def picture(colour: str = "red", form: str = "PNG", size: tuple[int, int] = (48, 32)) -> bytes:
    """A small image file's bytes."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, form)
    return stream.getvalue()


def write_png(path: Path, texts: Mapping[str, str]) -> Path:
    """A PNG with text chunks."""
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (48, 32), "red").save(path, pnginfo=info)
    return path


def write_zip(path: Path, members: Mapping[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip of these members."""
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=packing)
    return path


def queue_of(*jobs: Mapping[str, Any]) -> bytes:
    """A queue's JSON of jobs, each with `image_ref` beside its keys where it has one."""
    tasks = []
    for number, job in enumerate(jobs, start=1):
        params = {key: value for key, value in job.items() if key != "image_ref"}
        tasks.append({"id": number, "status": "pending", "params": params, "image_ref": job.get("image_ref")})
    return json.dumps(tasks).encode()


def write_queue(path: Path, jobs: Sequence[Mapping[str, Any]], images: Mapping[str, bytes]) -> Path:
    """A queue zip."""
    return write_zip(path, {"queue_state.json": queue_of(*jobs), **images})
