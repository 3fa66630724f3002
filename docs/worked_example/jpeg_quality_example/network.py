"""From pixels to the JPEG quality that a picture was last saved with."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 8
CANDIDATES = tuple(range(10, 100, 5))
# ITU-T T.81, table K.1: the luminance steps that libjpeg scales by the quality.
LUMINANCE_STEPS = (
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)


def quantisation_steps(quality: int) -> Tensor:
    """Return libjpeg's luminance steps at a quality, (64,), row by row.

    Raises:
        ValueError: The quality is not from 1 to 100.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"`quality` must be from 1 to 100, got {quality}")
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return torch.tensor([min(255, max(1, (step * scale + 50) // 100)) for step in LUMINANCE_STEPS])


def block_cosines(luma: Tensor) -> Tensor:
    """Return the cosine coefficients of whole 8x8 blocks, (B, 64, blocks), of luma (B, 1, H, W).

    Orthonormal, which for blocks of 8 is the scaling of JPEG. What lies behind the last whole block is left out.
    """
    place = torch.arange(BLOCK, device=luma.device, dtype=luma.dtype)
    waves = torch.cos(math.pi / BLOCK * place[:, None] * (place[None] + 0.5)) * math.sqrt(2 / BLOCK)
    waves = torch.cat([waves[:1] / math.sqrt(2), waves[1:]])
    filters = (waves[:, None, :, None] * waves[None, :, None, :]).reshape(BLOCK * BLOCK, 1, BLOCK, BLOCK)
    return F.conv2d(luma, filters, stride=BLOCK).flatten(2)


class QualityNetwork(nn.Module):
    """Maps RGB images in [0, 1], of 8x8 pixels or more, to qualities between the least and the greatest candidate.

    After JPEG the coefficients of a block are multiples of that quality's steps. The features say how well the steps of
    each candidate quality explain what is there, and how much of each frequency is left; a small perceptron turns them
    into a probability of each candidate, and the estimate is the mean.

    Args:
        width: Units of the hidden layer.
    """

    steps: Tensor
    candidates: Tensor

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        steps = torch.stack([quantisation_steps(quality) for quality in CANDIDATES]).float()
        self.register_buffer("steps", steps, persistent=False)
        self.register_buffer("candidates", torch.tensor(CANDIDATES).float(), persistent=False)
        inputs = len(CANDIDATES) + BLOCK * BLOCK
        self.head = nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, len(CANDIDATES)))

    def forward(self, image: Tensor) -> Tensor:
        """Return the quality of each image, (B,)."""
        quality: Tensor = self.head(self.features(image)).softmax(1) @ self.candidates
        return quality

    def features(self, image: Tensor) -> Tensor:
        """Return how well each candidate fits, in [-1, 1], and the share of each frequency that is left."""
        red, green, blue = image.unbind(1)
        luma = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None] * 255 - 128
        cosines = block_cosines(luma)
        # One candidate at a time: all at once would need 18 copies of a large picture.
        fits = torch.stack([_fit(cosines, steps[:, None]) for steps in self.steps], dim=1)
        left = (cosines.abs() > 2).to(luma.dtype).mean(2)
        return torch.cat([fits, left], dim=1)


def _fit(cosines: Tensor, steps: Tensor) -> Tensor:
    """Return the mean of cos(2 pi c / step), which is 1 at multiples of the step, over what is not near zero."""
    # Zero is a multiple of every step and says nothing.
    telling = (cosines.abs() > steps / 2).to(cosines.dtype)
    waves = torch.cos(2 * math.pi * cosines / steps) * telling
    return waves.sum((1, 2)) / telling.sum((1, 2)).clamp(min=1)
