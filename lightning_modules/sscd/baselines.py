"""A perceptual hash in the manner of PDQ, as descriptors: what the network has to beat.

Written from the description in "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm" (2019). Where
that leaves a choice (which pixel an even window leans to, the order of the digits) it is the one that gives PDQ's.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.base import ProvenanceModule
from lightning_modules.functional.pixels import to_unit

GRID, FREQUENCIES = 64, 16
LUMA = (0.299, 0.587, 0.114)
# Sum of the grid's gradients, in percent of the range of grey, by which an image is as detailed as can be asked.
DETAIL_OF_ONE_PERCENT = 90


class PerceptualHashModule(ProvenanceModule):
    """Describes images by 256 bits as 1/16 and -1/16: the inner product is 1 - (bits that differ) / 128.

    Nothing is trained. Images are taken at their own size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.build()

    def configure_models(self) -> None:
        """Nothing to hold: the hash is a function."""

    def configure_losses(self) -> None:
        """Nothing to train."""

    def forward(self, image: Tensor) -> Tensor:
        """Return descriptors (B, 256) of length one of RGB images (B, 3, H, W) in [0, 1] of any size."""
        return as_descriptor(hash_bits(luminance_grid(image)))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> NoReturn:
        """Refuse."""
        raise ValueError("PerceptualHashModule has nothing to train: use `test` or `predict` instead of `fit`")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Refuse, before the first batch is read."""
        self.training_step({}, 0)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return ``index`` and ``descriptor``, for callbacks to read."""
        return {"index": batch["index"], "descriptor": as_descriptor(hash_bits(self._grids(batch["image"])))}

    test_step = validation_step

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return ``records``, with hash and quality, and ``descriptors`` of a batch of images of any sizes."""
        grids = self._grids(batch["image"])
        bits = hash_bits(grids)
        facts = zip(batch["path"], batch["index"], bits, quality_percent(grids), strict=True)
        records = [
            {"path": str(path), "index": int(index), "hash": as_hex(hashed), "quality": int(quality)}
            for path, index, hashed, quality in facts
        ]
        return {"records": records, "images": [], "descriptors": as_descriptor(bits)}

    def prediction_fingerprint(self) -> str:
        """Return what decides a hash: nothing that can be set."""
        return type(self).__name__

    def _grids(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Return luminance (B, 64, 64) of images uint8 or in [0, 1], stacked or of any sizes."""
        grids = [luminance_grid(to_unit(image.to(self.device))[None]) for image in images]
        return torch.cat(grids) if grids else torch.empty(0, GRID, GRID, device=self.device)


def luminance_grid(image: Tensor) -> Tensor:
    """Return luminance (B, 64, 64), float64 in [0, 1], of RGB images (B, 3, H, W) of any size.

    Two passes of a box filter, of half a cell of the grid, then the pixel in the middle of each cell.
    """
    # Sums of products and float64 are what autocast leaves alone: a hash must not depend on the run's precision.
    luma = sum(share * image[:, channel] for channel, share in enumerate(LUMA))
    assert isinstance(luma, Tensor)
    rows, columns = (smoothing(length).to(image.device) for length in image.shape[-2:])
    return rows @ luma.double() @ columns.T


def smoothing(length: int) -> Tensor:
    """Return (64, length): what a line of pixels is multiplied by for two box filters and a sample in each cell."""
    window = math.ceil(length / (2 * GRID))
    before, after = (window - 1) // 2, window // 2
    place = torch.arange(length)
    low, high = (place - before).clamp(min=0), (place + after).clamp(max=length - 1)
    count = (high - low + 1).double()  # at the borders the window is cut
    centre = ((torch.arange(GRID) + 0.5) * length / GRID).long()
    second = (place >= low[centre, None]) & (place <= high[centre, None])
    # The first filter's share of pixel j sums over all places whose window holds j, which lie side by side.
    summed = F.pad((second / count[centre, None] / count).cumsum(dim=1), (1, 0))
    return summed[:, (place + before).clamp(max=length - 1) + 1] - summed[:, (place - after).clamp(min=0)]


def hash_bits(grid: Tensor) -> Tensor:
    """Return (B, 256) of grids (B, 64, 64): whether each low frequency but the constant ones exceeds their median."""
    frequency = torch.arange(1, FREQUENCIES + 1, dtype=torch.float64, device=grid.device)[:, None]
    place = torch.arange(GRID, dtype=torch.float64, device=grid.device)
    cosines = math.sqrt(2 / GRID) * torch.cos(math.pi / GRID * frequency * (place + 0.5))
    coefficients = (cosines @ grid.double() @ cosines.T).flatten(1)
    # The lower of the two middle values: half of the bits are ones.
    return coefficients > coefficients.median(dim=1, keepdim=True).values


def quality_percent(grid: Tensor) -> Tensor:
    """Return (B,) whole numbers from 0 to 100: how much there is to hash in grids (B, 64, 64); PDQ wants 50."""
    detail = sum((grid.diff(dim=dim) * 100).trunc().abs().sum(dim=(1, 2)) for dim in (1, 2))
    assert isinstance(detail, Tensor)
    return (detail / DETAIL_OF_ONE_PERCENT).long().clamp(max=100)


def as_descriptor(bits: Tensor) -> Tensor:
    """Return bits (B, 256) as float32 vectors of length one."""
    return (2 * bits.float() - 1) / FREQUENCIES


def as_hex(bits: Tensor) -> str:
    """Return the 64 digits by which PDQ hashes are exchanged, the last bit first."""
    number = sum(1 << position for position in bits.flatten().nonzero().flatten().tolist())
    return f"{number:064x}"
