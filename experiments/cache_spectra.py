"""The spectra of all splits in one file, for training heads without the denoiser."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch.utils.data import Dataset

    from datamodules.base import Sample, SampleKey, SkippedSample
    from datamodules.compressed_spectra import CompressedSpectraDataModule
    from datamodules.images.splits import Split
    from lightning_modules.base import ProvenanceModule

FROZEN: tuple[Split, ...] = ("val", "test")


def write_spectra(
    recipe: Path,
    output: Path,
    ckpt_path: Path | None = None,
    views: int = 1,
    train_pictures: int | None = None,
    device: str = "cpu",
) -> None:
    """Do what `sealmark prepare spectra` says; see `experiments.prepare_spectra`."""
    import torch

    if views < 1:
        raise ValueError(f"--views must be at least 1, got {views}")
    if output.exists():
        raise FileExistsError(f"--output {output} exists: name another folder")
    module, data = _build(recipe, ckpt_path)
    data.samples["train"] = train_pictures
    # Every picture once a view, in its order.
    data.balanced, data.train_samples = "none", None
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with torch.no_grad():
        count = _write(module.to(device).eval(), data, views, partial)
    about = {"recipe": str(recipe), "ckpt_path": str(ckpt_path or ""), "train_views": views, "rows": count}
    (partial / "cache.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    partial.replace(output)
    size = sum(path.stat().st_size for path in output.iterdir()) / 1e9
    print(f"{output}: {count} spectra, {size:.2f} GB")


def _build(recipe: Path, ckpt_path: Path | None) -> tuple[ProvenanceModule, CompressedSpectraDataModule]:
    """Return the module and the data of a recipe; what else it says is not read."""
    import yaml

    from datamodules.base import ProvenanceDataModule
    from datamodules.compressed_spectra import CompressedSpectraDataModule
    from experiments.export import load_module
    from experiments.one_line import OneLineParser
    from lightning_modules.base import ProvenanceModule

    if not recipe.is_file():
        raise FileNotFoundError(f"no such recipe: {str(recipe)!r}; name the YAML of a run")
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    wanted = ("data",) if ckpt_path is not None else ("data", "model")
    parser = OneLineParser(prog="sealmark prepare spectra")
    parser.add_subclass_arguments(ProvenanceDataModule, "data", required=True)
    if ckpt_path is None:
        parser.add_subclass_arguments(ProvenanceModule, "model", required=True)
    built = parser.instantiate(parser.parse_object({key: content[key] for key in wanted if key in content}))
    module = load_module(ckpt_path) if ckpt_path is not None else built.model
    if not hasattr(module, "cache_spectrum"):
        raise ValueError(f"{type(module).__name__} makes no spectra: name a recipe or checkpoint of MaskSim")
    if not isinstance(built.data, CompressedSpectraDataModule):
        raise ValueError(f"{recipe}: data must be a CompressedSpectraDataModule, got {type(built.data).__name__}")
    return module, built.data


def _write(module: ProvenanceModule, data: CompressedSpectraDataModule, views: int, folder: Path) -> int:
    """Write all spectra and their index, and return how many rows there are."""
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    passes = list(_passes(data, views))
    total = sum(len(each) * len(each.views) for each in passes)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    writer = _CacheWriter(folder, total)
    with Progress(*columns) as bar:
        task = bar.add_task("spectra", total=total)
        for each in passes:
            for keys, samples in _batches(each, data):
                kept = [(key, sample) for key, sample in zip(keys, samples, strict=True) if isinstance(sample, dict)]
                if kept:
                    images = torch.stack([sample["image"] for _, sample in kept])
                    flat = images if each.split == "train" else images.flatten(0, 1)
                    found = module.cache_spectrum(flat.to(module.device))  # type: ignore[operator]
                    writer.add(each, kept, found.to("cpu", torch.float16).numpy())
                for sample in samples:
                    if not isinstance(sample, dict):
                        print(f"left out: {sample.path}: {sample.reason}", file=sys.stderr)
                bar.advance(task, len(samples) * len(each.views))
    writer.close()
    return writer.row


@dataclass(frozen=True)
class _Pass:
    """One walk over a split: every picture once, with the views that its samples hold."""

    split: Split
    dataset: Dataset[Sample]
    epoch: int
    views: list[str]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]


def _passes(data: CompressedSpectraDataModule, views: int) -> Iterator[_Pass]:
    train = data.build_dataset("train")
    for view in range(views):
        # Another epoch draws another view.
        yield _Pass("train", train, view, [f"train_{view}"])
    for split in FROZEN:
        shown = ["native"] if data.processing == "reference" and split == "val" else data.views_of_split[split]
        yield _Pass(split, data.build_dataset(split), 0, shown)


def _batches(
    each: _Pass, data: CompressedSpectraDataModule
) -> Iterator[tuple[list[SampleKey], list[Sample | SkippedSample]]]:
    """Yield the samples of a pass in their order, with their keys."""
    from torch.utils.data import DataLoader

    from datamodules.base import ReadGuard, SampleKey

    keys = [SampleKey(each.epoch, index) for index in range(len(each))]
    size = data.eval_batch_size
    loader = DataLoader(
        ReadGuard(each.dataset, "skip"),
        batch_size=size,
        sampler=keys,
        collate_fn=list,
        num_workers=data.worker_count(),
    )
    for number, samples in enumerate(loader):
        yield keys[number * size : (number + 1) * size], samples


class _CacheWriter:
    """Spectra into a mapped array, lines into an index.

    Args:
        folder: Where both go.
        total: Most rows there can be; rows of unreadable pictures stay unused at the end.
    """

    def __init__(self, folder: Path, total: int) -> None:
        self.folder = folder
        self.total = total
        self.row = 0
        self.array: Any = None
        self.lines: list[dict[str, Any]] = []

    def add(self, each: _Pass, kept: Sequence[tuple[SampleKey, Sample]], found: NDArray[np.float16]) -> None:
        """Append the spectra of a batch, the views of a picture side by side."""
        if self.array is None:
            self.array = self._open(found.shape[1:])
        self.array[self.row : self.row + len(found)] = found
        for key, sample in kept:
            for view in each.views:
                self.lines.append(_line(self.row, each.split, view, key.index, sample))
                self.row += 1

    def close(self) -> None:
        """Write the index, and what is still in memory."""
        from datamodules.spectra_cache import COLUMNS, INDEX_FILE

        if self.array is None:
            raise ValueError("no picture of the recipe could be read: see the lines above")
        self.array.flush()
        extra = sorted({name for line in self.lines for name in line} - set(COLUMNS))
        with (self.folder / INDEX_FILE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, [*COLUMNS, *extra], restval="")
            writer.writeheader()
            writer.writerows(self.lines)

    def _open(self, shape: tuple[int, ...]) -> Any:
        from datamodules.spectra_cache import SPECTRA_FILE

        size = 2 * self.total * int(np.prod(shape))
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise ValueError(
                f"{self.total} spectra of {shape} take {size / 1e9:.1f} GB and {self.folder} has {free / 1e9:.1f} GB: "
                "lower --views or --train_pictures"
            )
        return np.lib.format.open_memmap(self.folder / SPECTRA_FILE, "w+", np.float16, (self.total, *shape))


def _line(row: int, split: str, view: str, number: int, sample: Sample) -> dict[str, Any]:
    line = {"row": row, "split": split, "view": view, "number": number, "label": int(sample["label"])}
    line |= {name: sample[name] for name in ("generator", "source", "path")}
    if "facts" in sample:
        line |= {"format": sample["format"], "quality": sample["quality"], **sample["facts"]}
    return line
