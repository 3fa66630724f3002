"""Documents whose seals were made real, as a labelled set: new pictures, and the labels that they had before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from callbacks.figures import panel
from callbacks.prediction_files import (
    JsonLines,
    encode_image,
    explained,
    read_records,
    refuse_links,
    write_whole,
)
from callbacks.prediction_writers import PredictionWriter
from lightning_modules.functional.plain_json import quoted

Pixels = NDArray[np.uint8]
# Folders of a set, and what a batch calls what goes into them.
PLANES = {"pages": "page", "ink": "ink", "visible": "visible", "alpha": "alpha", "area": "area"}
PICTURES = "images"
LISTS = "labels.rank*.jsonl"
PAIRS_A_ROW = 4
CELL = 160  # pixels of a side on the contact sheet


class RealisedSet(Callback):
    """Writes predictions of a realiser as a set in the layout that `sealmark prepare seals` has.

    Pages, masks and labels are taken over from the drawn documents as they are; where a user's pictures came without
    some, the set is without them, too. `contact.png` shows the first seals before and after. A killed run goes on.

    Args:
        output_dir: The set's folder; by default `realised` in the folder of the run.
        contact: How many seals the contact sheet shows.
    """

    def __init__(self, output_dir: str | None = None, contact: int = 40) -> None:
        if contact < 0:
            raise ValueError(f"`contact` of RealisedSet must not be negative, got {contact}")
        self.output_dir = output_dir
        self.contact = contact
        self._folder = Path()
        self._lines: JsonLines | None = None
        self._pairs: list[tuple[Pixels, Pixels]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the folder: with the predictions where these have a folder of their own, as a later start has."""
        if stage != "predict":
            return
        others = [callback for callback in trainer.callbacks if isinstance(callback, PredictionWriter)]  # type: ignore[attr-defined]
        log_dir = trainer.log_dir or trainer.default_root_dir
        kept = others[0].output_dir if others else None
        self._folder = Path(self.output_dir or Path(kept or log_dir) / "realised")
        self._pairs = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the folder and opens the list of what is written."""
        if not self.output_dir:  # a folder that the user named may be a link
            refuse_links(self._folder.parent, (self._folder.name,))
        refuse_links(self._folder, (LISTS, PICTURES, *PLANES))
        with explained(self._folder):
            (self._folder / PICTURES).mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(self._folder / f"labels.rank{trainer.global_rank}.jsonl")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the documents of a batch: pictures first, then the line that says they are there."""
        assert self._lines is not None
        if not isinstance(outputs, Mapping):
            return
        for position, (record, pictures) in enumerate(zip(outputs["records"], outputs["images"], strict=True)):
            if "realised" not in pictures:
                raise ValueError(f"RealisedSet needs `realised` pictures: {type(pl_module).__name__} gives none")
            name = f"{int(record['index']):06d}.png"
            self._write(PICTURES, name, pictures["realised"])
            for folder, key in PLANES.items():
                if key in batch:
                    self._write(folder, name, _pixels(batch[key][position]))
            labels = batch["labels"][position] if "labels" in batch else {}
            self._lines.append({**record, **labels, "file_name": f"{PICTURES}/{name}"})
            if trainer.is_global_zero:
                self._show(_pixels(batch["image"][position]), pictures["realised"], record["boxes"])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the list."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Puts the lines of all processes together as annotations, text and manifest."""
        # Not when prediction ends: a start that finds all done predicts nothing, and may have this left to do.
        if stage != "predict":
            return
        trainer.strategy.barrier("realised set written")
        if not trainer.is_global_zero or not any(self._folder.glob(LISTS)):
            return
        join_labels(self._folder, getattr(pl_module, "prediction_fingerprint", str)())
        if self._pairs:
            write_whole(self._folder / "contact.png", encode_image(contact_sheet(self._pairs), "png"))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the list; its lines are complete."""
        self._close()

    def _close(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def _write(self, folder: str, name: str, pixels: Pixels) -> None:
        path = self._folder / folder / name
        with explained(path):
            path.parent.mkdir(exist_ok=True)
        write_whole(path, encode_image(pixels, "png"))

    def _show(self, drawn: Pixels, realised: Pixels, boxes: list[list[float]]) -> None:
        for box in boxes[: self.contact - len(self._pairs)]:
            self._pairs.append((_cell(drawn, box), _cell(realised, box)))


def contact_sheet(pairs: Sequence[tuple[Pixels, Pixels]]) -> Pixels:
    """Return seals before and after, a few pairs a row."""
    white = np.full_like(pairs[0][0], 255)
    cells = [picture for pair in pairs for picture in pair]
    columns = 2 * min(PAIRS_A_ROW, len(pairs))
    cells += [white] * (-len(cells) % columns)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    return panel(rows, ("drawn", "realised") * (columns // 2))


def join_labels(folder: Path, fingerprint: str) -> None:
    """Write `annotations.json`, `text.jsonl` and `manifest.json` of the documents that are listed in a folder."""
    try:
        coco, rows, about = _joined(sorted(_listed(folder).values(), key=lambda line: str(line["file_name"])))
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"the lines in {folder}/{LISTS} are not those of a realised set ({quoted(str(error))}): name another folder"
        ) from None
    _write_text(folder / "annotations.json", json.dumps(coco, ensure_ascii=False) + "\n")
    _write_text(folder / "text.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    sums = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("annotations.json", "text.jsonl")
    }
    about = {"count": about["count"], "realiser": fingerprint, **about, "sha256": sums}
    _write_text(folder / "manifest.json", json.dumps(about, indent=1) + "\n")


def _joined(lines: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Return COCO's object, the rows of text, and what is counted."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines):
        size = {"width": line["width"], "height": line["height"]}
        images.append({"id": number, "file_name": line["file_name"], **size, "source": line["path"]})
        for annotation in line.get("annotations", []):
            annotations.append({"id": len(annotations), "image_id": number, **annotation})
        rows += [{"image": line["file_name"], **row} for row in line.get("text", [])]
    categories: list[Any] = next((line["categories"] for line in lines if line.get("categories")), [])
    changed = sum(int(line.get("changed_outside", 0)) for line in lines)
    coco = {"categories": categories, "images": images, "annotations": annotations}
    return coco, rows, {"count": len(lines), "pixels_changed_outside": changed}


def _listed(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what is written by its file; of a document that was written twice, the last."""
    return {line["file_name"]: line for path in sorted(folder.glob(LISTS)) for line in read_records(path)}


def _write_text(path: Path, text: str) -> None:
    write_whole(path, text.encode())


def _pixels(plane: Tensor) -> Pixels:
    """Return (H, W, 3) or (H, W) of a uint8 or bool plane (C, H, W)."""
    array = plane.detach().cpu().numpy()
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    return np.ascontiguousarray(array.transpose(1, 2, 0) if array.shape[0] == 3 else array.reshape(array.shape[-2:]))


def _cell(picture: Pixels, box: list[float]) -> Pixels:
    """Return a square around a box, CELL pixels a side; white beyond the picture."""
    x0, y0, x1, y1 = box
    side = max(8.0, 1.1 * max(x1 - x0, y1 - y0))
    corner = np.array([(x0 + x1 - side) / 2, (y0 + y1 - side) / 2])
    scale = CELL / side
    moved = np.array([[scale, 0, -scale * corner[0]], [0, scale, -scale * corner[1]]])
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    cell = cv2.warpAffine(picture, moved, (CELL, CELL), flags=kind, borderValue=(255, 255, 255))
    return np.asarray(cell, np.uint8)
