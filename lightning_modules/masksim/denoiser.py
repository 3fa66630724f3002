"""The denoiser whose output is the noise of an image, and what it needs to be exact."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

DEPTH, WIDTH = 17, 64


class DnCNN(nn.Module):
    """Maps images (B, C, H, W) to their noise residual (B, C, H - 2 depth, W - 2 depth), in units of its deviation.

    Convolutions 3 × 3 without padding, so that no border looks like noise. Published weights have middle layers whose
    values of 10^4 batch norm cancels: never in less than float32. See `folding` for a form that can be.

    Args:
        channels: Of input and output.
        depth: Convolutions.
        width: Features between them.
    """

    def __init__(self, channels: int = 3, depth: int = DEPTH, width: int = WIDTH) -> None:
        super().__init__()
        if depth < 2 or width < 1:
            raise ValueError(f"a denoiser needs a depth of 2 and a width of 1 or more, got {depth} and {width}")
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        layers.append(nn.Conv2d(width, channels, 3))
        self.model = nn.Sequential(*layers)
        self.depth, self.width = depth, width

    def forward(self, image: Tensor) -> Tensor:
        """Return the residual, in float32 whatever autocast says, or float64 where the image is."""
        with full_precision(image.device.type):
            residual: Tensor = self.model(image if image.dtype == torch.float64 else image.float())
            return residual


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Compute in the tensors' own precision: without autocast, and on CUDA without TF32; settings are put back.

    A backward pass has to be inside, too: cuDNN reads the setting when it runs.
    """
    if torch.compiler.is_compiling():  # an exporter would write the settings into its graph
        yield
        return
    with torch.autocast(device_type, enabled=False):
        if device_type != "cuda":  # Threads share these settings, and a CPU does not read them.
            yield
            return
        backends: Any = torch.backends
        convolution, product = backends.cudnn.conv, backends.cuda.matmul
        kept = convolution.fp32_precision, product.fp32_precision
        try:
            convolution.fp32_precision = product.fp32_precision = "ieee"
            yield
        finally:
            convolution.fp32_precision, product.fp32_precision = kept


def recognise_denoiser(tensors: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Return the channels, depth and width that a denoiser's state dict (keys 0.weight, 0.bias, …) was made for."""
    convolutions = [value for key, value in tensors.items() if key.endswith(".weight") and value.ndim == 4]
    first = tensors.get("0.weight")
    if first is None or len(convolutions) < 2:
        raise ValueError("no denoiser: its first convolution would be 0.weight, and others follow")
    return first.shape[1], len(convolutions), first.shape[0]
