"""Two players in one step: what keeps each from touching the other's parameters, and both from what is no number."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.base import Schedule, schedule_factor


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Let gradients through a network, but into none of its parameters."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Leave parameters without a gradient: AdamW then does not touch them, nor decays them."""
    for parameter in parameters:
        parameter.grad = None


def keep_sound_gradients(
    network: nn.Module, rival: nn.Module | None, sound: bool, sound_rival: bool, limit: float
) -> Tensor:
    """Clip the network's gradients and return their norm; drop those of a loss that was no number.

    A norm that is no number drops the rival's too, as published.

    Args:
        network: Embedder and detector.
        rival: The discriminator.
        sound: Whether the network's loss was a number.
        sound_rival: Whether the rival had a loss, and it was a number.
        limit: Of the norm.
    """
    if not sound:
        drop_gradients(network.parameters())
    norm = nn.utils.clip_grad_norm_(network.parameters(), limit)
    broken = not bool(norm.isfinite())
    if broken:
        drop_gradients(network.parameters())
    if rival is not None and (broken or not sound_rival):
        drop_gradients(rival.parameters())
    return norm


def zero_of(networks: Iterable[nn.Module]) -> Tensor | float:
    """Return 0 that depends on all parameters of networks, so that a reducer of gradients has none to wait for."""
    return sum((parameter.sum() * 0.0 for network in networks for parameter in network.parameters()), start=0.0)


def scheduled_adamw(
    player: nn.Module,
    lr: float,
    weight_decay: float,
    schedule: Schedule,
    warmup_steps: int,
    min_lr: float,
    total_steps: int,
) -> dict[str, Any]:
    """Return AdamW of one player with its schedule, as Lightning takes them; decay is on all parameters."""
    trained = [parameter for parameter in player.parameters() if parameter.requires_grad]
    optimizer = AdamW(trained, lr=lr, weight_decay=weight_decay)

    def factor(step: int) -> float:
        return schedule_factor(step, total_steps, schedule, warmup_steps, min_lr / lr)

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}
