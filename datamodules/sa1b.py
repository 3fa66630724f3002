"""Pictures to hide patterns in: SA-1B as published, or any folder, manifest, shards or drawn scenes."""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from datamodules.base import ProvenanceDataModule, Sample, SampleKey
from datamodules.images.photos import Photos, paths_in
from datamodules.images.randomness import sample_rng
from datamodules.images.shards import ShardSource, is_shard_folder
from datamodules.images.sources import ImageSource, ProceduralSource, open_images
from datamodules.images.splits import Split
from lightning_modules.functional.resizing import resized_hw

View = Literal["random_crop", "center_crop", "squash", "short_side"]
CROP_STREAM = 501


class SquarePictures(Dataset[Sample]):
    """Photos, each framed by one of the views.

    Args:
        photos: What to read.
        size: Side of a square, shorter side under "short_side".
        view: How a photo is framed; see `framed`.
        length: Samples an epoch; turns go on over epochs.
        seed: Decides random crops, with epoch and index.
        least_scale: Shorter side that a random crop may shrink to `size`, as a share of the photo's; 1 keeps all of it.
    """

    def __init__(self, photos: Photos, size: int, view: View, length: int, seed: int, least_scale: float = 1.0) -> None:
        self.photos = photos
        self.size = size
        self.view = view
        self.length = length
        self.seed = seed
        self.least_scale = least_scale

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey) -> Sample:
        rng = sample_rng(self.seed, key.epoch, key.index, CROP_STREAM)
        pixels, path = self.photos.read(key.epoch * self.length + key.index, self.size)
        image = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)
        if self.view == "random_crop":
            image = random_square(image, self.size, self.least_scale, rng)
        else:
            image = framed(image, self.size, self.view)
        return {"image": image.contiguous(), "index": key.index, "path": path}


class Sa1bDataModule(ProvenanceDataModule):
    """Squares to train on; validation and test pictures are those that come first in the order of names.

    As published: of all names, sorted, the first 1,000 are validation, the next 1,000 test and the rest training. Drawn
    scenes go by their number. Reference: `train_view: center_crop`, `eval_view: squash`.

    Args:
        photos: Folder, manifest, list of these, folder of shards (also `s3://…`), or `procedural://COUNT?size=S`.
        val_photos: Validation pictures in place of the first of `photos`, such as the reference's `val_dir`.
        test_photos: Test pictures in place of the next of `photos`.
        size: Side of a picture that the networks get.
        eval_size: Side in validation and test; None means `size`.
        train_view: `random_crop` (ours), `center_crop` of the shorter side resized, or `squash` to a square.
        eval_view: `center_crop`, `squash`, or `short_side`, which keeps proportions and needs `eval_batch_size: 1`.
        least_scale: A random crop covers a square of at least this share of the shorter side.
        train_samples: Pictures an epoch; None means all.
        val_samples: Pictures of the validation split.
        test_samples: Pictures of the test split.
        batch_size: Pictures a step and rank in training.
        eval_batch_size: Pictures a step and rank elsewhere; None means `batch_size`.
        num_workers: Processes that make samples, per rank; None takes the cores this rank can have, less one.
        seed: Decides order and crops of training, with epoch and index; None takes the run's `seed_everything`.
        on_unreadable: "stop" ends the run with one line; "skip" leaves the file out and lists it in skipped.jsonl.
        paths: Files, folders and manifests to predict on.
    """

    def __init__(
        self,
        photos: str | list[str] = "procedural://1000000?size=256",
        val_photos: str | list[str] | None = None,
        test_photos: str | list[str] | None = None,
        size: int = 256,
        eval_size: int | None = None,
        train_view: Literal["random_crop", "center_crop", "squash"] = "random_crop",
        eval_view: Literal["center_crop", "squash", "short_side"] = "center_crop",
        least_scale: float = 0.5,
        train_samples: int | None = None,
        val_samples: int = 1000,
        test_samples: int = 1000,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        on_unreadable: Literal["stop", "skip"] = "stop",
        paths: str | list[str] | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, on_unreadable, paths)
        if eval_view == "short_side" and self.eval_batch_size > 1:
            raise ValueError(
                f"data.eval_view short_side gives pictures of several sizes: set data.eval_batch_size to 1, "
                f"got {self.eval_batch_size}"
            )
        if not 0 < least_scale <= 1:
            raise ValueError(f"data.least_scale must lie in (0, 1], got {least_scale}")
        self.photos = photos
        self.own_photos: dict[Split, str | list[str] | None] = {"train": None, "val": val_photos, "test": test_photos}
        self.size = size
        self.eval_size = eval_size or size
        self.train_view: View = train_view
        self.eval_view: View = eval_view
        self.least_scale = least_scale
        self.train_samples = train_samples
        self.samples: dict[Split, int] = {"val": val_samples, "test": test_samples}
        self._held_out: NDArray[np.int64] | None = None

    def build_dataset(self, split: Split) -> Dataset[Sample]:
        """Build a split; its pictures are in no other."""
        photos = self._photos_of(split)
        if split == "train":
            length = self.train_samples or len(photos)
            return SquarePictures(photos, self.size, self.train_view, length, self.seed, self.least_scale)
        return SquarePictures(photos, self.eval_size, self.eval_view, len(photos), seed=0)

    def _photos_of(self, split: Split) -> Photos:
        own = self.own_photos[split]
        source = open_pictures(self.photos if own is None else own)
        if own is not None:
            positions = in_name_order(source, self.samples[split])
            return Photos(source, positions)
        # A split with pictures of its own takes none of the others'.
        val, test = (0 if self.own_photos[held] is not None else self.samples[held] for held in ("val", "test"))
        if len(source) <= val + test:
            raise ValueError(
                f"data.photos {self.photos} has {len(source)} pictures, not more than data.val_samples {val} and "
                f"data.test_samples {test} together: lower these, or name data.val_photos and data.test_photos"
            )
        if self._held_out is None:  # millions of names take half a minute to look through
            self._held_out = in_name_order(source, val + test)
        held_out = self._held_out
        if split != "train":
            return Photos(source, held_out[:val] if split == "val" else held_out[val:])
        return Photos(source, np.delete(np.arange(len(source)), held_out))


