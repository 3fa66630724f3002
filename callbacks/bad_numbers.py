"""What a run does when a loss or a gradient is not a number: it ends before the step, or leaves the step out."""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from callbacks.prediction_files import JsonLines

FILE_NAME = "bad_numbers.jsonl"
NAMES_SHOWN = 8  # gradients named in a line of the file


class BadNumbers(Callback):
    """Looks at the loss and all gradients after each backward pass, so that no step is taken with NaN or infinity.

    All processes see one verdict, made of one number from each, before any optimiser moves. A step that is left out
    changes neither weights nor states of optimisers nor averages of weights nor buffers such as running statistics;
    of accumulated batches it takes all with it. It does count: `global_step`, the schedules and the place in the data
    go on, so that the run ends where it would have.

    Automatic and manual optimisation pass here alike. A module with several optimisers has to move them after its
    backward pass, as ours do: a step between two passes cannot be taken back.

    Args:
        action: "stop" ends the run with one line; "skip" leaves the step out. Either writes the batch of each process
            to bad_numbers.jsonl in the run's folder.
        limit: How many steps a run may leave out; one more ends it.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop", limit: int = 10) -> None:
        if limit < 1:
            raise ValueError(f"bad_numbers.limit must be at least 1, got {limit}: to leave out none, take action stop")
        self.action = action
        self.limit = limit
        self.skipped = 0
        self._path = Path()
        self._owners: list[tuple[nn.Module, str]] = []
        self._kept: list[Tensor] | None = None  # the buffers before the running step; None before the first one here
        self._leaving_out = False
        self._batch: Mapping[str, Any] = {}
        self._batch_idx = 0
        self._loss = torch.zeros(())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle where the list goes while all ranks are here: asking for the folder talks to all of them."""
        if stage == "fit":
            self._path = Path(trainer.log_dir or trainer.default_root_dir) / FILE_NAME

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what a forward pass may change."""
        self._owners = [(part, name) for part in pl_module.modules() for name, _ in part.named_buffers(recurse=False)]
        self._kept = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the buffers where a step begins, and what names the batch."""
        # Lightning clears the gradients by the same rule. A run may go on within a step: then nothing is kept yet.
        if batch_idx % trainer.accumulate_grad_batches == 0 or self._kept is None:
            self._leaving_out = False
            self._keep_buffers()
        self._batch, self._batch_idx = batch if isinstance(batch, Mapping) else {}, batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss; of float16 it is the scaled one."""
        self._loss = loss.detach()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the optimisers have sound gradients or none.

        Here and not by a `training_step` that returns None, which Lightning refuses on several processes: all have to
        go through the backward pass that averages their gradients.
        """
        sound = self._loss.isfinite().all()
        # A scaler of float16 means to meet infinite gradients: it leaves such a step out and halves its scale.
        gradients = gradients_of(trainer) if _scaler_of(trainer) is None else []
        if gradients:
            # The largest magnitude: the one norm that is infinite or NaN if and only if an element is.
            sound = sound & torch.nn.utils.get_total_norm(gradients, math.inf).isfinite()
        if trainer.world_size > 1:
            agreed = trainer.strategy.reduce(sound.float(), reduce_op="sum")
            assert isinstance(agreed, Tensor)
            sound = agreed == trainer.world_size
        # The only look at a value: on a GPU it waits for the backward pass.
        if not bool(sound):
            self._meet(trainer, pl_module)
        elif self._leaving_out:
            self._leave_out(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Let go of the batch, and show how many steps were left out, once there are any."""
        self._batch = {}
        if self.skipped:
            pl_module.log("train/skipped_steps", float(self.skipped), prog_bar=True, batch_size=1)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save no weights that are not numbers; an earlier checkpoint is then the last good one."""
        states = (checkpoint.get(key, {}) for key in ("state_dict", "current_model_state"))
        broken = [name for state in states for name in bad_names(state.items())]
        if not trainer.strategy.reduce_boolean_decision(not broken):
            named = f" ({broken[0]} and {len(broken) - 1} more)" if broken else ""
            raise _ending(
                trainer,
                f"after step {trainer.global_step} the weights are not numbers{named}: no checkpoint of them was "
                f"written. Lower --model.lr, and go on from the last checkpoint",
            )

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps were left out, for the checkpoint."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on."""
        self.skipped = state_dict["skipped"]

    def _meet(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the batches down, then leave the step out and go on or end."""
        records = _gathered(self._described(trainer, pl_module), trainer)
        self.skipped += not self._leaving_out
        self._leave_out(trainer)
        if trainer.is_global_zero:
            lines = JsonLines(_made(self._path))
            for record in records:
                lines.append(record)
            lines.close()
        found = f"step {trainer.global_step}: {culprit(records)}"
        if any(record["weights"] for record in records):
            raise _ending(
                trainer,
                f"{found}, and so are the weights: nothing comes of more steps. Go on from an earlier checkpoint "
                f"with a lower --model.lr; batches in {self._path}",
            )
        if self.action == "stop":
            raise _ending(
                trainer,
                f"{found}: stopped before the step, its batches are in {self._path}. Go on from the last checkpoint; "
                f"--bad_numbers.action skip leaves such steps out",
            )
        if self.skipped > self.limit:
            raise _ending(
                trainer, f"{found}: --bad_numbers.limit {self.limit} steps were left out before; see {self._path}"
            )
        if trainer.is_global_zero:
            print(f"{found}: left out ({self.skipped} of at most {self.limit}), see {self._path}", file=sys.stderr)

    def _leave_out(self, trainer: Trainer) -> None:
        """Make the coming step of the optimisers one that changes nothing."""
        self._leaving_out = True
        scaler = _scaler_of(trainer)
        for parameter in parameters_of(trainer):
            if scaler is None or parameter.grad is None:
                parameter.grad = None
            else:
                # A scaler must see something to look at; it then leaves the step out as any of its own.
                parameter.grad.fill_(math.nan)
        with torch.no_grad():
            assert self._kept is not None
            for (part, name), kept in zip(self._owners, self._kept, strict=True):
                getattr(part, name).copy_(kept)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):
                # As if it had averaged after the coming step already.
                state = {"latest_update_step": trainer.global_step + 1}
                callback.load_state_dict(callback.state_dict() | state)

    def _keep_buffers(self) -> None:
        buffers = [getattr(part, name) for part, name in self._owners]
        if self._kept is None:
            self._kept = [buffer.detach().clone() for buffer in buffers]
            return
        for kept, buffer in zip(self._kept, buffers, strict=True):
            kept.copy_(buffer)

    def _described(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the line of this process: where, what was found, and all that its batch is drawn from."""
        scaler = _scaler_of(trainer)
        scale = trainer.accumulate_grad_batches / (1.0 if scaler is None else float(scaler.get_scale()))
        names = {parameter: name for name, parameter in pl_module.named_parameters()}
        graded = [(names.get(each, "?"), each.grad) for each in parameters_of(trainer) if each.grad is not None]
        gradients = [] if scaler is not None else bad_names(graded)
        logged = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        return {
            "step": trainer.global_step,
            "rank": trainer.global_rank,
            "epoch": trainer.current_epoch,
            "batch_idx": self._batch_idx,
            "index": self._batch["index"].tolist() if "index" in self._batch else None,
            "path": list(self._batch["path"]) if "path" in self._batch else None,
            "inputs": bad_names(self._batch.items()),
            "loss": readable(self._loss * scale),
            "logged": {name: readable(value) for name, value in logged.items()},
            "gradients": gradients[:NAMES_SHOWN],
            "gradients_in_all": len(gradients),
            "weights": bad_names(pl_module.named_parameters())[:NAMES_SHOWN],
            "run_seed": int(os.environ.get("PL_GLOBAL_SEED", "0")),
            "data_seed": getattr(trainer.datamodule, "seed", None),  # type: ignore[attr-defined]
            "torch_seed": torch.initial_seed(),
        }


def parameters_of(trainer: Trainer) -> list[nn.Parameter]:
    """Return the parameters that the optimisers move."""
    return [each for optimizer in trainer.optimizers for group in optimizer.param_groups for each in group["params"]]


def gradients_of(trainer: Trainer) -> list[Tensor]:
    """Return the gradients that the optimisers would take; a sharded one may have nothing on this process."""
    parts = [_here(each.grad) for each in parameters_of(trainer) if each.grad is not None]
    return [part for part in parts if part.numel()]


def bad_names(named: Any) -> list[str]:
    """Return the names of tensors with an element that is NaN or infinite."""
    tensors = [(name, _here(value)) for name, value in named if isinstance(value, Tensor)]
    if not tensors:
        return []
    device = tensors[0][1].device
    sound = torch.stack([value.isfinite().all().to(device) for _, value in tensors]).tolist()
    return [name for (name, _), good in zip(tensors, sound, strict=True) if not good]


def readable(value: Tensor) -> float | str:
    """Return a number, or the name of what is none, which JSON has no number for."""
    number = float(value.float().mean())
    return number if math.isfinite(number) else str(number)


def culprit(records: list[dict[str, Any]]) -> str:
    """Say which loss or gradient it was, and on which process."""
    losses = [record for record in records if isinstance(record["loss"], str)]
    if losses:
        first = losses[0]
        parts = sorted(name for name, value in first["logged"].items() if isinstance(value, str))
        ranks = ", ".join(str(record["rank"]) for record in losses)
        return f"the loss of rank {ranks} is {first['loss']}" + (f" ({', '.join(parts)})" if parts else "")
    first = next(record for record in records if record["gradients"])
    more = first["gradients_in_all"] - 1
    # Processes have averaged their gradients by now, so that one without a fault of its own has them too.
    where = f"of rank {first['rank']}" if len(records) == 1 else "after averaging over ranks"
    return f"the gradient of {first['gradients'][0]} {where} is not a number" + (f", nor {more} more" if more else "")


def _here(value: Tensor) -> Tensor:
    """Return the part of a sharded tensor that lies on this process, any other as it is."""
    part: Tensor = value.to_local() if isinstance(value, DTensor) else value
    return part.detach()


def _scaler_of(trainer: Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _gathered(record: dict[str, Any], trainer: Trainer) -> list[dict[str, Any]]:
    if trainer.world_size == 1:
        return [record]
    lines: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(lines, json.dumps(record))
    return [json.loads(line) for line in lines]


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _ending(trainer: Trainer, text: str) -> BaseException:
    """Return what ends the run on all processes at once, told by one."""
    return ValueError(text) if trainer.is_global_zero else SystemExit(2)
