"""Pixels as bytes and as numbers."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_unit(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in [0, 1]; what is no uint8 is returned as it is."""
    return pixels.to(torch.float32).div_(255) if pixels.dtype == torch.uint8 else pixels


def to_picture(image: Tensor) -> NDArray[np.uint8]:
    """Return a new (H, W, 3) uint8 array of an image (3, H, W), uint8 or float in [0, 1], rounded to the nearest."""
    pixels = image.detach().permute(1, 2, 0).cpu()
    if pixels.dtype == torch.uint8:
        return pixels.numpy().copy()
    levels: NDArray[np.uint8] = cv2.convertScaleAbs(pixels.float().clamp(0, 1).contiguous().numpy(), alpha=255)
    return levels
