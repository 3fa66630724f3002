"""The base of evaluation callbacks: from the outputs of steps to numbers, tables and files."""

import hashlib
import json
import os
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from torch import Tensor

from callbacks.metrics.bootstrap import Statistic, bootstrap_draws, interval_of, value_of
from callbacks.metrics.sample_table import SampleTable, Table
from callbacks.results import COLUMNS, Provenance, Result, as_terminal_table, rows_of, save_results

Stage = Literal["val", "test"]
_STEP: dict[Stage, str] = {"val": "validation_step", "test": "test_step"}


class StageEvaluation(Callback, ABC):
    """Evaluates what validation and test steps return, and publishes the results: table, files, W&B.

    A subclass collects outputs and finishes with the same values on every rank.

    Args:
        stages: Stages that end with a table on the terminal and files; values are logged in every stage.
        output_dir: Folder for the files; the run's log folder where not given.
        resamples: Number of bootstrap data sets behind the 95 % intervals.
        bootstrap_seed: Seed of the resampling.
    """

    required_outputs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        stages: Sequence[Stage] = ("test",),
        output_dir: str | None = None,
        resamples: int = 1000,
        bootstrap_seed: int = 0,
    ) -> None:
        unknown = set(stages) - set(_STEP)
        if unknown:
            raise ValueError(f"`stages` of {type(self).__name__} may hold 'val' and 'test', got {sorted(unknown)}")
        if resamples < 0:
            raise ValueError(f"`resamples` of {type(self).__name__} must be 0 or more, got {resamples}")
        self.stages = tuple(stages)
        self.output_dir = output_dir
        self.resamples = resamples
        self.bootstrap_seed = bootstrap_seed
        self.results: list[Result] = []

    def settings(self, pl_module: LightningModule) -> dict[str, float | str]:
        """What the numbers depend on beside the weights; goes into the files."""
        return {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the outputs of the epoch before."""
        self._start("val", trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the outputs of the epoch before."""
        self._start("test", trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds the outputs of a batch."""
        self._collect("val", pl_module, outputs, batch, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds the outputs of a batch."""
        self._collect("test", pl_module, outputs, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs `val/…`."""
        self._finish("val", trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs `test/…`, prints the table and writes the files."""
        self._finish("test", trainer, pl_module)

    def _collect(
        self,
        stage: Stage,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        loader: int,
    ) -> None:
        if loader > 0:
            raise ValueError(
                f"{type(self).__name__} evaluates one loader a run, but {stage} has several: evaluate them one by one"
            )
        if outputs is None and isinstance(batch, Mapping) and len(batch.get("index", "?")) == 0:
            return  # every sample of the batch was unreadable and skipped
        check_outputs(self, ("index", *self.required_outputs), outputs, pl_module, _STEP[stage])
        if len(outputs["index"]):
            self._add(pl_module, outputs, batch)

    @abstractmethod
    def _start(self, stage: Stage, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an epoch."""

    @abstractmethod
    def _add(self, pl_module: LightningModule, outputs: Mapping[str, Any], batch: Any) -> None:
        """Take the outputs of a batch of at least one sample."""

    @abstractmethod
    def _finish(self, stage: Stage, trainer: Trainer, pl_module: LightningModule) -> None:
        """End an epoch: compute, log, publish."""

    def _publish(self, stage: Stage, trainer: Trainer, pl_module: LightningModule, log_dir: str | None) -> None:
        loaded = getattr(pl_module, "loaded_progress", (0, 0))
        provenance = Provenance(
            stage=stage,
            seed=_run_seed(),
            config_sha256=config_hash(log_dir, pl_module),
            checkpoint=str(trainer.ckpt_path or ""),
            epoch=max(trainer.current_epoch, loaded[0]),
            step=max(trainer.global_step, loaded[1]),
            resamples=self.resamples,
            bootstrap_seed=self.bootstrap_seed,
            settings=self.settings(pl_module),
        )
        console = Console()
        console.print(as_terminal_table(self.results, provenance))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                rows = rows_of(self.results, provenance)
                logger.log_table(f"{stage}/results", columns=list(COLUMNS), data=rows)
        folder = self.output_dir or log_dir
        if folder is not None:  # fast_dev_run has no folder
            stem = "results" if stage == "test" else f"results_{stage}"
            paths = save_results(self.results, provenance, Path(folder), stem)
            console.print("results: " + " ".join(str(path) for path in paths), soft_wrap=True, highlight=False)


class EvaluationCallback(StageEvaluation):
    """Turns step outputs into one row a sample and the rows of all processes into logged metrics.

    A subclass names the outputs it needs and the columns it makes, and implements `rows` and `summarise`.
    Every rank computes the same table, so values are equal on 1 and N processes without reduction.
    """

    text_columns: ClassVar[tuple[str, ...]] = ()
    _samples: SampleTable | None = None

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Names of the numeric columns that `rows` returns."""

    @abstractmethod
    def rows(
        self,
        pl_module: LightningModule,
        outputs: Mapping[str, Any],
        batch: Any,
    ) -> dict[str, Tensor | Sequence[str]]:
        """One value a sample for each of `columns` and `text_columns`."""

    @abstractmethod
    def summarise(self, table: Table) -> dict[str, Statistic]:
        """Statistics by name, "metric" or "metric/group"; their order is the order of the results."""

    def _start(self, stage: Stage, trainer: Trainer, pl_module: LightningModule) -> None:
        self._samples = SampleTable(self.columns, text_columns=self.text_columns)

    def _add(self, pl_module: LightningModule, outputs: Mapping[str, Any], batch: Any) -> None:
        assert self._samples is not None
        self._samples.update(outputs["index"], self.rows(pl_module, outputs, batch))

    def _finish(self, stage: Stage, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._samples is not None
        table: Table = self._samples.compute()
        self._samples.reset()
        samples = len(table["index"])
        statistics = self.summarise(table) if samples else {}
        values = {name: value_of(statistic, samples) for name, statistic in statistics.items()}
        log_everywhere(pl_module, {f"{stage}/{name}": value for name, value in values.items()}, samples)
        log_dir = trainer.log_dir  # talks to all ranks: never behind a rank test
        if stage not in self.stages or trainer.sanity_checking or not trainer.is_global_zero:
            return
        draws = bootstrap_draws(statistics, samples, self.resamples, self.bootstrap_seed)
        self.results = [
            Result(*_split(name), values[name], *interval_of(draws[name]), statistic.n, draws[name])
            for name, statistic in statistics.items()
        ]
        self._publish(stage, trainer, pl_module, log_dir)


def check_outputs(
    owner: object,
    required: Sequence[str],
    outputs: Any,
    pl_module: LightningModule,
    step: str,
) -> None:
    """Raises ValueError naming the first missing key and the step that should have returned it."""
    given = sorted(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
    for key in required:
        if not isinstance(outputs, Mapping) or key not in outputs:
            raise ValueError(
                f"{type(owner).__name__} needs {key!r} from {type(pl_module).__name__}.{step}, "
                f"which returned only {given}"
            )


def log_everywhere(pl_module: LightningModule, values: Mapping[str, float], samples: int) -> None:
    """Logs values that are equal on all ranks; NaN (no sample of that kind) is left out."""
    values = {name: value for name, value in values.items() if value == value}
    if not values:
        return
    names = "|".join(re.escape(repr(name)) for name in values)
    # Lightning advises sync_dist=True for epoch values; these are synchronised already, by torchmetrics.
    warnings.filterwarnings("ignore", rf"It is recommended to use `self\.log\(({names})")
    pl_module.log_dict(dict(values), sync_dist=False, rank_zero_only=False, batch_size=max(1, samples))


def config_hash(log_dir: str | None, pl_module: LightningModule) -> str:
    """SHA-256 of the run's `config.yaml`; of the module's hyper-parameters where there is no such file."""
    if log_dir is not None and (config := Path(log_dir) / "config.yaml").is_file():
        return hashlib.sha256(config.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(dict(pl_module.hparams), sort_keys=True, default=str).encode()).hexdigest()


def _split(name: str) -> tuple[str, str]:
    metric, _, group = name.partition("/")
    return metric, group


def _run_seed() -> int | None:
    seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning's seed_everything leaves it
    return int(seed) if seed is not None else None
