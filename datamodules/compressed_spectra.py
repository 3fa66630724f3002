"""Real and generated pictures under one policy of cropping and compression, for detectors that look at spectra."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from datamodules.base import ProvenanceDataModule, Sample, SampleKey, SkippedSample, SplitSampler, collate_samples
from datamodules.images.sources import FileSource
from datamodules.images.splits import Split
from datamodules.spectra_samples import (
    Balance,
    EvaluationViews,
    PickOrder,
    Pictures,
    ReferenceCrops,
    TrainingCrops,
    check_views,
)
from datamodules.spectra_sets import REAL, PictureSet, at_most, manifest_sets, named_sets, open_pictures, scheme_sets
from datamodules.transforms.spectrum_crops import CropSettings
from datamodules.transforms.spectrum_reference import Compression, Mode, ReferenceSettings

Paths = str | list[str]
SPLITS_FILE = "splits.csv"
MODE_OF_SPLIT: dict[Split, Mode] = {"train": "train", "val": "valid", "test": "test"}


class PairSampler(SplitSampler):
    """Deals neighbours, a real and a generated picture, to one rank, so that every even batch is balanced."""

    def __iter__(self) -> Iterator[SampleKey]:
        start, self.skip = self.skip, 0
        for turn in range(start, len(self)):
            pair, member = divmod(turn, 2)
            place = (pair * self.num_replicas + self.rank) * 2 + member
            yield SampleKey(self.epoch, int(self.positions[place % len(self.positions)]))


class SpectraDataModule(ProvenanceDataModule):
    """Base of the datamodules of real and generated pictures: balanced batches, and evaluation batches of views."""

    balanced: Balance

    def collate_evaluation(self, samples: Sequence[Sample | SkippedSample]) -> dict[str, Any]:
        """Merge samples; facts become a tensor each, and the names of the views are told once."""
        batch = collate_samples(samples)
        return batch | {"facts": merge_facts(batch["facts"]), "views": batch["views"][0]}

    def _sampler(self, positions: Sequence[int], *, shuffle: bool, pad: bool) -> SplitSampler:
        sampler = super()._sampler(positions, shuffle=shuffle, pad=pad)
        return in_pairs(sampler) if shuffle and self.balanced == "class" else sampler


class CompressedSpectraDataModule(SpectraDataModule):
    """Trains on crops of real and generated pictures; validates and tests on frozen views with facts of the files.

    Pictures are named by `root`, by `real` with `generators`, or by `manifest`. No picture is in two splits; a run
    keeps what it took in `splits.csv`, which is a manifest itself.

    Args:
        root: Folder of the published scheme, with `data` and `processed_data` in it.
        real: Real pictures: folder, manifest, list of these, or `procedural://COUNT?size=S` for drawn scenes.
        generators: Pictures by generator: the same, or `toy://NAME?count=N&size=S`.
        test_real: Real pictures of the test split alone; None takes the hashed test part of `real`.
        test_generators: Pictures of the test split alone, by generator; others may be among them.
        manifest: CSV or JSON Lines: path, generator or label, and perhaps source and split.
        calibration: Real pictures, never trained on, that `validate` takes in place of the validation split.
        test_folder: Name of the prepared test sets below `root/processed_data`.
        processing: `sealmark` does the same to both classes; `reference` is the published procedure, draw by draw.
        window: Side of the square crops.
        crops: How `sealmark` resizes and compresses in training.
        compression: What `reference` compresses with in training and validation; None leaves the crops.
        quality: JPEG quality of `reference`; None draws 65 to 100.
        balanced: `class` makes every batch half real; `none` takes pictures as they are; `reference` draws with
            replacement, both classes equally often. None goes with `processing`.
        val_views: Views of validation and calibration: `native`, `levelled`, `jpeg_Q`, `webp_Q`, `resize_F`.
        test_views: Views of the test split.
        level_quality: Least and greatest JPEG quality of the view `levelled`, drawn whoever made the picture.
        train_samples: Samples an epoch; None means one a picture.
        val_samples: Pictures of each set that are validated on; None means all.
        test_samples: Pictures of each set that are tested on; None means all.
        holdout: Share of files that is not trained on, half of it for validation, half for test.
        batch_size: Samples a step and rank in training.
        eval_batch_size: Samples a step and rank elsewhere; None means `batch_size`.
        num_workers: Processes that make samples, per rank; None takes the cores this rank can have, less one.
        seed: Decides order and draws of training, with epoch and index; None takes the run's `seed_everything`.
        eval_seed: Decides the draws of the frozen sets, so that runs of many seeds are scored on one set.
        on_unreadable: "stop" ends the run with one line; "skip" leaves the file out and lists it in skipped.jsonl.
        paths: Files, folders and manifests to predict on.
    """

    def __init__(
        self,
        root: str | None = None,
        real: Paths | None = None,
        generators: dict[str, Paths] | None = None,
        test_real: Paths | None = None,
        test_generators: dict[str, Paths] | None = None,
        manifest: str | None = None,
        calibration: Paths | None = None,
        test_folder: str = "JPEG_Qrandom",
        processing: Literal["sealmark", "reference"] = "sealmark",
        window: int = 512,
        crops: CropSettings | None = None,
        compression: Compression | None = "jpeg",
        quality: int | None = None,
        balanced: Balance | None = None,
        val_views: Sequence[str] = ("native",),
        test_views: Sequence[str] = ("native", "levelled"),
        level_quality: tuple[int, int] = (65, 100),
        train_samples: int | None = None,
        val_samples: int | None = None,
        test_samples: int | None = None,
        holdout: float = 0.2,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        eval_seed: int = 0,
        on_unreadable: Literal["stop", "skip"] = "stop",
        paths: Paths | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, on_unreadable, paths)
        if window < 8:
            raise ValueError(f"data.window must be at least 8, got {window}")
        if not 1 <= level_quality[0] <= level_quality[1] <= 100:
            raise ValueError(f"data.level_quality must be a rising pair in 1 to 100, got {level_quality}")
        check_views(val_views)
        check_views(test_views)
        self.root, self.manifest, self.calibration, self.test_folder = root, manifest, calibration, test_folder
        self.real, self.generators = real, generators or {}
        self.tests: dict[str, Paths | None] = {REAL: test_real, **(test_generators or {})}
        self.processing = processing
        self.window = window
        self.crops = crops or CropSettings()
        self.compression, self.quality = compression, quality
        default: Balance = "class" if processing == "sealmark" else "reference"
        self.balanced: Balance = balanced or ("none" if real is not None and not generators else default)
        self.views_of_split: dict[Split, list[str]] = {"val": list(val_views), "test": list(test_views)}
        self.level_quality = level_quality
        self.train_samples = train_samples
        self.samples: dict[Split, int | None] = {"val": val_samples, "test": test_samples}
        self.holdout = holdout
        self.eval_seed = eval_seed

    def picture_sets(self, split: Split) -> list[PictureSet]:
        """Return the pictures of a split: real ones first, then the generators in their order."""
        named = [self.root is not None, self.real is not None or bool(self.generators), self.manifest is not None]
        if sum(named) != 1:
            raise ValueError(
                "name the pictures in one way: data.root, data.real with data.generators, or data.manifest"
            )
        if self.root is not None:
            sets = scheme_sets(self.root, split, self.test_folder)
        elif self.manifest is not None:
            sets = manifest_sets(self.manifest, split, self.holdout)
        else:
            if self.real is None:
                raise ValueError("data.generators needs data.real: name the real pictures, too")
            sets = named_sets(self.real, self.generators, self.tests, split, self.holdout)
        return [at_most(part, self.samples.get(split)) for part in sets]

    def build_dataset(self, split: Split) -> Dataset[Sample]:
        """Build a split; its pictures are in no other."""
        sets = self.picture_sets(split)
        pictures = Pictures(sets)
        settings = ReferenceSettings(self.window, MODE_OF_SPLIT[split], self.compression, self.quality)
        if split != "train":
            # Published test crops are the central ones, uncompressed: those of the view `native`.
            if self.processing == "reference" and split == "val":
                return ReferenceCrops(pictures, None, settings, self.eval_seed)
            return self._views(sets, split)
        order = PickOrder(sets, self.balanced, self.train_samples or len(pictures), self.seed)
        if self.processing == "reference":
            return ReferenceCrops(pictures, order, settings, self.seed)
        return TrainingCrops(pictures, order, self.window, self.crops, self.seed)

    def _views(self, sets: Sequence[PictureSet], split: Split) -> EvaluationViews:
        published = self.processing == "reference"
        return EvaluationViews(
            Pictures(sets), self.window, self.views_of_split[split], self.level_quality, self.eval_seed, published
        )

    def setup(self, stage: str) -> None:
        """Build what the stage needs, and keep which picture is in which split."""
        if stage == "validate" and self.calibration is not None:
            source = open_pictures(self.calibration)
            part = PictureSet(source, range(len(source)), REAL, "calibration")
            self.datasets["val"] = self._views([at_most(part, self.samples["val"])], "val")
        super().setup(stage)
        if stage == "fit" and self.trainer is not None:
            log_dir = self.trainer.log_dir  # talks to all ranks: never behind a rank test
            if log_dir is not None and self.trainer.is_global_zero:
                self.write_splits(Path(log_dir) / SPLITS_FILE)

    def write_splits(self, path: Path) -> None:
        """Write which file is in which split, as a manifest; drawn scenes are told by their numbers and left out."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".partial")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "generator", "source", "split"))
            for split in ("train", "val", "test"):
                # A run may train where the test sets do not lie.
                with suppress(FileNotFoundError, ValueError):
                    for part in self.picture_sets(split):
                        writer.writerows(_rows(part, split))
        temporary.replace(path)


def in_pairs(sampler: SplitSampler) -> PairSampler:
    """Return a sampler of the same samples that deals neighbours together."""
    return PairSampler(
        sampler.positions,
        seed=sampler.seed,
        rank=sampler.rank,
        world_size=sampler.num_replicas,
        shuffle=sampler.shuffle,
        pad=sampler.pad,
    )


def merge_facts(rows: Sequence[Mapping[str, float]]) -> dict[str, torch.Tensor]:
    """Return the facts of samples as a tensor (B,) by name."""
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float32) for name in rows[0]}


def _rows(part: PictureSet, split: Split) -> Iterator[tuple[str, str, str, str]]:
    if not isinstance(part.source, FileSource):
        return
    for position in part.positions:
        yield str(Path(part.source.path(int(position))).absolute()), part.generator, part.name, split
