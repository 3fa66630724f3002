"""A small network, batches of which some are poisoned, and a program that trains it on two processes.

`python bad_numbers_run.py FOLDER` leaves `CASE.rankR.pt` for every case in the folder.
"""

import io
import json
import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.utils.data import DataLoader

DECAY = 0.5
BATCH = 4


class Small(pl.LightningModule):
    """A regression with batch norm and Adam; a batch says itself what is wrong with it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))

    def loss_of(self, batch):
        loss = (self.network(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean()
        if batch["fault"] == "infinite loss":
            loss = loss + torch.inf  # its gradient is finite
        return loss

    def training_step(self, batch, batch_idx):
        if batch["fault"] == "gradient" and self.global_rank == batch["rank"]:
            self.handle = self.network[0].weight.register_hook(lambda gradient: gradient * torch.nan)
        loss = self.loss_of(batch)
        self.log("train/loss", loss.detach(), batch_size=BATCH)
        return loss

    def on_train_batch_end(self, *_):
        if hasattr(self, "handle"):
            self.handle.remove()
            del self.handle

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def batch_of(number, fault=None, rank=0, faulty_rank=0):
    """Batch `number` of a rank; its fault is that of one rank alone."""
    x = torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(10 * number + rank))
    if rank != faulty_rank:
        fault = None
    if fault == "sample":
        x[1, 2] = torch.nan
    index = torch.arange(BATCH) + BATCH * number
    return {"x": x, "index": index, "path": [f"{i}.png" for i in index], "fault": fault, "rank": faulty_rank}


def trainer(folder, bad_numbers, callbacks=(), **options):
    """A quiet CPU trainer with an average of the weights."""
    return pl.Trainer(
        accelerator="cpu",
        callbacks=[*callbacks, EMAWeightAveraging(decay=DECAY), bad_numbers],
        default_root_dir=folder,
        max_epochs=1,
        **{"logger": False, "enable_checkpointing": False, "devices": 1, **options},
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def state_of(run):
    """All that a step may change."""
    state = run._checkpoint_connector.dump_checkpoint(weights_only=False)
    return {
        "average": state["state_dict"],
        "averaged": state["averaging_state"],
        "weights": state["current_model_state"],
        "optimizers": state["optimizer_states"],
    }


class KeepsState(pl.Callback):
    """Keeps what a run ends with, before the average takes the weights' place."""

    def on_train_epoch_end(self, run, module):
        self.state = copied(state_of(run))


def copied(state):
    """What a checkpoint would give back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


CASES = {
    # name: what each batch suffers from on rank 1 alone, accumulated batches, action
    "sample": ([None, "sample", None, None], 1, "skip"),
    "infinite loss": ([None, "infinite loss", None, None], 1, "skip"),
    "gradient": ([None, "gradient", None, None], 1, "skip"),
    "accumulated": ([None, None, "sample", None, None, None], 2, "skip"),
    "stop": ([None, "infinite loss", None, None], 1, "stop"),
}


def fit_case(folder, name, rank, left_out=None):
    """Train on the batches of a case, or on those that are left when its bad step is left out."""
    from callbacks.bad_numbers import BadNumbers

    faults, accumulated, action = CASES[name]
    numbers = [n for n in range(len(faults)) if left_out is None or n // accumulated != left_out]
    batches = [batch_of(n, None if left_out is not None else faults[n], rank, faulty_rank=1) for n in numbers]
    keeper, bad_numbers, module = KeepsState(), BadNumbers(action), Small()
    run = trainer(
        Path(folder, name),
        bad_numbers,
        [keeper],
        devices=2,
        strategy="ddp",
        use_distributed_sampler=False,
        accumulate_grad_batches=accumulated,
    )
    # Constant, so that the run without the step has the same rates.
    module.lr_scheduler_step = lambda *_: None
    told = None
    try:
        run.fit(module, DataLoader(batches, batch_size=None))
    except (ValueError, SystemExit) as error:
        told = f"{type(error).__name__} {error}"
    state = getattr(keeper, "state", None)
    return {"state": state, "told": told, "skipped": bad_numbers.skipped, "step": run.global_step}


def run_rank(folder):
    """One of two processes."""
    from callbacks.bad_numbers import FILE_NAME

    rank = int(os.environ["LOCAL_RANK"])
    for name, (faults, accumulated, action) in CASES.items():
        outcome = {"met": fit_case(folder, name, rank)}
        if action == "skip":
            bad = next(place for place, fault in enumerate(faults) if fault)
            outcome["without"] = fit_case(folder, name, rank, left_out=bad // accumulated)
        torch.save(outcome, Path(folder, f"{name}.rank{rank}.pt"))
    lines = Path(folder, "stop", FILE_NAME).read_text().splitlines()
    assert [json.loads(line)["rank"] for line in lines] == [0, 1]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from two_ranks import in_two_processes

    import callbacks.bad_numbers  # noqa: F401

    in_two_processes(run_rank, sys.argv[1])
