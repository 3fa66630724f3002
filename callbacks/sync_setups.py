"""How well are corners found under each set-up of a ladder: the published tables, and figures with intervals."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.evaluation import EvaluationCallback, Stage
from callbacks.metrics.bootstrap import Statistic, mean_of, ratio_of_sums
from callbacks.metrics.sample_table import Table
from callbacks.prediction_files import write_whole

SYNC_FILE, QUALITY_FILE = "sync_metrics.csv", "image_quality_metrics.csv"
SYNC_HEADER = (
    "index,geom_aug,geom_strength,val_aug,val_strength,avg_pixel_diff,detect_time,unwrap_time"  # spelt as published
)
QUALITY_HEADER = "index,psnr,ssim,lpips,embed_time"
NOT_MEASURED = "not measured"
WITHIN_PX = (1, 3, 5, 10)
_PER_SETUP = ("corner_error_px", "identity_error_px", "detect_seconds", "unwarp_seconds")
_PER_PICTURE = ("psnr", "ssim", "lpips", "embed_seconds")


class SetUpEvaluation(EvaluationCallback):
    """Writes `sync_metrics.csv` and `image_quality_metrics.csv` in the published format, and figures for each attack.

    Needs what a test step by set-ups returns: `setups`, (B, K) `corner_error_px`, `identity_error_px`,
    `detect_seconds`, `unwarp_seconds`, and (B,) `psnr`, `ssim`, `lpips`, `embed_seconds`; the module says beforehand,
    by `setup_labels`, which set-ups: "move|strength|change of values|strength". A time is a picture's share of its
    batch.

    `corner_error_px/rotate_5` is over all changes of values after that move, `corner_error_px/JPEG_20` over all moves
    before that change. Groups of one set-up are in the file.

    Args:
        stages: Stages that end with a table on the terminal and files.
        output_dir: Folder for the files; the run's log folder where not given.
        resamples: Number of bootstrap data sets behind the 95 % intervals; pictures are drawn with all their set-ups.
        bootstrap_seed: Seed of the resampling.
    """

    required_outputs: ClassVar[tuple[str, ...]] = ("setups", *_PER_SETUP, *_PER_PICTURE)
    _labels: tuple[str, ...] = ()
    _table: Table | None = None

    def __init__(
        self,
        stages: Sequence[Stage] = ("test",),
        output_dir: str | None = None,
        resamples: int = 1000,
        bootstrap_seed: int = 0,
    ) -> None:
        super().__init__(stages, output_dir, resamples, bootstrap_seed)

    @property
    def columns(self) -> tuple[str, ...]:
        """Numbers of each set-up, by its number, then those of the picture."""
        return (*(f"{name}/{k}" for name in _PER_SETUP for k in range(len(self._labels))), *_PER_PICTURE)

    def rows(
        self, pl_module: LightningModule, outputs: Mapping[str, Any], batch: Any
    ) -> dict[str, Tensor | Sequence[str]]:
        """The columns of each picture."""
        if tuple(outputs["setups"]) != self._labels:
            raise ValueError(f"{type(pl_module).__name__} evaluated other set-ups than its `setup_labels`")
        rows: dict[str, Tensor | Sequence[str]] = {name: outputs[name] for name in _PER_PICTURE}
        for name in _PER_SETUP:
            rows |= {f"{name}/{k}": outputs[name][:, k] for k in range(len(self._labels))}
        return rows

    def settings(self, pl_module: LightningModule) -> dict[str, float | str]:
        """Says where a figure is missing, and why."""
        if self._table is None or not np.isnan(self._table["lpips"]).all():
            return {}
        return {"lpips": f"{NOT_MEASURED}: torch's cache has no AlexNet (hub/checkpoints/alexnet-owt-7be5be79.pth)"}

    def summarise(self, table: Table) -> dict[str, Statistic]:
        """Over all set-ups, then for each move and each change of values."""
        self._table = table
        error, identity = _wide(table, "corner_error_px"), _wide(table, "identity_error_px")
        statistics: dict[str, Statistic] = {
            "corner_error_px": mean_of(error.mean(axis=1)),
            "identity_error_px": mean_of(identity.mean(axis=1)),
            "error_to_identity": ratio_of_sums(error.sum(axis=1), identity.sum(axis=1)),
        }
        statistics |= {f"within_{limit}_px": mean_of((error <= limit).mean(axis=1)) for limit in WITHIN_PX}
        # A picture that was not marked has an endless ratio, which no mean can take.
        quality = np.where(np.isfinite(table["psnr"]), table["psnr"], np.nan)
        measured = {"psnr_db": quality, "ssim": table["ssim"], "lpips": table["lpips"]}
        statistics |= {name: mean_of(values) for name, values in measured.items() if not np.isnan(values).all()}
        for part in (0, 2):
            names = [label.split("|")[part] for label in self._labels]
            for name in dict.fromkeys(names):
                own = np.array([other == name for other in names])
                statistics[f"corner_error_px/{name}"] = mean_of(error[:, own].mean(axis=1))
                if part == 0:
                    statistics[f"identity_error_px/{name}"] = mean_of(identity[:, own].mean(axis=1))
        return statistics

    def _start(self, stage: Stage, trainer: Trainer, pl_module: LightningModule) -> None:
        self._labels = tuple(getattr(pl_module, "setup_labels", None) or ())
        if not self._labels:
            raise ValueError(
                f"SetUpEvaluation needs `setup_labels` of {type(pl_module).__name__}: set --model.setups to published "
                "or wibe"
            )
        super()._start(stage, trainer, pl_module)

    def _publish(self, stage: Stage, trainer: Trainer, pl_module: LightningModule, log_dir: str | None) -> None:
        folder = self.output_dir or log_dir
        if folder is not None and self._table is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            write_whole(Path(folder) / SYNC_FILE, sync_csv(self._table, self._labels).encode())
            write_whole(Path(folder) / QUALITY_FILE, quality_csv(self._table).encode())
        super()._publish(stage, trainer, pl_module, log_dir)


def sync_csv(table: Table, labels: Sequence[str]) -> str:
    """Return the published table of corner errors: a row for each picture and set-up."""
    lines = [SYNC_HEADER]
    parts = [",".join(label.split("|")) for label in labels]
    values = zip(*(_wide(table, name) for name in ("corner_error_px", "detect_seconds", "unwarp_seconds")), strict=True)
    for index, picture in zip(table["index"], values, strict=True):
        for label, error, detect, unwarp in zip(parts, *picture, strict=True):
            lines.append(f"{index},{label},{error:.4f},{detect:.6f},{unwarp:.6f}")
    return "\n".join(lines) + "\n"


def quality_csv(table: Table) -> str:
    """Return the published table of how much the mark changes each picture."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(QUALITY_HEADER.split(","))
    for row in zip(table["index"], *(table[name] for name in _PER_PICTURE), strict=True):
        index, psnr, ssim, lpips, seconds = row
        shown = NOT_MEASURED if np.isnan(lpips) else f"{lpips:.4f}"
        writer.writerow((index, f"{psnr:.4f}", f"{ssim:.4f}", shown, f"{seconds:.6f}"))
    return text.getvalue()


def _wide(table: Table, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return a number of all set-ups, (N, K)."""
    count = sum(column.startswith(f"{name}/") for column in table)
    return np.stack([table[f"{name}/{k}"] for k in range(count)], axis=1)
