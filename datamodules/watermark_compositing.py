"""Photos with marks laid over them on the fly, for watermark segmentation."""

import random
import warnings
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import ProvenanceDataModule, Sample, SampleKey
from datamodules.images.photos import Photos, paths_of, photos_of_split, positions_of_split
from datamodules.images.randomness import sample_rng
from datamodules.images.splits import Split
from datamodules.transforms.letterbox import letterbox
from datamodules.transforms.mark_bank import MarkBank, load_logos
from datamodules.transforms.reference_augmentations import augment
from datamodules.transforms.watermark_engine import CompositingSettings, compose
from datamodules.transforms.watermark_reference import ReferenceCompositor

Pixels = NDArray[np.uint8]
STREAM_OF_SPLIT: dict[Split, int] = {"train": 0, "val": 1, "test": 2}


class CompositedMarks(Dataset[Sample]):
    """Engine "sealmark": square crops with visible-ink labels, drawn anew each epoch."""

    def __init__(
        self,
        photos: Photos,
        marks: MarkBank,
        settings: CompositingSettings,
        size: int,
        length: int,
        seed: int,
        split: Split,
        parts: bool = False,
    ) -> None:
        self.parts = parts
        self.photos = photos
        self.marks = marks
        self.settings = settings
        self.size = size
        self.length = length
        self.seed = seed
        self.stream = STREAM_OF_SPLIT[split]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey) -> Sample:
        rng = sample_rng(self.seed, key.epoch, key.index, self.stream)
        # Turns go on over epochs, so that an endless procedural source never shows a scene twice.
        photo, path = self.photos.read(key.epoch * self.length + key.index, target_size=self.size)
        drawn = compose(random_square(photo, self.size, rng), self.marks, self.settings, rng, self.parts)
        parts = {}
        if drawn.alpha is not None and drawn.color is not None:
            parts = {"alpha": torch.from_numpy(drawn.alpha)[None], "color": _channels_first(drawn.color)}
        return parts | {
            "image": _channels_first(drawn.image),
            "mask": torch.from_numpy(drawn.label)[None].to(torch.uint8) * 255,
            "ignore": torch.from_numpy(drawn.ignore)[None],
            "index": key.index,
            "path": path,
            "family": drawn.family,
            "opacity": drawn.opacity,
            "has_mark": bool(drawn.label.any()),
        }


class ReferenceMarks(Dataset[Sample]):
    """Engine "reference": the published procedure, at the photo's own size, letter-boxed afterwards."""

    def __init__(
        self,
        photos: Photos,
        compositor: ReferenceCompositor,
        size: int,
        length: int,
        seed: int,
        split: Split,
        augment: bool = True,
    ) -> None:
        self.photos = photos
        self.compositor = compositor
        self.size = size
        self.length = length
        self.seed = seed
        self.split: Split = split
        self.augment = augment and split == "train"

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey) -> Sample:
        rng = sample_rng(self.seed, key.epoch, key.index, STREAM_OF_SPLIT[self.split])
        photo, path = self.photos.read(key.index)
        image, mask = self.compositor(photo, random.Random(int(rng.integers(2**63))))
        boxed, label = letterbox(image.astype(np.float32) / np.float32(255), mask.astype(np.float32), self.size)
        if self.augment:
            boxed, label = augment(boxed, label, rng)
        plane = torch.from_numpy(np.ascontiguousarray(label > 0.5))[None]
        return {
            "image": torch.from_numpy(np.ascontiguousarray(boxed.transpose(2, 0, 1))),
            "mask": plane.to(torch.uint8) * 255,
            "ignore": torch.zeros_like(plane),
            "index": key.index,
            "path": path,
            "family": "logo" if bool(plane.any()) else "clean",
            "opacity": float("nan"),
            "has_mark": bool(plane.any()),
        }


def random_square(photo: Pixels, size: int, rng: np.random.Generator, smallest: float = 0.6) -> Pixels:
    """Cut a random square, mirror it half of the time, and scale it to `size`."""
    height, width = photo.shape[:2]
    side = max(1, round(min(height, width) * rng.uniform(smallest, 1)))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    square = photo[top : top + side, left : left + side]
    if rng.random() < 0.5:
        square = square[:, ::-1]
    method = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    scaled: Pixels = cv2.resize(np.ascontiguousarray(square), (size, size), interpolation=method)
    return scaled


