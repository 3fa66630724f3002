"""A module that returns descriptors, a toy retrieval task, and a program that evaluates it on two processes.

`python copy_run.py FOLDER` leaves results and `rank_RANK.json` in the folder.
"""

import json
import sys
import types
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset


class Rows(Dataset):
    """Descriptors by index."""

    def __init__(self, descriptors):
        self.descriptors = descriptors

    def __len__(self):
        return len(self.descriptors)

    def __getitem__(self, index):
        return {"index": index, "descriptor": torch.from_numpy(self.descriptors[index].copy())}


class ToyCopies(pl.LightningDataModule):
    """References, queries and a background whose descriptors are given."""

    def __init__(self, references, queries, background, pairs, groups=None, batch_size=7):
        super().__init__()
        self.descriptors = np.concatenate([references, queries, background])
        counts = [len(references), len(queries), len(background)]
        names = [f"{letter}{i:0{digits}}" for letter, digits, n in zip("RQT", (6, 5, 6), counts, strict=True)
                 for i in range(n)]  # fmt: skip
        role = np.repeat(np.arange(3, dtype=np.int8), counts)
        pairs = np.asarray(pairs, np.int64).reshape(-1, 2) + np.array([counts[0], 0])
        groups = {name: np.asarray(members) + counts[0] for name, members in (groups or {}).items()}
        self.task = types.SimpleNamespace(names=names, role=role, pairs=pairs, groups=groups)
        self.batch_size = batch_size

    def retrieval_task(self, split):
        return self.task

    def test_dataloader(self):
        return DataLoader(Rows(self.descriptors), batch_size=self.batch_size)

    val_dataloader = test_dataloader


class Echo(pl.LightningModule):
    """Returns its batch."""

    def __init__(self, leave_out=()):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.leave_out = leave_out

    def validation_step(self, batch, batch_idx):
        return {key: value for key, value in batch.items() if key not in self.leave_out}

    test_step = validation_step


def drawn_copies(seed=0, size=8, references=40, queries=15, background=23):
    """Queries of which two of three are noisy references."""
    rng = np.random.default_rng(seed)
    held, others = (rng.standard_normal((n, size)).astype(np.float32) for n in (references, background))
    asked = rng.standard_normal((queries, size)).astype(np.float32)
    pairs = [(query, 2 * query) for query in range(queries) if query % 3]
    for query, reference in pairs:
        asked[query] = held[reference] + 0.6 * asked[query]
    groups = {"mild/jpeg": list(range(queries // 2)), "strong": list(range(queries // 2, queries))}
    return ToyCopies(
        *(rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (held, asked, others)), pairs, groups
    )


def trainer(folder, callbacks, **options):
    """A quiet CPU trainer that logs into `folder`/version_0."""
    options = {"logger": CSVLogger(folder, name=""), "enable_checkpointing": False, "devices": 1, **options}
    return pl.Trainer(
        accelerator="cpu", callbacks=callbacks, enable_progress_bar=False, enable_model_summary=False, **options
    )


def evaluate(folder, data=None, **options):
    """Validates and then tests; returns the values logged by both."""
    from callbacks.copy_detection import CopyDetectionEvaluation

    callback = CopyDetectionEvaluation(
        codecs=["Flat", "PCAW4,L2norm,Flat"], stages=["val", "test"], resamples=20, challenge_files=["predictions"]
    )
    run, module, data = trainer(folder, [callback], **options), Echo(), data or drawn_copies()
    run.validate(module, datamodule=data, verbose=False)
    values = dict(run.callback_metrics)
    run.test(module, datamodule=data, verbose=False)
    return {name: float(value) for name, value in (values | dict(run.callback_metrics)).items()}, run


def run_rank(folder):
    """One of two processes."""
    values, run = evaluate(folder, devices=2, strategy="ddp")
    Path(folder, f"rank_{run.global_rank}.json").write_text(json.dumps(values))
    # An error of the process that compares must end the other, too.
    broken = drawn_copies()
    broken.task.pairs = "not pairs"
    try:
        evaluate(str(Path(folder, "broken")), broken, devices=2, strategy="ddp")
    except Exception as error:
        Path(folder, f"error_{run.global_rank}.txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from two_ranks import in_two_processes

    import callbacks.copy_detection  # noqa: F401

    in_two_processes(run_rank, sys.argv[1])
