"""How well are generated pictures told from real ones, by which generator, and what is it worth."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from callbacks.evaluation import EvaluationCallback, Stage
from callbacks.metrics.bootstrap import Floats, Statistic
from callbacks.metrics.detection_figures import DetectionFigures, is_binomial
from callbacks.metrics.detection_tables import TableRow, as_csv, as_markdown, reference_tables
from callbacks.metrics.packaging import packaging_statistics, packaging_warning
from callbacks.metrics.sample_table import SampleTable, Table
from callbacks.metrics.whole_files import write_whole
from lightning_modules.functional.detection import Bools, binomial_interval
from lightning_modules.functional.detection_calibration import Calibration

NATIVE = "native"
_FACT = "fact_"
TABLES = "detection_tables"


class DetectionEvaluation(EvaluationCallback):
    """Reports a detector's figures per generator, view and JPEG quality, what a calibration is worth, and packaging.

    Groups: none is all generated pictures against the real ones by the largest logit; ``sd1`` those of a generator by
    its own head, by the largest logit where it has none; ``@levelled`` a view other than the native one;
    ``quality_50-64`` pictures of that JPEG quality. ``any_auroc`` takes the largest logit for a generator. ``ece`` is
    at even odds.

    With a calibration in the module: rates at nominal 1, 5 and 10 %, of real pictures (``fpr_at_nominal_5/any``, of a
    head; ``any_fpr_at_nominal_5`` of a set of pictures) and of generated ones (``any_tpr_at_nominal_5/sd1``,
    ``tpr_at_nominal_5/sd1`` by its own head), with binomial intervals; ``any_p_auroc`` ranks by the p-value of "any".

    Further: ``verdict_flips``, how often another view changes the verdict; ``packaging_auroc``, what format, size and
    the like alone would reach. The reference's tables go into ``detection_tables.csv`` and ``.md``.

    Args:
        quality_bands: Ascending edges of the bands of JPEG quality.
        stages: Stages that end with a table on the terminal and files; values are logged in every stage.
        output_dir: Folder for the files; the run's log folder where not given.
        resamples: Number of bootstrap data sets behind the 95 % intervals.
        bootstrap_seed: Seed of the resampling and of the folds of the packaging audit.
    """

    required_outputs: ClassVar[tuple[str, ...]] = ("logit", "label", "generator")
    text_columns: ClassVar[tuple[str, ...]] = ("generator", "source", "format")

    def __init__(
        self,
        quality_bands: Sequence[float] = (50, 65, 75, 85, 95),
        stages: Sequence[Stage] = ("test",),
        output_dir: str | None = None,
        resamples: int = 1000,
        bootstrap_seed: int = 0,
    ) -> None:
        super().__init__(stages, output_dir, resamples, bootstrap_seed)
        if list(quality_bands) != sorted(set(quality_bands)):
            raise ValueError(f"`quality_bands` of DetectionEvaluation must ascend, got {list(quality_bands)}")
        self.quality_bands = tuple(quality_bands)
        self.tables: dict[str, list[TableRow]] = {}
        self._heads: tuple[str, ...] = ()
        self._calibration: Calibration | None = None
        self._views: tuple[str, ...] = ()
        self._facts: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Truth, JPEG quality and the facts of packaging that the batches hold."""
        return ("label", "quality", *(f"{_FACT}{name}" for name in self._facts))

    def rows(
        self,
        pl_module: LightningModule,
        outputs: Mapping[str, Any],
        batch: Any,
    ) -> dict[str, Tensor | Sequence[str]]:
        """Logits of all views and heads, and what the batch says about each picture."""
        if batch_views(batch) != self._views or fact_names(batch) != self._facts:
            raise ValueError(
                f"DetectionEvaluation saw batches of views {self._views} and {batch_views(batch)}, "
                f"facts {self._facts} and {fact_names(batch)}: all batches of a loader must hold the same"
            )
        length = len(outputs["index"])
        unknown = torch.full((length,), torch.nan)
        rows: dict[str, Tensor | Sequence[str]] = {
            "logit": outputs["logit"].detach().flatten(1),
            "label": outputs["label"],
            "generator": outputs["generator"],
            "quality": batch.get("quality", unknown),
            "source": batch.get("source", [""] * length),
            "format": batch.get("format", [""] * length),
        }
        return rows | {f"{_FACT}{name}": batch["facts"][name] for name in self._facts}

    def summarise(self, table: Table) -> dict[str, Statistic]:
        """Figures of the native view, of the other views, of calibration, flips and packaging."""
        labels = table["label"] > 0.5
        logits = self._logits(table)
        figures = DetectionFigures(
            logits, labels, table["generator"], table["source"], self._heads, self._views, self._calibration
        )
        statistics = figures.of_generators()
        statistics |= figures.of_quality_bands(table["quality"], self.quality_bands)
        statistics |= figures.of_calibration()
        statistics |= figures.of_verdict_flips()
        if self._facts:
            facts = {name: table[f"{_FACT}{name}"] for name in self._facts}
            statistics |= packaging_statistics(facts, table["format"], labels, self.bootstrap_seed)
        self.tables = self._reference_tables(logits, labels, table["generator"])
        return statistics

    def settings(self, pl_module: LightningModule) -> dict[str, float | str]:
        """What the rates at nominal levels and the verdicts rest on."""
        if self._calibration is None:
            return {"calibration": "none: verdicts at probability 0.5"}
        low, high = self._calibration.limits
        return {"calibration": f"{len(self._calibration)} real pictures", "verdict limits": f"{low:g}, {high:g}"}

    def _start(self, stage: Stage, trainer: Trainer, pl_module: LightningModule) -> None:
        self._heads = head_names(pl_module, self)
        # In validation a calibration is being made from these very pictures.
        self._calibration = getattr(pl_module, "calibration", None) if stage == "test" else None
        if self._calibration is not None and self._calibration.generators != self._heads:
            raise ValueError(
                f"the calibration is of heads {', '.join(self._calibration.generators)}, the detector has "
                f"{', '.join(self._heads)}: run validate again"
            )
        self._samples, self._views, self._facts = None, (), ()

    def _add(self, pl_module: LightningModule, outputs: Mapping[str, Any], batch: Any) -> None:
        if self._samples is None:
            self._views, self._facts = batch_views(batch), fact_names(batch)
            self._samples = self._new_table()
        super()._add(pl_module, outputs, batch)

    def _finish(self, stage: Stage, trainer: Trainer, pl_module: LightningModule) -> None:
        self._views, self._facts = agreed_over_ranks((self._views, self._facts), trainer)
        if self._samples is None:  # no batch here: the columns of the other processes
            self._samples = self._new_table()
        super()._finish(stage, trainer, pl_module)

    def _publish(self, stage: Stage, trainer: Trainer, pl_module: LightningModule, log_dir: str | None) -> None:
        self.results = [
            dataclasses.replace(result, low=low, high=high) if is_binomial(result.metric) else result
            for result in self.results
            for low, high in [binomial_interval(round(result.value * result.n) if result.n else 0, result.n)]
        ]
        super()._publish(stage, trainer, pl_module, log_dir)
        console = Console()
        warning = packaging_warning({f"{r.metric}/{r.group}".rstrip("/"): r.value for r in self.results})
        if warning:
            console.print(warning, soft_wrap=True, highlight=False)
        folder = self.output_dir or log_dir
        if folder is not None and self.tables:
            stem = TABLES if stage == "test" else f"{TABLES}_{stage}"
            paths = [
                write_whole(Path(folder) / f"{stem}.{suffix}", text)
                for suffix, text in (("csv", as_csv(self.tables)), ("md", as_markdown(self.tables)))
            ]
            console.print("tables: " + " ".join(map(str, paths)), soft_wrap=True, highlight=False)

    def _new_table(self) -> SampleTable:
        return SampleTable(self.columns, {"logit": len(self._views) * len(self._heads)}, self.text_columns)

    def _logits(self, table: Table) -> Floats:
        logits: Floats = table["logit"].reshape(len(table["index"]), len(self._views), len(self._heads))
        wrong = int(np.isnan(logits).any(axis=(1, 2)).sum())
        if wrong:
            raise ValueError(f"{wrong} of {len(logits)} pictures have logits that are not a number")
        return logits

    def _reference_tables(
        self, logits: Floats, labels: Bools, generators: NDArray[np.str_]
    ) -> dict[str, list[TableRow]]:
        if labels.all() or not labels.any():
            return {}
        any_p = None if self._calibration is None else self._calibration.any_p_value(logits)
        return {
            view: reference_tables(
                logits[:, v], generators, labels, self._heads, None if any_p is None else any_p[:, v]
            )
            for v, view in enumerate(self._views)
        }


def head_names(pl_module: LightningModule, owner: object) -> tuple[str, ...]:
    """Return the names of a detector's heads in the order of its logits."""
    names = pl_module.hparams.get("generators")
    if not names:
        raise ValueError(f"{type(owner).__name__} needs `generators` in the hparams of {type(pl_module).__name__}")
    return tuple(str(name) for name in names)


def batch_views(batch: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the views of a batch."""
    return tuple(str(view) for view in batch.get("views", (NATIVE,)))


def fact_names(batch: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the facts of packaging that a batch holds."""
    return tuple(sorted(batch.get("facts", ())))


def agreed_over_ranks(
    value: tuple[tuple[str, ...], tuple[str, ...]], trainer: Trainer
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the value of the first process that has one; a process without pictures has empty ones."""
    if trainer.world_size == 1:
        return value
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, value)
    return next((found for found in gathered if found[0]), value)
