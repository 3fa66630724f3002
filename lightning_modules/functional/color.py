"""Colour spaces."""

import torch
from torch import Tensor

# ITU-R BT.601, studio swing: rows Y, Cb, Cr of RGB in [0, 1], in levels of 8 bits.
_YCBCR_FROM_RGB = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
_YCBCR_OFFSET = (16.0, 128.0, 128.0)


def rgb_to_ycbcr_studio(image: Tensor, truncate: bool) -> Tensor:
    """Return YCbCr in [0, 1] of RGB images (…, 3, H, W) in [0, 1]; Y spans 16 to 235 levels, chroma 16 to 240.

    Args:
        image: Float pixels, or uint8 ones, which are levels.
        truncate: Round to levels of 8 bits first, and cut the answer down to whole levels, as a converter does that
            writes into bytes. Computed in float64, so that few colours fall on another level than NumPy's product
            gives; float32 then, or float64 where the pixels are.
    """
    dtype = image.dtype if image.dtype == torch.float64 else torch.float32
    if truncate:
        levels = image if image.dtype == torch.uint8 else (image * 255).round()
        return _ycbcr_levels(levels.double() / 255).floor().to(dtype) / 255
    return _ycbcr_levels(image.to(dtype) / 255 if image.dtype == torch.uint8 else image.to(dtype)) / 255


def _ycbcr_levels(rgb: Tensor) -> Tensor:
    red, green, blue = rgb.unbind(-3)
    rows = []
    for (of_red, of_green, of_blue), offset in zip(_YCBCR_FROM_RGB, _YCBCR_OFFSET, strict=True):
        # Fused products in this order round as the matrix product of BLAS does. Neutral greys lie on whole levels of
        # chroma: there the last bit decides between 127 and 128.
        row = torch.addcmul(red * of_red, green, green.new_full((), of_green))
        row = torch.addcmul(row, blue, blue.new_full((), of_blue))
        rows.append(row + offset)
    return torch.stack(rows, dim=-3)
