"""A picture of what was found: each query beside its best matches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from callbacks.figures import CAPTION, Picture, panel
from datamodules.images.decoding import read_image
from datamodules.images.errors import UnreadableImageError

SIDE = 224
SHOWN = 3


def save_matches(path: Path, answers: Sequence[Mapping[str, Any]]) -> None:
    """Save a row for each answer: the query, then its matches under their scores and verdicts."""
    columns = min(SHOWN, max(len(answer["matches"]) for answer in answers))
    rows = []
    for answer in answers:
        row = [_captioned(answer["path"], Path(answer["path"]).name)]
        row += [_captioned(match["path"], _told(match)) for match in answer["matches"][:columns]]
        row += [np.full_like(row[0], 255)] * (1 + columns - len(row))
        rows.append(row)
    Image.fromarray(panel(rows, ["query", *(f"match {i + 1}" for i in range(columns))])).save(path)


def _told(match: Mapping[str, Any]) -> str:
    name = Path(match["path"]).name
    verdict = f" {match['verdict']}" if match["verdict"] else ""
    return f"{match['score']:.3f}{verdict}  {name}"


def _captioned(path: str, text: str) -> Picture:
    """The image, its longer side `SIDE`, above a line of text; grey where it cannot be read any more."""
    cell = np.full((SIDE + CAPTION, SIDE, 3), 255, np.uint8)
    try:
        image = Image.fromarray(read_image(path, target_size=SIDE))
        pixels = np.asarray(ImageOps.contain(image, (SIDE, SIDE), Image.Resampling.BILINEAR))
    except UnreadableImageError:
        pixels = np.full((SIDE, SIDE, 3), 160, np.uint8)
    cell[: pixels.shape[0], : pixels.shape[1]] = pixels
    # OpenCV draws ASCII only.
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(cell, plain, (2, SIDE + CAPTION - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
    return cell
