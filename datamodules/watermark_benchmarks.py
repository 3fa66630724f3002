"""The public benchmarks of visible watermarks, read from the folders that their authors distribute.

CLWD, LVW, LOGO-H, LOGO-L, LOGO-Gray, LOGO30K and Alpha1 differ in nothing but the rows of `LAYOUTS`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import ProvenanceDataModule, Sample, SampleKey
from datamodules.images.decoding import read_image
from datamodules.images.randomness import sample_rng
from datamodules.images.splits import Split, split_of

LayoutName = Literal["clwd", "lvw", "logo_h", "logo_l", "logo_gray", "logo30k", "alpha1"]
Pixels = NDArray[np.uint8]
_FLIP_STREAM = 1


@dataclass(frozen=True)
class Layout:
    """Where a benchmark keeps its files, and how its mask is read.

    Attributes:
        folders: Folder of the training and of the test part, below the root.
        image: Pattern of the watermarked images below such a folder; {id} is the file's name.
        mask: Pattern of the masks.
        optional: Patterns of what may be absent: "target" (the clean image), "alpha", "color" (of the mark).
            {photo} is {id} up to the first "-"; a leading "/" starts at the root.
        mask_threshold: A mask pixel counts above this share of 255.
        mask_resize: How masks are brought to size before the threshold.
        names: Folder names under which the benchmark is distributed; the root may be the folder above.
    """

    folders: Mapping[Literal["train", "test"], str]
    image: str
    mask: str
    optional: Mapping[str, str] = field(default_factory=dict)
    mask_threshold: float = 0.5
    mask_resize: Literal["nearest", "bilinear"] = "nearest"
    names: tuple[str, ...] = ()


def _logo(*names: str) -> Layout:
    # SplitNet's and DENet's loaders leave the bilinear masks soft; here: binary, as everywhere in Sealmark.
    return Layout(
        folders={"train": "train_images", "test": "val_images"},
        image="image/{id}.png",
        mask="mask/{id}.png",
        optional={"target": "/natural/{photo}.jpg", "color": "wm/{id}.png"},
        mask_resize="bilinear",
        names=names,
    )


_TRAIN_TEST: Mapping[Literal["train", "test"], str] = {"train": "train", "test": "test"}

LAYOUTS: Mapping[LayoutName, Layout] = {
    "clwd": Layout(
        folders=_TRAIN_TEST,
        image="Watermarked_image/{id}.jpg",
        mask="Mask/{id}.png",
        optional={
            "target": "Watermark_free_image/{id}.jpg",
            "alpha": "Alpha/{id}.png",
            "color": "Watermark/{id}.png",
        },
        mask_threshold=0.1,
        names=("CLWD",),
    ),
    "lvw": Layout(
        folders=_TRAIN_TEST,
        image="image/{id}.png",
        mask="mask/{id}.png",
        optional={"target": "background/{id}.png", "alpha": "alpha/{id}.png"},
        mask_threshold=0.1,
        names=("LVW",),
    ),
    "logo_h": _logo("10khigh"),
    "logo_l": _logo("10kmid"),
    "logo_gray": _logo("10kgray"),
    "logo30k": _logo("27kpng"),
    "alpha1": Layout(
        folders=_TRAIN_TEST,
        image="image/{id}.jpg",
        mask="mask/{id}.png",
        mask_resize="bilinear",
        names=("Alpha1-S", "Alpha1-L", "Alpha1"),
    ),
}


@dataclass(frozen=True)
class BenchmarkFiles:
    """The images of one part of a benchmark, sorted by name, and where their companions are.

    Attributes:
        part: Folder of the part.
        root: Folder of the benchmark.
        layout: Patterns below them.
        ids: Names of the images without extension.
        present: The optional companions that this copy of the benchmark has.
    """

    part: Path
    root: Path
    layout: Layout
    ids: Sequence[str]
    present: frozenset[str]

    @classmethod
    def find(cls, root: Path, name: LayoutName, part: Literal["train", "test"]) -> "BenchmarkFiles":
        """Lists a part and checks that every image has a mask.

        Args:
            root: Folder of the benchmark, or the folder above it under its distributed name.
            name: A key of `LAYOUTS`.
            part: Which of the two distributed parts.
        """
        layout = LAYOUTS[name]
        home = next((root / n for n in layout.names if (root / n / layout.folders[part]).is_dir()), root)
        found = cls(home / layout.folders[part], home, layout, (), frozenset())
        ids = found._stems(layout.image, name)
        without = sorted(set(ids) - set(found._stems(layout.mask, name)))
        if without:
            missing = found._pattern(layout.mask).replace("{id}", without[0])
            raise FileNotFoundError(f"{name}: {len(without)} of {len(ids)} images have no mask; add e.g. {missing}")
        present = {key for key, pattern in layout.optional.items() if Path(found._pattern(pattern)).parent.is_dir()}
        return cls(found.part, home, layout, ids, frozenset(present))

    def path(self, pattern: str, id_: str) -> str:
        """The file of one image that a pattern of the layout means."""
        return self._pattern(pattern).replace("{id}", id_).replace("{photo}", id_.split("-")[0])

    def _pattern(self, pattern: str) -> str:
        return str(self.root / pattern[1:] if pattern.startswith("/") else self.part / pattern)

    def _stems(self, pattern: str, name: str) -> list[str]:
        folder, suffix = Path(self._pattern(pattern)).parent, Path(pattern).suffix
        wanted = f"{name} is expected as {self._pattern(pattern).replace('{id}', '*')}"
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}: {wanted}; set data.root to the folder of the benchmark")
        with os.scandir(folder) as entries:
            stems = sorted(entry.name.removesuffix(suffix) for entry in entries if entry.name.endswith(suffix))
        if not stems:
            raise FileNotFoundError(f"no *{suffix} in {folder}: {wanted}")
        return stems


class BenchmarkImages(Dataset[Sample]):
    """Watermarked images with their masks, all stretched to one square as the published evaluations do."""

    def __init__(self, files: BenchmarkFiles, size: int, mask_threshold: float, flip_seed: int | None = None) -> None:
        self.files = files
        self.size = size
        self.mask_threshold = mask_threshold
        self.flip_seed = flip_seed

    def __len__(self) -> int:
        return len(self.files.ids)

    def __getitem__(self, key: SampleKey) -> Sample:
        id_ = self.files.ids[key.index]
        layout = self.files.layout
        image_path = self.files.path(layout.image, id_)
        planes = {"image": self._read(image_path), "mask": self._read_mask(self.files.path(layout.mask, id_))}
        for name in sorted(self.files.present):
            planes[name] = self._read(self.files.path(layout.optional[name], id_))
        if self._flips(key):
            planes = {name: pixels[:, ::-1] for name, pixels in planes.items()}
        tensors = _as_tensors(planes)
        has_mark = bool(tensors["mask"].any())
        return tensors | {
            "ignore": torch.zeros_like(tensors["mask"], dtype=torch.bool),
            "index": key.index,
            "path": image_path,
            "family": "benchmark",
            "opacity": _mean_opacity(tensors) if has_mark else float("nan"),
            "has_mark": has_mark,
        }

    def _flips(self, key: SampleKey) -> bool:
        if self.flip_seed is None:
            return False
        return bool(sample_rng(self.flip_seed, key.epoch, key.index, _FLIP_STREAM).random() < 0.5)

    def _read(self, path: str) -> Pixels:
        return self._resized(read_image(path), cv2.INTER_LINEAR)

    def _read_mask(self, path: str) -> Pixels:
        nearest = self.files.layout.mask_resize == "nearest"
        mask = self._resized(read_image(path)[..., :1], cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR)
        return np.where(mask.reshape(self.size, self.size, 1) > self.mask_threshold * 255, 255, 0).astype(np.uint8)

    def _resized(self, pixels: Pixels, interpolation: int) -> Pixels:
        if pixels.shape[:2] == (self.size, self.size):
            return pixels
        return np.asarray(cv2.resize(pixels, (self.size, self.size), interpolation=interpolation), np.uint8)


def _as_tensors(planes: Mapping[str, Pixels]) -> dict[str, Any]:
    """Channels first; opacity and colour of the mark are 0 where the mask is."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1))) for name, p in planes.items()}
    inside = tensors["mask"] > 0
    if "alpha" in tensors:
        tensors["alpha"] = tensors["alpha"][:1] * inside
    if "color" in tensors:
        tensors["color"] = tensors["color"] * inside
    return tensors


