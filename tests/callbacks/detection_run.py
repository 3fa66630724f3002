"""A detector that returns known logits, and a program that calibrates and tests it on two processes.

`python detection_run.py FOLDER` leaves calibration, results, tables and `rank_RANK.json` in the folder.
"""

import json
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset, default_collate

HEADS = ("a", "b", "c")
KINDS = ("real", "a", "real", "b", "real", "unseen")
"""Generators of pictures 0 to 5, then again; nothing comes from head c's generator."""


class Pictures(Dataset):
    """Picture i depends on i and the seed alone.

    Args:
        length: How many.
        views: Names of the views; each but the first adds noise to the logits.
        seed: Of the draws.
        packaged: Whether generated pictures are PNG and real ones JPEG.
        gap: How much higher a head scores pictures of its own generator.
    """

    def __init__(self, length=120, views=("native",), seed=0, packaged=False, gap=2.0):
        self.length, self.views, self.seed, self.packaged, self.gap = length, views, seed, packaged, gap

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        rng = np.random.default_rng([self.seed, index])
        kind = KINDS[index % len(KINDS)]
        logit = rng.normal(-1, 1.5, len(HEADS)) + self.gap * np.array([head == kind for head in HEADS])
        logit += 0.5 * self.gap * (kind == "unseen")
        noise = np.array([view > 0 for view in range(len(self.views))])[:, None]
        logits = logit + 0.8 * noise * rng.normal(size=(len(self.views), len(HEADS)))
        png = rng.random() < 0.5 if not self.packaged else kind != "real"
        facts = {"width": float(rng.integers(500, 900)), "jpeg_quality": np.nan if png else float(rng.integers(40, 99))}
        return {
            "index": index,
            "logit": torch.from_numpy(logits).float(),
            "label": np.float32(kind != "real"),
            "generator": kind,
            "source": f"set{index % 4 // 2}",
            "facts": facts,
            "format": "PNG" if png else "JPEG",
            "quality": facts["jpeg_quality"],
        }

    def collate(self, samples):
        return {**default_collate(samples), "views": list(self.views)}

    def loader(self, batch_size=7):
        return DataLoader(self, batch_size=batch_size, collate_fn=self.collate)


class Detector(pl.LightningModule):
    """Returns its batch; keeps its calibration as the real module does."""

    def __init__(self, generators=HEADS):
        super().__init__()
        self.save_hyperparameters({"generators": list(generators)})
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.calibration = None
        self.loaded_progress = (3, 77)

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        return {key: batch[key] for key in ("index", "logit", "label", "generator")}

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_save_checkpoint(self, checkpoint):
        if self.calibration is not None:
            checkpoint["calibration"] = self.calibration.state()

    def on_load_checkpoint(self, checkpoint):
        from lightning_modules.functional.detection_calibration import Calibration

        if "calibration" in checkpoint:
            self.calibration = Calibration.from_state(checkpoint["calibration"])


def trainer(folder, callbacks, **options):
    """A quiet CPU trainer that logs into `folder`/version_0."""
    options = {"logger": CSVLogger(folder, name=""), "enable_checkpointing": False, "devices": 1, **options}
    return pl.Trainer(
        accelerator="cpu", callbacks=callbacks, enable_progress_bar=False, enable_model_summary=False, **options
    )


def evaluate(folder, **options):
    """Calibrates on 121 pictures, then tests other 121 of two views; both numbers are odd."""
    from callbacks.detection import DetectionEvaluation
    from callbacks.detection_calibration import DetectionCalibration

    callbacks = [DetectionCalibration(), DetectionEvaluation(resamples=40)]
    run, module = trainer(folder, callbacks, **options), Detector()
    run.validate(module, Pictures(121, seed=1).loader(), verbose=False)
    run.test(module, Pictures(121, views=("native", "jpeg_75")).loader(), verbose=False)
    return module, run


def run_rank(folder):
    """One of two processes."""
    from callbacks.detection import agreed_over_ranks

    module, run = evaluate(folder, devices=2, strategy="ddp")
    metrics = {name: value.item() for name, value in run.callback_metrics.items()}
    mine = (("native",), ("width",)) if run.global_rank else ((), ())
    agreed = agreed_over_ranks(mine, run)
    outcome = {"metrics": metrics, "scores": module.calibration.scores.tolist(), "agreed": agreed}
    Path(folder, f"rank_{run.global_rank}.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from two_ranks import in_two_processes

    import callbacks.detection
    import callbacks.detection_calibration  # noqa: F401

    in_two_processes(run_rank, sys.argv[1])
