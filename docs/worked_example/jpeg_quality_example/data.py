"""Scenes saved as JPEG at a drawn quality and decoded again, for JPEG quality estimation."""

from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.base import ProvenanceDataModule, Sample, SampleKey, Split
from datamodules.images.errors import UnreadableImageError
from datamodules.images.randomness import sample_rng
from datamodules.images.sources import ImageSource, open_images
from datamodules.images.splits import positions_of

Pixels = NDArray[np.uint8]
STREAM_OF_SPLIT: dict[Split, int] = {"train": 0, "val": 1, "test": 2}


class RecompressedScenes(Dataset[Sample]):
    """Square crops at drawn qualities; the training split is drawn anew each epoch."""

    def __init__(
        self, source: ImageSource, positions: NDArray[np.int64], size: int, length: int, seed: int, split: Split
    ) -> None:
        self.source = source
        self.positions = positions
        self.size = size
        self.length = length
        self.seed = seed
        self.stream = STREAM_OF_SPLIT[split]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey) -> Sample:
        rng = sample_rng(self.seed, key.epoch, key.index, self.stream)
        turn = key.epoch * self.length + key.index
        position = int(self.positions[turn % len(self.positions)])
        scene, path = self.source.read(position, target_size=self.size), self.source.path(position)
        if min(scene.shape[:2]) < self.size:
            raise UnreadableImageError(path, f"its shorter side is {min(scene.shape[:2])}, data.size is {self.size}")
        quality = int(rng.integers(10, 96))
        pixels = recompress(random_crop(scene, self.size, rng), quality)
        return {
            "image": torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
            "quality": float(quality),
            "index": key.index,
            "path": path,
        }


def random_crop(scene: Pixels, size: int, rng: np.random.Generator) -> Pixels:
    """Cut a square of `size` pixels anywhere, so that blocks of an earlier JPEG lie anywhere too."""
    height, width = scene.shape[:2]
    top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
    return scene[top : top + size, left : left + size]


def recompress(scene: Pixels, quality: int) -> Pixels:
    """Save an RGB picture as JPEG in memory and decode it."""
    packed = cv2.imencode(".jpg", cv2.cvtColor(scene, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR_RGB), np.uint8)


class RecompressedScenesDataModule(ProvenanceDataModule):
    """Trains, validates and tests on scenes of known JPEG quality; a scene is in one split alone.

    Args:
        scenes: Folder, manifest or `procedural://COUNT?size=S` for drawn scenes that need no files.
        size: Side of the square samples.
        train_samples: Samples an epoch.
        val_samples: Size of the frozen validation set.
        test_samples: Size of the frozen test set.
        holdout: Share of the scenes kept from training, half for validation, half for test.
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
        scenes: str | list[str] = "procedural://10000?size=96",
        size: int = 64,
        train_samples: int = 4096,
        val_samples: int = 128,
        test_samples: int = 256,
        holdout: float = 0.2,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        eval_seed: int = 0,
        on_unreadable: Literal["stop", "skip"] = "stop",
        paths: str | list[str] | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, on_unreadable, paths)
        self.scenes = scenes
        self.size = size
        self.samples: dict[Split, int] = {"train": train_samples, "val": val_samples, "test": test_samples}
        self.holdout = holdout
        self.eval_seed = eval_seed

    def build_dataset(self, split: Split) -> Dataset[Sample]:
        """Build a split; its scenes are in no other."""
        source = open_images(self.scenes)
        positions = positions_of((source.path(i) for i in range(len(source))), split, self.holdout)
        if not len(positions):
            raise ValueError(
                f"no scene of {self.scenes} falls into the {split} split at data.holdout {self.holdout}: "
                f"add scenes or raise data.holdout"
            )
        seed = self.seed if split == "train" else self.eval_seed
        return RecompressedScenes(source, positions, self.size, self.samples[split], seed, split)
