"""FID and KID by torchmetrics, where its Inception network is on this machine; nothing is fetched."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import nn

from callbacks.metrics.domain_classifier import Crops

# The file that torch-fidelity, which torchmetrics asks for its network, keeps in torch's cache.
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
FEWEST = 50  # pictures a side; the smallest subset that the kernel distance is averaged over
_BATCH = 32


def inception_weights(named: str | None = None) -> Path | str:
    """Return the file of Inception's weights, or a line that says why it cannot be used.

    Args:
        named: Where it is; torch's cache where not given.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS if named is None else Path(named)
    if not path.is_file():
        return f"no {path}"
    if importlib.util.find_spec("torch_fidelity") is None:
        return "torch-fidelity is not installed"
    return path


def inception_distances(
    real: Crops, other: Crops, network: int | nn.Module, device: torch.device, weights: Path | None = None
) -> dict[str, float]:
    """Return FID and KID between two sets of pictures, by name.

    Args:
        real: At least `FEWEST` pictures.
        other: The same.
        network: 2048 for Inception, or a network from uint8 pictures (B, 3, H, W) to features (B, F).
        device: Where the network runs.
        weights: Inception's file.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    fewest = min(len(real), len(other))
    if fewest < FEWEST:
        return {}
    frechet = FrechetInceptionDistance(
        network, feature_extractor_weights_path=None if weights is None else str(weights)
    )
    kernel = KernelInceptionDistance(frechet.inception, subsets=50, subset_size=min(1000, fewest))
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        torch.manual_seed(0)  # the subsets of the kernel distance
        for metric in (frechet.to(device), kernel.to(device)):
            for crops, is_real in ((real, True), (other, False)):
                for start in range(0, len(crops), _BATCH):
                    batch = torch.from_numpy(np.ascontiguousarray(crops[start : start + _BATCH])).to(device)
                    metric.update(batch, real=is_real)
        return {"fid": float(frechet.compute()), "kid": float(kernel.compute()[0])}
