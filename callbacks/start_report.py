"""What a run is, told at its start: processes, batch, precision, data and folder."""

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback


class StartReport(Callback):
    """Prints a few lines on rank 0, so that the log of a job says what ran where, on what, and where it lies."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell once the processes have found each other: a wrong number of them shows here, not in the results."""
        # Talks to all ranks: never behind a condition.
        folder = trainer.log_dir or trainer.default_root_dir
        if trainer.is_global_zero and trainer.state.fn is not None:
            told = {
                "processes": _processes(trainer),
                "precision": str(trainer.precision),
                "batch": _batch(trainer),
                "data": _data(trainer),
                "run": str(folder),
            }
            lines = (f"  {name:<10} {text}" for name, text in told.items())
            print("\n".join([f"sealmark {trainer.state.fn.value}", *lines]), file=sys.stderr)


def _processes(trainer: Trainer) -> str:
    device: torch.device = trainer.strategy.root_device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    machines = f"{trainer.num_nodes} machine{'s' * (trainer.num_nodes > 1)}"
    return f"{trainer.world_size} on {machines}, {type(trainer.strategy).__name__}, {kind}"


def _batch(trainer: Trainer) -> str:
    datamodule = getattr(trainer, "datamodule", None)
    training = trainer.state.fn == "fit"
    size = getattr(datamodule, "batch_size" if training else "eval_batch_size", None)
    if size is None:
        return "not said by the data"
    if not training:
        return f"{size} x {trainer.world_size} processes = {size * trainer.world_size}"
    accumulated = trainer.accumulate_grad_batches
    total = size * trainer.world_size * accumulated
    return f"{size} x {trainer.world_size} processes x {accumulated} accumulated = {total} a step"


def _data(trainer: Trainer) -> str:
    config = next((each.config for each in _callbacks(trainer) if isinstance(each, SaveConfigCallback)), None)
    given = {} if config is None else config.as_dict().get("data") or {}
    places = ", ".join(f"{name} {value}" for name, value in places_in(given.get("init_args", {})))
    name = type(getattr(trainer, "datamodule", None)).__name__
    return f"{name}: {places}" if places else name


def places_in(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings that name data: addresses, and files and folders that are there."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from places_in(value, f"{prefix}{name}.")
            continue
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, str | os.PathLike) and ("://" in str(each) or os.path.exists(each)):
                yield prefix + name, str(each)


def _callbacks(trainer: Trainer) -> list[Callback]:
    return trainer.callbacks  # type: ignore[attr-defined, no-any-return]
