"""A module that returns its batch, data with known truth, and a program that evaluates them on two processes.

`python echo_run.py FOLDER` leaves results, figures, `rank_RANK.json` and `gathered_RANK.json` in the folder.
"""

import json
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset

SIDE = 16
SAMPLES = 9
FAMILIES = ("clean", "text", "logo", "hard_negative")


class EchoData(Dataset):
    """Sample i depends on i alone: noisy probabilities, some clean images, one found empty, bands of opacity."""

    def __init__(self, samples=SAMPLES):
        self.samples = samples

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        draw = torch.Generator().manual_seed(index)
        marked = index % 4 in (1, 2)
        mask = torch.zeros(1, SIDE, SIDE)
        if marked:
            top, left = torch.randint(0, SIDE - 6, (2,), generator=draw).tolist()
            mask[:, top : top + 6, left : left + 5] = 1
        noise = torch.rand(1, SIDE, SIDE, generator=draw)
        probability = 0.35 * mask + (0.65 if marked else 0.95) * noise**2
        if index == 4:
            probability = torch.zeros_like(noise)  # clean and found clean
        ignore = torch.rand(1, SIDE, SIDE, generator=draw) > 0.9
        return {
            "index": index,
            "image": torch.rand(3, SIDE, SIDE, generator=draw),
            "probability": probability,
            "mask": mask,
            "ignore": ignore,
            "family": FAMILIES[index % 4],
            "opacity": 0.2 + 0.1 * index if marked else float("nan"),
        }


class EchoModule(pl.LightningModule):
    """Returns its batch; saves its threshold as the real module does."""

    def __init__(self, leave_out=()):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.threshold = 0.5
        self.leave_out = leave_out

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return {key: value for key, value in batch.items() if key not in self.leave_out}

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        return self.validation_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["calibration"] = {"threshold": self.threshold}


def loader(samples=SAMPLES):
    """Batches of two, the last one smaller."""
    return DataLoader(EchoData(samples), batch_size=2)


def trainer(folder, callbacks, **options):
    """A quiet CPU trainer that logs into `folder`/version_0."""
    options = {"logger": CSVLogger(folder, name=""), "enable_checkpointing": False, "devices": 1, **options}
    return pl.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def evaluate(folder, **options):
    """Validates (which calibrates) and then tests."""
    from callbacks.figures import SegmentationFigures
    from callbacks.segmentation import SegmentationEvaluation
    from callbacks.threshold_calibration import ThresholdCalibration

    callbacks = [
        ThresholdCalibration(max_false_area=0.1, bins=64),
        SegmentationEvaluation(dilations=[0, 1], stages=["val", "test"], resamples=50),
        SegmentationFigures(num_samples=2),
    ]
    run, module = trainer(folder, callbacks, **options), EchoModule()
    run.validate(module, loader(), verbose=False)
    run.test(module, loader(), verbose=False)
    return module, run


def gather_from_one_rank(folder):
    """Rank 0 has one row and the others none; every rank writes what it computed."""
    from callbacks.metrics.sample_table import SampleTable

    rank = torch.distributed.get_rank()
    table = SampleTable(("x",), {"wide": 2}, ("name",))
    if rank == 0:
        table.update(torch.tensor([7]), {"x": torch.tensor([0.1]), "wide": torch.ones(1, 2), "name": ["é"]})
    values = {key: column.tolist() for key, column in table.compute().items()}
    empty = {key: column.tolist() for key, column in SampleTable(("x",)).compute().items()}
    Path(folder, f"gathered_{rank}.json").write_text(json.dumps({"one": values, "none": empty}))


def run_rank(folder):
    """One of two processes."""
    module, run = evaluate(folder, devices=2, strategy="ddp")
    metrics = {name: value.item() for name, value in run.callback_metrics.items()}
    outcome = json.dumps({"threshold": module.threshold, "metrics": metrics})
    Path(folder, f"rank_{run.global_rank}.json").write_text(outcome)
    gather_from_one_rank(folder)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from two_ranks import in_two_processes

    import callbacks.figures
    import callbacks.segmentation
    import callbacks.threshold_calibration  # noqa: F401

    in_two_processes(run_rank, sys.argv[1])
