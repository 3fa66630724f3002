"""Pictures of any size, brought to sizes that a diffusion model takes."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_modules.functional.pixels import to_picture, to_unit
from lightning_modules.functional.resizing import resize


def floored(image: Tensor, multiple: int, longest: int | None = None) -> Tensor:
    """Return an image (3, H, W) in [0, 1] whose sides are multiples: cut down by Lanczos, as the released code does it.

    Args:
        image: uint8, or float in [0, 1]; it is rounded to 8 bits first.
        multiple: What sides are multiples of.
        longest: Longer side at most; None for any.
    """
    if longest is not None and max(image.shape[-2:]) > longest:
        image = resize(image, f"long_{longest}")
    height, width = (side // multiple * multiple for side in image.shape[-2:])
    if not height or not width:
        raise ValueError(f"an image of {image.shape[-1]}×{image.shape[-2]} is smaller than {multiple}×{multiple}")
    picture = Image.fromarray(to_picture(image)).resize((width, height), Image.Resampling.LANCZOS)
    return to_unit(torch.from_numpy(np.asarray(picture).copy())).permute(2, 0, 1)


def stretched(images: Tensor, side: int) -> Tensor:
    """Return images (B, 3, side, side): bilinear with antialiasing, the aspect not kept, as the released data are."""
    return torch.stack([resize(image, f"skew_{side}") for image in images])
