"""The denoiser for inference: batch norm folded in, and constants moved out of the activations."""

from typing import cast

import torch
from torch import Tensor, nn

from .denoiser import DnCNN, full_precision

# A channel with a larger constant than this is stored without it.
_SHIFT_FROM = 1.0


class FoldedDenoiser(nn.Module):
    """Computes what a `DnCNN` in eval mode does, from convolutions with biases alone.

    After batch norm a channel is max(0, u + β). Some channels of trained denoisers are nearly constant, with a large β.
    Such a channel is stored as max(-β, u), and its β goes into the next convolution's bias, in float64. It is the
    same function, as convolutions without padding meet a constant everywhere alike; but what is rounded is u.
    """

    def __init__(self, denoiser: DnCNN) -> None:
        super().__init__()
        self.depth = denoiser.depth
        dtype = next(denoiser.parameters()).dtype
        self.convolutions = nn.ModuleList()
        self.floors = nn.ParameterList()
        for weight, bias, floor in _folded_layers(denoiser):
            convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, device=weight.device, dtype=dtype)
            convolution.load_state_dict({"weight": weight, "bias": bias})
            self.convolutions.append(convolution)
            if floor is not None:
                self.floors.append(nn.Parameter(floor.to(dtype)[:, None, None]))
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Return the residual (B, C, H - 2 depth, W - 2 depth) in the image's type; computed in the weights' type."""
        with full_precision(image.device.type):
            return self.residual(image)

    def residual(self, image: Tensor) -> Tensor:
        """Return the residual under the precision that the caller has set."""
        features = image.to(next(self.parameters()).dtype)
        for convolution, floor in zip(self.convolutions, self.floors, strict=False):
            features = convolution(features).clamp_min_(floor)
        return cast(Tensor, self.convolutions[-1](features)).to(image.dtype)


def _folded_layers(denoiser: DnCNN) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Return weight, bias and lower bound of each layer in float64; the last has no bound."""
    layers: list[tuple[Tensor, Tensor, Tensor | None]] = []
    moved: Tensor | None = None  # constants missing in the channels that the next layer reads
    modules = list(denoiser.model)
    for place, module in enumerate(modules):
        if not isinstance(module, nn.Conv2d):
            continue
        weight = module.weight.detach().double()
        bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach().double()
        if moved is not None:
            bias = bias + weight.sum(dim=(2, 3)) @ moved
        follower = modules[place + 1] if place + 1 < len(modules) else None
        if isinstance(follower, nn.BatchNorm2d):
            gain, shift = _gain_and_shift(follower)
            constant = follower.bias.detach().double()
            moved = torch.where(constant > _SHIFT_FROM, constant, 0.0)
            weight, bias = weight * gain[:, None, None, None], bias * gain + shift - moved
        else:
            moved = weight.new_zeros(len(weight))
        layers.append((weight, bias, None if follower is None else -moved))
    return layers


def _gain_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the factor and the summand that batch norm in eval mode is."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return gain, norm.bias.detach().double() - norm.running_mean.double() * gain
