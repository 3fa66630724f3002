"""The branch that learns what the forger makes: an adapter on the frozen U-Net and a prompt of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .backbone import DiffusionBackbone

ADAPTER = "forgery"
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


class FakeBranch(nn.Module):
    """Predicts noise by the backbone's own U-Net with low-rank changes of its attention, and a trained prompt.

    The adapter's tensors lie in the U-Net; here are the same tensors under names of their own, so that an optimiser, a
    checkpoint and a reducer of gradients find them without the U-Net.

    Args:
        backbone: Gets the adapter; its own answers stay what they were inside `without`.
        prompt: Where the prompt starts, (T, D).
        rank: Of the changes.
    """

    def __init__(self, backbone: DiffusionBackbone, prompt: Tensor, rank: int) -> None:
        super().__init__()
        from peft import LoraConfig

        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS))
        backbone.unet.add_adapter(config, adapter_name=ADAPTER)
        self.prompt = nn.Parameter(prompt.detach().clone().float())
        # A name of a parameter has no dots.
        self.adapter = nn.ParameterDict({name.replace(".", "-"): value for name, value in adapter_parameters(backbone)})

    def forward(self, backbone: DiffusionBackbone, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noise seen in noisy latents (B, C, h, w), with gradients to adapter and prompt."""
        return backbone.predict_noise(noisy.detach(), timesteps, self.prompt[None])


@contextmanager
def without_adapter(backbone: DiffusionBackbone) -> Iterator[None]:
    """Give the backbone its own answers back for a while, if it has an adapter; for passes without gradients."""
    if not adapter_parameters(backbone):
        yield
        return
    backbone.unet.disable_adapters()
    try:
        yield
    finally:
        # Also makes the adapter trainable again, which the call above undid.
        backbone.unet.enable_adapters()


def adapter_parameters(backbone: DiffusionBackbone) -> list[tuple[str, nn.Parameter]]:
    """Return the adapter's tensors by their names in the U-Net."""
    return [(name, value) for name, value in backbone.unet.named_parameters() if f".{ADAPTER}." in name]


def fake_error(predicted: Tensor, noise: Tensor) -> Tensor:
    """Return the branch's own loss: its mean squared error."""
    return torch.nn.functional.mse_loss(predicted, noise)