def _channels_first(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class WatermarkCompositingDataModule(ProvenanceDataModule):
    """Trains, validates and tests on marks composited over photos; validation and test sets are frozen by the seed.

    Photos and logos of the three splits are disjoint: files by a hash of their name, drawn scenes by their seed, drawn
    marks by held-out fonts and primitives.

    Args:
        photos: Folder, manifest or `procedural://COUNT?size=S` for drawn scenes that need no files.
        logos: Folder or manifest of logos with alpha; None draws all marks.
        test_photos: Photos of the test split alone, which the other splits leave out; None takes the hashed test part
            of `photos`.
        test_logos: Logos of the test split alone, which the other splits leave out; None takes the hashed test part
            of `logos`.
        engine: "sealmark" is ours; "reference" repeats the published procedure and needs `logos`.
        size: Side of the square samples.
        settings: What engine "sealmark" draws.
        drawn_fraction: Share of training's logo marks that are drawn where `logos` gives files. The frozen sets then
            take files alone.
        train_samples: Samples an epoch; None means one a photo.
        val_samples: Size of the frozen validation set.
        test_samples: Size of the frozen test set.
        holdout: Share of the files kept from training, half for validation, half for test.
        parts: Whether samples carry the marks' alpha and colour, for a model with those heads.
        dilate: Engine "reference" only: side of the square that dilates its masks (1 is a no-op).
        augment: Engine "reference" only: whether training is augmented, as its notebook meant to. Its released code
            does not: both halves of its split share one data set object, and with it the validation transform.
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
        photos: str | list[str] = "procedural://1000000?size=256",
        logos: str | list[str] | None = None,
        test_photos: str | list[str] | None = None,
        test_logos: str | list[str] | None = None,
        engine: Literal["sealmark", "reference"] = "sealmark",
        size: int = 256,
        settings: CompositingSettings | None = None,
        drawn_fraction: float = 0.5,
        train_samples: int | None = None,
        val_samples: int = 256,
        test_samples: int = 512,
        holdout: float = 0.2,
        parts: bool = False,
        dilate: int = 0,
        augment: bool = True,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        eval_seed: int = 0,
        on_unreadable: Literal["stop", "skip"] = "stop",
        paths: str | list[str] | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, on_unreadable, paths)
        if engine == "reference" and logos is None:
            raise ValueError("data.engine 'reference' composites logo files: name their folder with --data.logos")
        self.photos = photos
        self.logos = logos
        self.test_photos = test_photos
        self.test_logos = test_logos
        self.engine = engine
        self.size = size
        self.settings = settings or CompositingSettings()
        self.drawn_fraction = drawn_fraction
        self.samples: dict[Split, int | None] = {"train": train_samples, "val": val_samples, "test": test_samples}
        self.holdout = holdout
        self.eval_seed = eval_seed
        self.parts = parts
        self.dilate = dilate
        self.augment = augment

    def build_dataset(self, split: Split) -> Dataset[Sample]:
        """Build a split; its photos and logos are in no other."""
        photos = self._photos(split)
        seed = self.seed if split == "train" else self.eval_seed
        length = self.samples[split] or len(photos)
        if self.engine == "reference":
            compositor = ReferenceCompositor.from_files(self._logo_paths(split), self.dilate)
            return ReferenceMarks(photos, compositor, self.size, length, seed, split, self.augment)
        bank = MarkBank(
            self._load_logos(split),
            self.drawn_fraction if split == "train" else 0.0,
            "train" if split == "train" else "held_out",
        )
        return CompositedMarks(photos, bank, self.settings, self.size, length, seed, split, self.parts)

    def _photos(self, split: Split) -> Photos:
        return photos_of_split(self.photos, self.test_photos, split, self.holdout)

    def _logo_paths(self, split: Split) -> Sequence[str]:
        if self.logos is None:
            return []
        if split == "test" and self.test_logos is not None:
            return paths_of(self.test_logos)
        paths = paths_of(self.logos)
        return [paths[i] for i in positions_of_split(paths, split, "logos", self.logos, self.test_logos, self.holdout)]

    def _load_logos(self, split: Split) -> list[list[Pixels]]:
        logos, errors = load_logos(self._logo_paths(split), self.on_unreadable)
        for error in errors:
            warnings.warn(f"logo left out: {error}", stacklevel=2)
        if errors and not logos:
            raise errors[0]
        return logos