def open_pictures(spec: str | list[str]) -> ImageSource:
    """Open what `data.photos` may name."""
    only = spec[0] if isinstance(spec, list) and len(spec) == 1 else spec
    if isinstance(only, str) and is_shard_folder(only):
        return ShardSource(only)
    return open_images(spec)


def in_name_order(source: ImageSource, count: int) -> NDArray[np.int64]:
    """Return the positions of the first pictures in the order of their names; drawn scenes are in order already.

    A name that comes several times counts once, and all of its pictures are returned.
    """
    if isinstance(source, ProceduralSource):
        return np.arange(min(count, len(source)))
    names = source.names if isinstance(source, ShardSource) else paths_in(source)
    rank = {name: place for place, name in enumerate(first_names(map(_file_name, names), count))}
    held = [(rank[name], position) for position, path in enumerate(names) if (name := _file_name(path)) in rank]
    return np.array([position for _, position in sorted(held)], np.int64)


def first_names(names: Iterable[str], count: int) -> list[str]:
    """Return the first distinct names in their order, in memory that does not grow with the number of names."""
    kept: set[str] = set()
    last: str | None = None
    for name in names:
        if last is None or name <= last:
            kept.add(name)
            if len(kept) > 2 * count + 1000:
                kept = set(sorted(kept)[:count])
                last = max(kept, default="")
    return sorted(kept)[:count]


def framed(image: Tensor, size: int, view: View) -> Tensor:
    """Return an image (3, H, W), uint8 or float, framed as the reference's loader does it.

    `squash` resizes to a square whatever the proportions; `short_side` resizes the shorter side to `size`;
    `center_crop` takes the square in the middle of that.
    """
    if view == "squash":
        return resized(image, size, size)
    image = resized(image, *resized_hw(image.shape[1], image.shape[2], f"short_{size}"))
    if view == "short_side":
        return image
    # Python's rounding, halves to even, as torchvision's.
    top, left = round((image.shape[1] - size) / 2), round((image.shape[2] - size) / 2)
    return image[:, top : top + size, left : left + size]


def random_square(image: Tensor, size: int, least_scale: float, rng: np.random.Generator) -> Tensor:
    """Return a square of a random place and side, resized to `size`; no side is below `size` where the image allows."""
    short = min(image.shape[1:])
    least = max(min(size, short), round(least_scale * short))
    side = int(rng.integers(least, short + 1))
    top = int(rng.integers(0, image.shape[1] - side + 1))
    left = int(rng.integers(0, image.shape[2] - side + 1))
    return resized(image[:, top : top + side, left : left + side], size, size)


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """Return an image (3, H, W) resized with antialiasing."""
    if tuple(image.shape[1:]) == (height, width):
        return image
    return F.interpolate(image[None], size=(height, width), mode="bilinear", antialias=True)[0]


def _file_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]