def _mean_opacity(tensors: Mapping[str, Tensor]) -> float:
    if "alpha" not in tensors:
        return float("nan")
    return float(tensors["alpha"][tensors["mask"] > 0].float().mean() / 255)


class WatermarkBenchmarkDataModule(ProvenanceDataModule):
    """Reads one public benchmark; its test part is the published one, validation is cut from its training part.

    Args:
        root: Folder of the benchmark, or the folder above it.
        layout: Which benchmark.
        size: Side of the squares that images are stretched to; the papers use 256.
        mask_threshold: A mask pixel counts above this share of 255; None takes the benchmark's own.
        val_fraction: Share of the training photos that validate instead, chosen by name.
        flip: Whether training mirrors half of the samples.
        batch_size: Samples a step and rank in training.
        eval_batch_size: Samples a step and rank elsewhere; None means `batch_size`.
        num_workers: Processes that make samples, per rank; None takes the cores this rank can have, less one.
        seed: Decides order and mirroring, with epoch and index; None takes the run's `seed_everything`.
        on_unreadable: "stop" ends the run with one line; "skip" leaves the file out and lists it in skipped.jsonl.
        paths: Files, folders and manifests to predict on.
    """

    def __init__(
        self,
        root: str,
        layout: LayoutName,
        size: int = 256,
        mask_threshold: float | None = None,
        val_fraction: float = 0.05,
        flip: bool = True,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        on_unreadable: Literal["stop", "skip"] = "stop",
        paths: str | list[str] | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, on_unreadable, paths)
        if layout not in LAYOUTS:
            raise ValueError(f"data.layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        if size < 1:
            raise ValueError(f"data.size must be at least 1, got {size}")
        if not 0 < val_fraction <= 0.5:
            raise ValueError(f"data.val_fraction must lie above 0 and up to 0.5, got {val_fraction}")
        self.root = root
        self.layout: LayoutName = layout
        self.size = size
        self.mask_threshold = LAYOUTS[layout].mask_threshold if mask_threshold is None else mask_threshold
        self.val_fraction = val_fraction
        self.flip = flip

    def build_dataset(self, split: Split) -> Dataset[Sample]:
        """Build a split; photos of the training part are either trained or validated on."""
        files = BenchmarkFiles.find(Path(self.root), self.layout, "test" if split == "test" else "train")
        if split != "test":
            files = self._half(files, validates=split == "val")
        flip_seed = self.seed if split == "train" and self.flip else None
        return BenchmarkImages(files, self.size, self.mask_threshold, flip_seed)

    def _half(self, files: BenchmarkFiles, validates: bool) -> BenchmarkFiles:
        # By photo: a LOGO photo comes with several marks, and must not be on both sides.
        ids = [id_ for id_ in files.ids if self._is_validated(id_.split("-")[0]) == validates]
        if not ids:
            raise ValueError(
                f"no photo in {files.part} is left for {'validation' if validates else 'training'} at "
                f"data.val_fraction {self.val_fraction}: change data.val_fraction or add images"
            )
        return BenchmarkFiles(files.part, files.root, files.layout, ids, files.present)

    def _is_validated(self, photo: str) -> bool:
        return split_of(photo, 2 * self.val_fraction) == "val"
