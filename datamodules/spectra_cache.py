"""Spectra made once by `sealmark prepare spectra`, so that heads are trained without the denoiser."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.array_files import map_array
from datamodules.base import Sample, SampleKey
from datamodules.compressed_spectra import SpectraDataModule
from datamodules.images.randomness import sample_rng
from datamodules.images.splits import Split
from datamodules.spectra_samples import Balance, PickOrder
from datamodules.spectra_sets import REAL
from lightning_modules.functional.plain_json import parse_json, quoted

SPECTRA_FILE, INDEX_FILE, ABOUT_FILE = "spectra.npy", "index.csv", "cache.json"
COLUMNS = ("row", "split", "view", "number", "label", "generator", "source", "path", "format", "quality")
VIEW_STREAM = 305


@dataclass(frozen=True, eq=False)
class CachedSet:
    """Pictures of one generator and set, with the rows of their views.

    Args:
        generator: `real`, or who drew them.
        rows: Of the array of spectra, (pictures, views).
        records: What is known of each picture.
    """

    generator: str
    rows: NDArray[np.int64]
    records: list[Sample]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def is_real(self) -> bool:
        """Whether these are photographs, or their stand-ins."""
        return self.generator == REAL


class SpectraArray:
    """Spectra (rows, C, h, w) of a file, mapped when first read: a worker is sent its name, not its content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array: NDArray[np.float16] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_array": None}

    def read(self, rows: int | NDArray[np.int64]) -> Tensor:
        """Return one spectrum or several as float16, copied."""
        if self._array is None:
            self._array = _opened(self.path)
        return torch.from_numpy(np.array(self._array[rows]))


class TrainingSpectra(Dataset[Sample]):
    """One of the cached views of a picture, another each epoch."""

    def __init__(self, spectra: SpectraArray, sets: Sequence[CachedSet], order: PickOrder, seed: int) -> None:
        self.spectra = spectra
        self.rows = np.concatenate([part.rows for part in sets])
        self.records = [record for part in sets for record in part.records]
        self.order = order
        self.seed = seed

    def __len__(self) -> int:
        return self.order.length

    def __getitem__(self, key: SampleKey) -> Sample:
        number = self.order(key)
        views = self.rows[number]
        view = sample_rng(self.seed, key.epoch, key.index, VIEW_STREAM).integers(len(views))
        return {"spectrum": self.spectra.read(int(views[view])), **self.records[number]}


class EvaluationSpectra(Dataset[Sample]):
    """All cached views of a picture, with the facts of its file."""

    def __init__(self, spectra: SpectraArray, sets: Sequence[CachedSet], views: list[str]) -> None:
        self.spectra = spectra
        self.rows = np.concatenate([part.rows for part in sets])
        self.records = [record for part in sets for record in part.records]
        self.views = views

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> Sample:
        return {"spectrum": self.spectra.read(self.rows[key.index]), "views": self.views, **self.records[key.index]}


class SpectraCacheDataModule(SpectraDataModule):
    """Serves cached spectra in place of images; the cache says which split each picture is in.

    Args:
        cache: Folder that `sealmark prepare spectra` wrote.
        balanced: `class` makes every batch half real; `none` takes pictures as they are; `reference` draws with
            replacement, both classes equally often.
        train_samples: Samples an epoch; None means one a picture.
        batch_size: Samples a step and rank in training.
        eval_batch_size: Samples a step and rank elsewhere; None means `batch_size`.
        num_workers: Processes that make samples, per rank; None takes the cores this rank can have, less one.
        seed: Decides order and draws of training, with epoch and index; None takes the run's `seed_everything`.
        on_unreadable: Of pictures to predict on; the cache holds no unreadable ones.
        paths: Files, folders and manifests to predict on.
    """

    def __init__(
        self,
        cache: str,
        balanced: Balance = "class",
        train_samples: int | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        on_unreadable: Literal["stop", "skip"] = "stop",
        paths: str | list[str] | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, on_unreadable, paths)
        self.cache = Path(cache)
        self.balanced: Balance = balanced
        self.train_samples = train_samples

    def build_dataset(self, split: Split) -> Dataset[Sample]:
        """Build a split of the cache."""
        rows = read_index(self.cache)
        if split not in rows:
            raise ValueError(f"data.cache {str(self.cache)!r} holds no {split} split, only {', '.join(rows)}")
        views, sets = cached_sets(rows[split], with_facts=split != "train")
        spectra = SpectraArray(self.cache / SPECTRA_FILE)
        if split != "train":
            return EvaluationSpectra(spectra, sets, views)
        length = self.train_samples or sum(map(len, sets))
        return TrainingSpectra(spectra, sets, PickOrder(sets, self.balanced, length, self.seed), self.seed)


