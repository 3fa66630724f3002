"""Training in which each process keeps a part of weights, gradients and optimiser, for networks that fill a GPU."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 with all processes as one data-parallel group and ordinary checkpoints.

    Lightning's own numbers the states of a whole checkpoint's optimiser by the model and not by the optimiser, asks the
    checkpoint for every frozen weight, and unpickles whatever the file holds. Here a checkpoint is the same as that of
    one process or of DDP, and any of them goes on from any.

    Args:
        timeout: How long a process waits for the others.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=30)) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)

    def setup_environment(self) -> None:
        """Refuse a module that does not say what is spread; take all processes for the data."""
        module = self.lightning_module
        if not is_overridden("configure_model", module):
            raise ValueError(
                f"{type(module).__name__} is small and does not spread its networks over processes: use "
                "--config configs/env/ddp.yaml in place of fsdp.yaml"
            )
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state as torch's optimisers give it, on rank zero alone."""
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(self._whole_model, optimizer, options=options)
        return _rekeyed(state, {name: number for number, name in enumerate(_names(state))}) if state else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint of any strategy, as data, and take each process's part of it."""
        checkpoint: dict[str, Any] = self.checkpoint_io.load_checkpoint(
            checkpoint_path, map_location="cpu", weights_only=True
        )
        model, options = self._whole_model, StateDictOptions(full_state_dict=True)
        set_model_state_dict(model, dict(checkpoint["state_dict"]), options=options)
        names = {parameter: name for name, parameter in model.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=False):
            ordered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
            set_optimizer_state_dict(model, optimizer, _rekeyed(state, dict(enumerate(ordered))), options=options)
        return checkpoint

    @property
    def _whole_model(self) -> nn.Module:
        assert self.model is not None
        return self.model


def _names(state: Mapping[str, Any]) -> list[str]:
    return [name for group in state["param_groups"] for name in group["params"]]


def _rekeyed(state: Mapping[str, Any], new: Mapping[Any, Any]) -> dict[str, Any]:
    """Call the parameters of an optimiser's state by other names."""
    groups = [group | {"params": [new[old] for old in group["params"]]} for group in state["param_groups"]]
    return {"state": {new[old]: values for old, values in state["state"].items()}, "param_groups": groups}
