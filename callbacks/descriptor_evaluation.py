"""Evaluations that compare all descriptors with each other: collected on disk, compared by one process."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import tempfile
import time
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray

from callbacks.descriptor_store import DescriptorWriter, Indices, StoredDescriptors
from callbacks.evaluation import Stage, StageEvaluation, log_everywhere
from callbacks.metrics.bootstrap import Statistic, bootstrap_draws, interval_of, value_of
from callbacks.metrics.copy_rankings import Ranking, SearchSettings, at_indices, rank_copies
from callbacks.results import Result
from lightning_modules.functional.challenge_files import (
    ChallengeDescriptors,
    require_h5py,
    write_descriptors,
    write_predictions,
)

ChallengeFile = Literal["predictions", "descriptors"]
REFERENCE, QUERY, BACKGROUND = 0, 1, 2
_POLL_SECONDS = 0.2


class Task(Protocol):
    """What a datamodule's `retrieval_task(stage)` returns: the truth, by index in the data set."""

    @property
    def names(self) -> Sequence[str]:
        """Ids of the images."""

    @property
    def role(self) -> NDArray[np.int8]:
        """0 reference, 1 query, 2 background."""

    @property
    def pairs(self) -> Indices:
        """Index of a query and of the reference it is a copy of, (T, 2)."""

    @property
    def groups(self) -> Mapping[str, Indices]:
        """Indices of queries by kind of edit."""


@dataclass(frozen=True)
class Row:
    """The figures of one codec and score normalisation."""

    ranking: Ranking
    statistics: Mapping[str, Statistic]
    """By "metric" or "metric/group"."""
    constants: Mapping[str, tuple[float, int]]
    """Figures without an interval, and how many queries they rest on."""


class DescriptorEvaluation(StageEvaluation):
    """Keeps descriptors on disk and lets the first process compare them; all processes log what it found.

    The folder of the files must be one that all processes see.

    Args:
        stages: Stages that end with a table on the terminal and files; values are logged in every stage.
        output_dir: Folder for the files; the run's log folder where not given.
        resamples: Number of bootstrap data sets behind the 95 % intervals; resampled are queries.
        bootstrap_seed: Seed of the resampling.
        metadata: Text for the column of this name in the CSV of the reference's columns.
        challenge_files: What to write in the challenge's formats: ``predictions`` (a CSV for each way of comparing)
            and ``descriptors`` (HDF5).
    """

    required_outputs: ClassVar[tuple[str, ...]] = ("descriptor",)
    csv_name: ClassVar[str]
    csv_columns: ClassVar[Mapping[str, str]]
    """Columns of the CSV and the metrics in them."""

    def __init__(
        self,
        stages: Sequence[Stage] = ("test",),
        output_dir: str | None = None,
        resamples: int = 1000,
        bootstrap_seed: int = 0,
        metadata: str | None = None,
        challenge_files: Sequence[ChallengeFile] = (),
    ) -> None:
        super().__init__(stages, output_dir, resamples, bootstrap_seed)
        if "descriptors" in challenge_files:
            require_h5py()  # before hours of work
        self.metadata = metadata
        self.challenge_files = tuple(challenge_files)
        self._task: Task | None = None
        self._writer: DescriptorWriter | None = None
        self._folder = Path()

    @abstractmethod
    def search_settings(self, stage: Stage) -> SearchSettings:
        """How descriptors are compared in a stage."""

    @abstractmethod
    def figures(self, ranking: Ranking, task: Task, queries: Indices) -> Row:
        """Figures of a ranking, whose candidates are by index."""

    def _start(self, stage: Stage, trainer: Trainer, pl_module: LightningModule) -> None:
        self._writer = None
        log_dir = trainer.log_dir  # talks to all ranks: never behind a rank test
        if trainer.sanity_checking:
            return
        self._task = _task_of(trainer, stage, self)
        learns = self.search_settings(stage).learns()
        if learns is not None and not (self._task.role == BACKGROUND).any():
            raise ValueError(
                f"{learns} learns from background images, of which the data have none: "
                f"name some with data.background, or set codecs and score_norm of {type(self).__name__} to null"
            )
        made = ""
        if trainer.is_global_zero:
            parent = self.output_dir or log_dir
            if parent is not None:
                Path(parent).mkdir(parents=True, exist_ok=True)
            made = tempfile.mkdtemp(prefix=f"descriptors_{stage}_", dir=parent)
        self._folder = Path(trainer.strategy.broadcast(made))
        self._writer = DescriptorWriter(self._folder, trainer.global_rank)

    def _add(self, pl_module: LightningModule, outputs: Mapping[str, Any], batch: Any) -> None:
        if self._writer is not None:
            self._writer.append(outputs["index"].cpu().numpy(), outputs["descriptor"].detach().float().cpu().numpy())

    def _finish(self, stage: Stage, trainer: Trainer, pl_module: LightningModule) -> None:
        log_dir = trainer.log_dir  # talks to all ranks: never behind a rank test
        if self._writer is None or self._task is None:
            return
        self._writer.close()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._evaluate_alone(stage, trainer, pl_module, log_dir)
        values, samples = _await_values(self._folder)
        log_everywhere(pl_module, {f"{stage}/{name}": value for name, value in values.items()}, samples)
        trainer.strategy.barrier()  # everyone has read
        if trainer.is_global_zero:
            shutil.rmtree(self._folder, ignore_errors=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Takes the descriptors off the disk, but not the word by which other processes learn of the error."""
        if self._writer is not None and trainer.is_global_zero:
            self._writer.close()
            for path in self._folder.iterdir():
                if path.suffix != ".json":
                    path.unlink()
            with contextlib.suppress(OSError):
                self._folder.rmdir()

    def _evaluate_alone(self, stage: Stage, trainer: Trainer, pl_module: LightningModule, log_dir: str | None) -> None:
        """Compare and leave the values in the folder; an error is left there too, so that nobody waits for ever."""
        try:
            assert self._task is not None
            publishes = stage in self.stages
            parent = self.output_dir or log_dir
            rows, queries = self._rows(stage, self._task, Path(parent) if publishes and parent else None)
            self.results = _results_of(rows, len(queries), self.resamples if publishes else 0, self.bootstrap_seed)
            if publishes:
                if parent is not None:
                    self._write_csv(rows, len(queries), Path(parent) / self.csv_name)
                self._publish(stage, trainer, pl_module, log_dir)
            values = {f"{r.metric}/{r.group}".rstrip("/"): r.value for r in self.results}
            _leave(self._folder, {"values": values, "samples": len(queries)})
        except Exception as error:
            _leave(self._folder, {"error": str(error) or type(error).__name__})
            raise

    def _rows(self, stage: Stage, task: Task, output: Path | None) -> tuple[list[Row], Indices]:
        stored = StoredDescriptors(self._folder)
        by_role = [np.flatnonzero(task.role == role) for role in (QUERY, REFERENCE, BACKGROUND)]
        found = [stored.select(wanted, self._folder / f"{part}.f32") for part, wanted in enumerate(by_role)]
        absent = len(task.role) - sum(len(index) for index, _ in found)
        if absent:
            warnings.warn(
                f"{absent} of {len(task.role)} images have no descriptor (skipped, or limited by the trainer): "
                "their copies count as not found",
                stacklevel=2,
            )
        (query_index, queries), (reference_index, references), (_, background) = found
        rows = []
        for ranking in rank_copies(queries, references, background, self.search_settings(stage), self._folder):
            candidates = at_indices(ranking.candidates, query_index, reference_index)
            ranking = Ranking(ranking.codec, ranking.score_norm, ranking.metric, candidates)
            rows.append(self.figures(ranking, task, by_role[0]))
            if output is not None and "predictions" in self.challenge_files:
                write_predictions(output / f"predictions_{ranking.slug}.csv", candidates, task.names)
        if output is not None and "descriptors" in self.challenge_files:
            ids = ([task.names[i] for i in index.tolist()] for index in (query_index, reference_index))
            write_descriptors(output / "descriptors.h5", ChallengeDescriptors(queries, references, *ids))
        return rows, by_role[0]

    def _write_csv(self, rows: Sequence[Row], samples: int, path: Path) -> None:
        """The reference's file, column for column."""
        tail = [] if self.metadata is None else [self.metadata]
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*self.csv_columns, *(["metadata"] if tail else [])])
        for row in rows:
            known = {"codec": row.ranking.codec, "score_norm": row.ranking.score_norm}
            values = [
                known[metric] if metric in known else value_of(row.statistics[metric], samples)
                for metric in self.csv_columns.values()
                if metric in known or metric in row.statistics
            ]
            writer.writerow([*values, *tail])
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        partial.write_text(stream.getvalue(), encoding="utf-8")
        partial.replace(path)


def _task_of(trainer: Trainer, stage: Stage, owner: object) -> Task:
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    if not hasattr(datamodule, "retrieval_task"):
        raise ValueError(
            f"{type(owner).__name__} needs data with known copies, {type(datamodule).__name__} has no retrieval_task: "
            "use it with data such as datamodules.copy_evaluation.DiscEvaluationDataModule"
        )
    task: Task = datamodule.retrieval_task(stage)
    return task


def _results_of(rows: Sequence[Row], samples: int, resamples: int, seed: int) -> list[Result]:
    results = []
    for row in rows:
        draws = bootstrap_draws(row.statistics, samples, resamples, seed)
        for name, statistic in row.statistics.items():
            value = value_of(statistic, samples) if samples else float("nan")
            interval = interval_of(draws[name])
            results.append(Result(*_named(name, row.ranking), value, *interval, statistic.n, draws[name]))
        nothing = float("nan")
        results += [
            Result(*_named(name, row.ranking), value, nothing, nothing, n) for name, (value, n) in row.constants.items()
        ]
    return results


def _named(name: str, ranking: Ranking) -> tuple[str, str]:
    """Metric and group; the group tells kind of edit, codec and normalisation."""
    metric, _, group = name.partition("/")
    return metric, f"{group} {ranking.label}".strip()


def _leave(folder: Path, outcome: Mapping[str, Any]) -> None:
    partial = folder / "outcome.part"
    partial.write_text(json.dumps(outcome), encoding="utf-8")
    partial.replace(folder / "outcome.json")


def _await_values(folder: Path) -> tuple[dict[str, float], int]:
    """What the first process found: polled, as a collective would time out long before a search of millions ends."""
    parent = os.getppid()
    while not (folder / "outcome.json").is_file():
        if os.getppid() != parent:
            raise RuntimeError("the first process ended before its evaluation did")
        time.sleep(_POLL_SECONDS)
    outcome = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    if "error" in outcome:
        raise ValueError(outcome["error"])
    return outcome["values"], outcome["samples"]