def read_index(cache: Path) -> dict[str, list[dict[str, str]]]:
    """Return the lines of a cache's index by split.

    Raises:
        FileNotFoundError: The folder is no cache, or an unfinished one.
    """
    if not all((cache / name).is_file() for name in (SPECTRA_FILE, INDEX_FILE, ABOUT_FILE)):
        raise FileNotFoundError(
            f"data.cache {str(cache)!r} is no cache of spectra: make one by `sealmark prepare spectra`"
        )
    splits: dict[str, list[dict[str, str]]] = {}
    spectra = len(_opened(cache / SPECTRA_FILE))
    with (cache / INDEX_FILE).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        try:
            for number, line in enumerate(csv.DictReader(file), 2):
                _check_line(line, spectra, f"{cache / INDEX_FILE}, line {number}")
                splits.setdefault(line["split"], []).append(line)
        except csv.Error as error:
            raise ValueError(f"{cache / INDEX_FILE} is not whole ({error}): prepare the spectra again") from None
    return splits


def read_about(cache: Path) -> dict[str, Any]:
    """Return how a cache was made."""
    about = parse_json((cache / ABOUT_FILE).read_bytes(), str(cache / ABOUT_FILE))
    if not isinstance(about, dict):
        raise ValueError(f"{cache / ABOUT_FILE} does not say how the spectra were made: prepare them again")
    return about


def _check_line(line: Mapping[str | None, Any], spectra: int, place: str) -> None:
    """Refuse a line that lacks a column, or whose row is none of the spectra."""
    texts = [line.get(name) for name in COLUMNS]
    if None in line or not all(isinstance(value, str) for value in line.values()) or None in texts:
        raise ValueError(f"{place} has other columns than {', '.join(COLUMNS)}: prepare the spectra again")
    try:
        fits = 0 <= int(line["row"]) < spectra and float(line["label"]) in (0, 1)
        _ = [_number(value) for name, value in line.items() if name not in COLUMNS or name == "quality"]
    except (ValueError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(f"{place}: row, label or a number in it cannot be: prepare the spectra again")


def _opened(path: Path) -> NDArray[np.float16]:
    """Map an array of spectra."""
    try:
        array = map_array(path)
    except OSError:
        raise
    except Exception as error:  # numpy hands headers to tokenize and ast, whose errors are of many kinds
        raise ValueError(f"{path} is no whole array ({quoted(str(error))}): prepare the spectra again") from None
    if not isinstance(array, np.ndarray) or array.dtype != np.float16 or array.ndim != 4:
        raise ValueError(f"{path} holds no spectra (float16 of four dimensions): prepare them again")
    return array


def cached_sets(lines: Sequence[Mapping[str, str]], with_facts: bool) -> tuple[list[str], list[CachedSet]]:
    """Return the names of the views, and the pictures by generator in the order of the index.

    A picture that lacks a view, because its file could not be read again, is left out.
    """
    views = list(dict.fromkeys(line["view"] for line in lines))
    pictures: dict[str, dict[str, Mapping[str, str]]] = {}
    for line in lines:
        pictures.setdefault(line["number"], {})[line["view"]] = line
    groups: dict[str, list[dict[str, Mapping[str, str]]]] = {}
    for found in pictures.values():
        if len(found) == len(views):
            groups.setdefault(found[views[0]]["generator"], []).append(found)
    # Positions of the data set, as evaluation callbacks need them: without gaps.
    start, sets = 0, []
    for generator, members in groups.items():
        rows = np.array([[int(found[view]["row"]) for view in views] for found in members], np.int64)
        records = [_record(found[views[0]], start + place, with_facts) for place, found in enumerate(members)]
        sets.append(CachedSet(generator, rows, records))
        start += len(members)
    return views, sets


def _record(line: Mapping[str, str], index: int, with_facts: bool) -> Sample:
    record: Sample = {"label": float(line["label"]), "index": index}
    record |= {name: line[name] for name in ("generator", "source", "path")}
    if with_facts:
        facts = {name: _number(value) for name, value in line.items() if name not in COLUMNS}
        record |= {"facts": facts, "format": line["format"], "quality": _number(line["quality"])}
    return record


def _number(text: str) -> float:
    return float(text) if text else math.nan
