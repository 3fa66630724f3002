"""A network that compares a questioned seal with a specimen: where does each part of one lie in the other."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VerifierNetwork(nn.Module):
    """Two towers, their local correlation, and a head that says whether the displacements are those of one seal.

    A genuine impression lies a little beside its specimen as a whole. Of a re-cut seal parts lie beside theirs by
    different amounts, or their strokes are of another weight.

    Args:
        width: Channels of the towers' first layer.
        reach: Displacements that are tried, in cells of four pixels, to each side.
    """

    def __init__(self, width: int = 16, reach: int = 2) -> None:
        super().__init__()
        self.reach = reach
        self.questioned = _tower(3, width)
        self.specimen = _tower(1, width)
        tried = (2 * reach + 1) ** 2
        self.compare = nn.Sequential(
            _block(tried + 4 * width, 4 * width, 1),
            _block(4 * width, 4 * width, 2),
            _block(4 * width, 4 * width, 2),
        )
        self.head = nn.Linear(8 * width, 1)

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Return the logit of "one seal", (B,).

        Args:
            image: Questioned seals, RGB (B, 3, H, W) in [0, 1]; sides of 32 and more.
            reference: Specimens of the same sizes, 1 where there is ink, (B, 1, H, W).
        """
        # Ink is dark on white: as density it is near 0 where there is nothing, like the specimen.
        ours, theirs = self.questioned(1 - image), self.specimen(reference)
        volume = correlations(F.normalize(ours, dim=1), F.normalize(theirs, dim=1), self.reach)
        found = self.compare(torch.cat([volume, ours, theirs], 1))
        pooled = torch.cat([found.mean((2, 3)), found.amax((2, 3))], 1)
        logit: Tensor = self.head(pooled).squeeze(1)
        return logit


def correlations(first: Tensor, second: Tensor, reach: int) -> Tensor:
    """Return the inner product of each cell with those around it in the other map, (B, (2 reach + 1)^2, H, W).

    Args:
        first: (B, C, H, W).
        second: The map that is displaced, of the same shape; outside of it there is 0.
        reach: Largest displacement, rows first.
    """
    height, width = first.shape[-2:]
    padded = F.pad(second, (reach,) * 4)
    steps = range(2 * reach + 1)
    found = [(first * padded[..., y : y + height, x : x + width]).sum(1) for y in steps for x in steps]
    return torch.stack(found, 1)


def _tower(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(_block(channels, width, 2), _block(width, 2 * width, 2), _block(2 * width, 2 * width, 1))


def _block(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )
