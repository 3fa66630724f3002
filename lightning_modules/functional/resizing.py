"""Resizing of images for inference, antialiased, as Pillow's bilinear does it."""

from __future__ import annotations

import math
import re

from torch import Tensor
from torch.nn import functional as F

MODES = "short_N (shorter side N), long_N (longer side N) or skew_N (N x N, whatever the proportions)"


def resized_hw(height: int, width: int, mode: str) -> tuple[int, int]:
    """Return height and width after resizing.

    Args:
        height: Before.
        width: Before.
        mode: ``short_288`` keeps the proportions and makes the shorter side 288, the longer one cut to an integer;
            ``long_800`` makes the longer side 800, the shorter one rounded, halves up; ``skew_320`` makes 320 x 320.
    """
    match = re.fullmatch(r"(short|long|skew)_([1-9]\d*)", mode)
    if match is None:
        raise ValueError(f"resize mode {mode!r} is none of {MODES}")
    size = int(match[2])
    if match[1] == "skew":
        return size, size
    short, long = min(height, width), max(height, width)
    if match[1] == "short":
        pair = size, max(1, size * long // short)
    else:
        pair = max(1, math.floor(size * short / long + 0.5)), size
    return pair if height <= width else pair[::-1]


def resize(image: Tensor, mode: str) -> Tensor:
    """Return an image (3, H, W), uint8 or float, resized; uint8 in gives uint8 out, as Pillow rounds it."""
    size = resized_hw(image.shape[-2], image.shape[-1], mode)
    if size == tuple(image.shape[-2:]):
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
