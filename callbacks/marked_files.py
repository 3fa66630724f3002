"""Marked pictures as files: lossless, or in the format of their originals; with what these say beside their pixels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, JpegImagePlugin, PngImagePlugin

from callbacks.prediction_files import TEMPORARY_SUFFIX, explained

Pixels = NDArray[np.uint8]
ENDINGS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
}
WEBP_QUALITY = 95  # a lossy WebP file does not tell its own


class MarkedFiles(Callback):
    """Writes the `marked` picture of each prediction under the name of its original.

    Colour profile, EXIF, resolution and transparency are kept; pixels are stored upright. A JPEG file keeps its
    quantisation tables and subsampling. Formats that cannot hold the mark (GIF) become PNG.

    Args:
        output_dir: Where they go; by default `marked` in the folder of the run.
        form: `lossless` writes PNG; `same` the original's format, whose losses the mark must survive.
    """

    def __init__(self, output_dir: str | None = None, form: Literal["lossless", "same"] = "lossless") -> None:
        self.output_dir = output_dir
        self.form: Literal["lossless", "same"] = form

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the pictures of a batch."""
        if not isinstance(outputs, Mapping):
            return
        folder = Path(self.output_dir or Path(trainer.log_dir or trainer.default_root_dir) / "marked")
        root = _common_folder(getattr(trainer, "datamodule", None))
        for record, pictures in zip(outputs["records"], outputs["images"], strict=True):
            if "marked" in pictures:
                save_marked(record["path"], pictures["marked"], folder / _name(record, root), self.form)


def save_marked(source: str, marked: Pixels, target: Path, form: Literal["lossless", "same"] = "lossless") -> Path:
    """Write a marked picture (H, W, 3) with the metadata of its original, and return where.

    Args:
        source: The file of the original; what is no file gives no metadata.
        marked: The picture, upright.
        target: Where to write; the format's ending is added where it has another.
        form: See `MarkedFiles`.
    """
    name, options = "PNG", {}
    picture = Image.fromarray(marked)
    if os.path.isfile(source):
        with Image.open(source) as original:
            picture = _with_transparency(original, marked)
            options = _metadata(original)
            if form == "same" and original.format in ENDINGS:
                name = original.format
                options |= _coding(original, source)
            if original.mode == "L" and picture.mode == "RGB":
                picture = picture.convert("L")  # the mark is equal in all colours
    # `a.jpg` and `a.png` become `a.jpg.png` and `a.png`: they do not meet in one file.
    path = target if target.suffix.lower() in ENDINGS[name] else target.with_name(target.name + ENDINGS[name][0])
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(temporary, name, **options)
        temporary.replace(path)
    return path


def _metadata(original: Image.Image) -> dict[str, Any]:
    options: dict[str, Any] = {}
    exif = original.getexif()
    if len(exif):
        exif.pop(ExifTags.Base.Orientation, None)  # pixels are upright
        options["exif"] = exif.tobytes()
    # A profile of other channels than those written would be wrong.
    if original.mode in ("RGB", "RGBA", "L", "P") and original.info.get("icc_profile"):
        options["icc_profile"] = original.info["icc_profile"]
    if original.info.get("dpi"):
        options["dpi"] = original.info["dpi"]
    texts = getattr(original, "text", None)
    if isinstance(original, PngImagePlugin.PngImageFile) and texts:
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for key, value in texts.items():
            options["pnginfo"].add_text(key, value)
    return options


def _coding(original: Image.Image, source: str) -> dict[str, Any]:
    """Return options that write a format as its file was written."""
    if isinstance(original, JpegImagePlugin.JpegImageFile):
        options: dict[str, Any] = {"qtables": original.quantization}
        sampling = JpegImagePlugin.get_sampling(original)
        return options | ({"subsampling": sampling} if sampling >= 0 else {})
    if original.format == "WEBP":
        with open(source, "rb") as file:
            lossless = b"VP8L" in file.read(64)
        return {"lossless": True} if lossless else {"quality": WEBP_QUALITY}
    return {"compression": "tiff_adobe_deflate"} if original.format == "TIFF" else {}


def _with_transparency(original: Image.Image, marked: Pixels) -> Image.Image:
    """Return the marked picture with the original's alpha.

    Transparent pixels were laid on white before they were marked: the change is what is carried over.
    """
    if not original.has_transparency_data:
        return Image.fromarray(marked)
    rgba = np.asarray(ImageOps.exif_transpose(original).convert("RGBA"))
    if rgba.shape[:2] != marked.shape[:2]:
        return Image.fromarray(marked)
    white = Image.new("RGBA", (marked.shape[1], marked.shape[0]), "white")
    seen = np.asarray(Image.alpha_composite(white, Image.fromarray(rgba)).convert("RGB"))
    changed = rgba[..., :3].astype(np.int16) + marked.astype(np.int16) - seen
    return Image.fromarray(np.dstack([changed.clip(0, 255).astype(np.uint8), rgba[..., 3]]))


def _common_folder(datamodule: Any) -> str | None:
    """Return the folder that all inputs lie in, where one was named."""
    paths = getattr(datamodule, "paths", None)
    only = paths[0] if isinstance(paths, list) and len(paths) == 1 else paths
    return only if isinstance(only, str) and os.path.isdir(only) else None


def _name(record: Mapping[str, Any], root: str | None) -> str:
    """Return the name of a file without ending: as below the common folder, else with its number."""
    path = str(record["path"])
    if root is not None:
        inner = os.path.relpath(path, root)
        if not inner.startswith(".."):
            return inner
    return f"{int(record['index']):06d}_{os.path.basename(path)}"
