"""JPEG for a batch, with a quality a sample: what libjpeg's coding loses, without making a file.

Levels are rounded to 8 bits, turned to YCbCr, chroma is halved in both directions (4:2:0), blocks of 8 x 8 are
transformed and quantised by the tables of the standard's annex K scaled as libjpeg does. Huffman coding loses nothing
and is left out.
"""

from __future__ import annotations

import math
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.functional.value_changes import straight_through, through_codec

Engine = Literal["auto", "codec", "dct"]

_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8 for _ in range(4)),
)
# JFIF's YCbCr, levels 0 to 255; the offset of 128 in chroma and the shift of luma by 128 cancel in what is coded.
_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)


def jpeg(images: Tensor, qualities: Tensor, engine: Engine = "auto") -> Tensor:
    """Return images as they come back from JPEG; the gradient passes as through clamping alone.

    Args:
        images: RGB in [0, 1] (B, 3, H, W).
        qualities: (B,) from 1 to 100.
        engine: ``codec`` is libjpeg on the CPU, image by image; ``dct`` stays on the device; ``auto`` takes the codec
            for images that are on the CPU, where it is faster.
    """
    if engine == "codec" or (engine == "auto" and images.device.type == "cpu"):
        return straight_through(images, through_codec(images, ".jpg", cv2.IMWRITE_JPEG_QUALITY, qualities))
    with torch.no_grad():
        compressed = _compressed(images.float(), qualities.to(images.device))
    return straight_through(images, compressed.to(images.dtype))


def quantisation_tables(qualities: Tensor) -> Tensor:
    """Return libjpeg's steps of luma and chroma at qualities (B,), float32 (B, 2, 8, 8)."""
    quality = qualities.double().clamp(1, 100)
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    base = torch.tensor((_LUMA, _CHROMA), dtype=torch.float64, device=qualities.device)
    return ((base * percent[:, None, None, None] + 50) / 100).floor().clamp(1, 255).float()


def _compressed(images: Tensor, qualities: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    levels = (images.clamp(0, 1) * 255).round()
    # Whole blocks of halved chroma: multiples of 16, the last pixels repeated.
    levels = F.pad(levels, (0, -width % 16, 0, -height % 16), mode="replicate")
    matrix = levels.new_tensor(_YCBCR)
    planes = torch.einsum("dc,bchw->bdhw", matrix, levels).round()
    tables = quantisation_tables(qualities)
    luma = _coded(planes[:, :1] - 128, tables[:, :1]) + 128
    chroma = _coded(F.avg_pool2d(planes[:, 1:], 2).round(), tables[:, 1:].expand(-1, 2, -1, -1))
    chroma = _enlarged(chroma)
    restored = torch.einsum("dc,bchw->bdhw", torch.linalg.inv(matrix), torch.cat((luma, chroma), 1))
    return restored[..., :height, :width].round().clamp(0, 255) / 255


def _coded(plane: Tensor, tables: Tensor) -> Tensor:
    """Return planes (B, C, H, W) after their blocks were transformed, quantised by (B, C, 8, 8), and brought back."""
    batch, channels, height, width = plane.shape
    blocks = plane.reshape(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    dct, steps = _dct_matrix(plane), tables[:, :, None, None]
    coefficients = ((dct @ blocks @ dct.T) / steps).round() * steps
    restored = (dct.T @ coefficients @ dct).round().clamp(-128, 127)
    return restored.transpose(3, 4).reshape(plane.shape)


def _dct_matrix(like: Tensor) -> Tensor:
    frequency, place = np.mgrid[:8, :8]
    matrix = np.cos((2 * place + 1) * frequency * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return torch.from_numpy(matrix).to(like)


def _enlarged(chroma: Tensor) -> Tensor:
    """Double the size as libjpeg's "fancy upsampling" does: each pixel 3/4 of the nearer and 1/4 of the farther one."""
    doubled = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    return doubled.round()
