"""A module with known errors by set-ups, and a program that tests it on two processes.

`python setups_run.py FOLDER` leaves results, both tables and `rank_RANK.json` in the folder.
"""

import json
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset

LABELS = (
    "identity_0|0.0|Identity_0|0",
    "identity_0|0.0|JPEG_20|20",
    "rotate_5|5.0|Identity_0|0",
    "rotate_5|5.0|JPEG_20|20",
)


class Numbers(Dataset):
    def __init__(self, length=9):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {"index": index}


class Synchronised(pl.LightningModule):
    """Errors of picture i under set-up k are i + 10 k; times depend on nothing."""

    setup_labels = LABELS

    def test_step(self, batch, batch_idx):
        index = batch["index"].double()
        wide = torch.arange(4.0, dtype=torch.float64)
        return {
            "index": batch["index"],
            "setups": list(LABELS),
            "corner_error_px": index[:, None] + 10 * wide,
            "identity_error_px": 2 * index[:, None] + 20 * (wide // 2),
            "detect_seconds": (0.001 * (wide + 1)).expand(len(index), 4),
            "unwarp_seconds": (0.0005 * (wide + 1)).expand(len(index), 4),
            "psnr": torch.where(index == 3, torch.inf, 40 + index),
            "ssim": 0.99 + index / 1000,
            "lpips": torch.full_like(index, torch.nan),
            "embed_seconds": torch.full_like(index, 0.25),
        }


def evaluate(folder, **options):
    from callbacks.sync_setups import SetUpEvaluation

    options = {"logger": CSVLogger(folder, name=""), "devices": 1, **options}
    run = pl.Trainer(
        accelerator="cpu",
        callbacks=[SetUpEvaluation(resamples=40)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    run.test(Synchronised(), DataLoader(Numbers(), batch_size=2), verbose=False)
    return run


def run_rank(folder):
    run = evaluate(folder, devices=2, strategy="ddp")
    metrics = {name: value.item() for name, value in run.callback_metrics.items()}
    Path(folder, f"rank_{run.global_rank}.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from two_ranks import in_two_processes

    import callbacks.sync_setups  # noqa: F401

    in_two_processes(run_rank, sys.argv[1])
