"""LARS: momentum whose step on each tensor is proportional to the tensor's norm."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling, as the reference trains.

    A tensor that is zero, or whose gradient is, takes the raw gradient without decay: zero-initialised norms and biases
    start so.

    Args:
        params: Parameters or groups; a group with ``adapt: False`` takes plain momentum without decay.
        lr: Learning rate.
        momentum: Decay of the velocity.
        weight_decay: Added to the gradient, and to the norm that divides it.
        trust: Step length as a fraction of the tensor's norm.
        eps: Added to the norm that divides.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        eps: float = 1e-8,
    ) -> None:
        if lr < 0 or not 0 <= momentum < 1 or weight_decay < 0:
            raise ValueError(f"LARS got lr {lr}, momentum {momentum}, weight_decay {weight_decay}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "eps": eps}
        super().__init__(params, defaults | {"adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = _adapted(parameter, group) if group["adapt"] else parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "velocity" in state:
            state["velocity"].mul_(group["momentum"]).add_(gradient)
        else:
            state["velocity"] = gradient.clone()
        parameter.add_(state["velocity"], alpha=-group["lr"])


def _adapted(parameter: Tensor, group: dict[str, Any]) -> Tensor:
    """Return the decayed and scaled gradient; chosen on the device, for a look at a norm would stop a GPU."""
    gradient = parameter.grad
    assert gradient is not None
    decay, norm, slope = group["weight_decay"], parameter.norm(), gradient.norm()
    scale = group["trust"] * norm / (slope + decay * norm + group["eps"])
    return torch.where((norm > 0) & (slope > 0), (gradient + decay * parameter) * scale, gradient)
