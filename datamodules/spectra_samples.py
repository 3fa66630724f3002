"""Samples for detectors of generated pictures: which picture comes when, and what a training or test sample holds."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import Sample, SampleKey
from datamodules.images.errors import UnreadableImageError
from datamodules.images.file_facts import blockiness, drawn_facts, read_facts
from datamodules.images.randomness import sample_rng
from datamodules.images.sources import FileSource
from datamodules.spectra_sets import PictureSet
from datamodules.transforms.spectrum_crops import (
    CropSettings,
    apply_plan,
    central_crop,
    compress,
    draw_plan,
    resized_central_crop,
    target_size,
)
from datamodules.transforms.spectrum_reference import ReferenceSettings, process, read_plain

Pixels = NDArray[np.uint8]
Balance = Literal["class", "none", "reference"]
CROP_STREAM, PICK_STREAM, LEVEL_STREAM, REFERENCE_STREAM = 301, 302, 303, 304
VIEW = re.compile(r"native|levelled|jpeg_(?P<jpeg>\d+)|webp_(?P<webp>\d+)|resize_(?P<resize>\d*\.?\d+)")
# The published code draws again for as long as it takes; a folder of grey pictures alone would never end.
REDRAWS = 100


class Counted(Protocol):
    """Samples of one origin, of which only their number matters."""

    @property
    def generator(self) -> str:
        """`real`, or who drew them."""
        ...

    @property
    def is_real(self) -> bool:
        """Whether they are photographs."""
        ...

    def __len__(self) -> int: ...


class Pictures:
    """All pictures of a split by number: set after set."""

    def __init__(self, sets: Sequence[PictureSet]) -> None:
        self.sets = list(sets)
        self.ends = np.cumsum([len(part) for part in self.sets])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def locate(self, number: int) -> tuple[PictureSet, int]:
        """Return the set of a picture and its position in the set's source."""
        row = int(np.searchsorted(self.ends, number, side="right"))
        part = self.sets[row]
        return part, int(part.positions[number - int(self.ends[row]) + len(part)])

    def read(self, number: int, target: int | None = None) -> Pixels:
        """Return the pixels of a picture, perhaps reduced to `target`."""
        part, position = self.locate(number)
        return part.source.read(position, target)

    def read_as_published(self, number: int) -> Pixels | None:
        """Return the stored pixels as the published code reads them; None for grey pictures."""
        part, position = self.locate(number)
        if not isinstance(part.source, FileSource):
            return part.source.read(position)
        path = part.source.path(position)
        try:
            return read_plain(path)
        except Exception as error:  # a hostile file can raise anything inside Pillow
            raise UnreadableImageError(path, str(error) or type(error).__name__) from error

    def size_hw(self, number: int) -> tuple[int, int] | None:
        """Return height and width of a file by its header; None for scenes, which are drawn at one size."""
        part, position = self.locate(number)
        if not isinstance(part.source, FileSource):
            return None
        facts = read_facts(part.source.path(position))
        return int(facts.height), int(facts.width)

    def record(self, number: int) -> Sample:
        """Return what is known of a picture beside its pixels."""
        part, position = self.locate(number)
        return {
            "label": 0.0 if part.is_real else 1.0,
            "generator": part.generator,
            "source": part.name,
            "index": number,
            "path": part.source.path(position),
        }


class PickOrder:
    """Says which picture a place of an epoch gets: a function of seed, epoch and place alone.

    Args:
        sets: The pictures.
        balance: `class` makes neighbours a real and a generated picture, the generators taking turns, each without
            repeats until it is through; `none` takes pictures as they lie; `reference` draws as a weighted sampler
            with replacement does, real in half of all draws.
        length: Places in an epoch.
        seed: Of the run.
    """

    def __init__(self, sets: Sequence[Counted], balance: Balance, length: int, seed: int) -> None:
        self.balance = balance
        self.length = length
        self.seed = seed
        ends = np.cumsum([len(part) for part in sets])
        spans = [range(int(end) - len(part), int(end)) for end, part in zip(ends, sets, strict=True)]
        # One span a generator, however many sets it has; real ones are the first.
        groups: dict[str, list[range]] = {}
        for part, span in zip(sets, spans, strict=True):
            groups.setdefault(part.generator, []).append(span)
        self.real = [span for part, span in zip(sets, spans, strict=True) if part.is_real]
        self.generated = [group for name, group in groups.items() if name != "real"]
        if balance != "none" and not (self.real and self.generated):
            raise ValueError(f"data.balanced {balance!r} needs real and generated pictures: name both or take none")

    def __call__(self, key: SampleKey) -> int:
        """Return the number of the picture for a place of an epoch."""
        turn = key.epoch * self.length + key.index
        if self.balance == "none":
            return turn % self._total([*self.real, *(span for group in self.generated for span in group)])
        if self.balance == "reference":
            rng = sample_rng(self.seed, key.epoch, key.index, PICK_STREAM)
            everything = [span for group in self.generated for span in group]
            spans = self.real if rng.random() < 0.5 else everything
            return _member(spans, int(rng.integers(self._total(spans))))
        pair, generated = divmod(turn, 2)
        if not generated:
            return self._without_repeats(self.real, pair, 0)
        cycle, which = divmod(pair, len(self.generated))
        return self._without_repeats(self.generated[which], cycle, which + 1)

    def _without_repeats(self, spans: Sequence[range], turn: int, group: int) -> int:
        count = self._total(spans)
        cycle, place = divmod(turn, count)
        return _member(spans, int(_shuffled(self.seed, cycle, group, count)[place]))

    @staticmethod
    def _total(spans: Sequence[range]) -> int:
        return sum(map(len, spans))


@lru_cache(maxsize=64)
def _shuffled(seed: int, cycle: int, group: int, count: int) -> NDArray[np.int64]:
    return sample_rng(seed, cycle, group, PICK_STREAM).permutation(count)


def _member(spans: Sequence[range], place: int) -> int:
    for span in spans:
        if place < len(span):
            return span[place]
        place -= len(span)
    raise IndexError(place)


class TrainingCrops(Dataset[Sample]):
    """One crop of a picture, drawn anew each epoch."""

    def __init__(self, pictures: Pictures, order: PickOrder, window: int, settings: CropSettings, seed: int) -> None:
        self.pictures = pictures
        self.order = order
        self.window = window
        self.settings = settings
        self.seed = seed

    def __len__(self) -> int:
        return self.order.length

    def __getitem__(self, key: SampleKey) -> Sample:
        number = self.order(key)
        rng = sample_rng(self.seed, key.epoch, key.index, CROP_STREAM)
        crop = training_crop(self.pictures, number, self.window, self.settings, rng)
        return {"image": channels_first(crop), **self.pictures.record(number)}


def training_crop(
    pictures: Pictures, number: int, window: int, settings: CropSettings, rng: np.random.Generator
) -> Pixels:
    """Return a picture's crop by the policy of training."""
    shrinks = settings.fit_probability > 0 or settings.scale[0] <= 0.5
    full_hw = pictures.size_hw(number) if shrinks else None
    if full_hw is None:
        image = pictures.read(number)
        return apply_plan(image, window, draw_plan(image.shape[:2], window, settings, rng))
    plan = draw_plan(full_hw, window, settings, rng)
    return apply_plan(pictures.read(number, target_size(full_hw, plan.scale)), window, plan, full_hw)


class ReferenceCrops(Dataset[Sample]):
    """Crops by the published processing, its draws from (seed, epoch, place) in place of a global state.

    Args:
        pictures: The split's.
        order: Which picture comes when; None takes them as they lie, for validation and test.
        settings: Of the split's mode; generated pictures of validation are processed as in training, as published.
        seed: Of the draws.
    """

    def __init__(self, pictures: Pictures, order: PickOrder | None, settings: ReferenceSettings, seed: int) -> None:
        self.pictures = pictures
        self.order = order
        self.settings = settings
        self.seed = seed

    def __len__(self) -> int:
        return self.order.length if self.order is not None else len(self.pictures)

    def __getitem__(self, key: SampleKey) -> Sample:
        rng = sample_rng(self.seed, key.epoch, key.index, REFERENCE_STREAM)
        draws = np.random.RandomState(int(rng.integers(2**32)))
        number = self.order(key) if self.order is not None else key.index
        done = self._process(number, draws)
        for _ in range(REDRAWS if self.order is not None else 0):
            if done is not None:
                break
            # Any picture, with its own label.
            number = int(draws.randint(len(self.pictures)))
            done = self._process(number, draws)
        record = self.pictures.record(number)
        if done is None:
            raise refused(record["path"], self.settings.window)
        crop, quality = done
        image = channels_first(crop)
        if self.order is not None:
            return {"image": image, **record}
        return {"image": image[None], "views": ["native"], **record, **described(self.pictures, number, crop, quality)}

    def _process(self, number: int, draws: np.random.RandomState) -> tuple[Pixels, int | None] | None:
        part, _ = self.pictures.locate(number)
        settings = self.settings
        if settings.mode == "valid" and not part.is_real:
            settings = ReferenceSettings(settings.window, "train", settings.compression, settings.quality)
        image = self.pictures.read_as_published(number)
        return None if image is None else process(image, int(not part.is_real), settings, draws)


class EvaluationViews(Dataset[Sample]):
    """All views of a picture, with the facts of its file.

    Args:
        pictures: The split's.
        window: Side of the views.
        views: Their names, as `check_views` knows them.
        level_quality: Least and greatest JPEG quality of the view `levelled`.
        seed: Of the drawn qualities.
        published: Whether files are read, and grey and small ones refused, as the published code does.
    """

    def __init__(
        self,
        pictures: Pictures,
        window: int,
        views: Sequence[str],
        level_quality: tuple[int, int],
        seed: int,
        published: bool = False,
    ) -> None:
        self.published = published
        self.pictures = pictures
        self.window = window
        self.views = list(views)
        self.level_quality = level_quality
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: SampleKey) -> Sample:
        image = self._read(key.index)
        crop = central_crop(image, self.window)
        level = self._level(key.index)
        views = np.stack([view(image, crop, self.window, name, level) for name in self.views])
        packaging = described(self.pictures, key.index, crop)
        if "levelled" in self.views:
            levelled = views[self.views.index("levelled")]
            packaging["facts"] |= {"jpeg_quality_levelled": float(level), "blockiness_levelled": grid_of(levelled)}
        shown = torch.from_numpy(views).permute(0, 3, 1, 2)
        return {"image": shown, "views": self.views, **self.pictures.record(key.index), **packaging}

    def _read(self, index: int) -> Pixels:
        image = self.pictures.read_as_published(index) if self.published else self.pictures.read(index)
        if image is None or (self.published and min(image.shape[:2]) < self.window):
            raise refused(self.pictures.record(index)["path"], self.window)
        return image

    def _level(self, index: int) -> int:
        """Draw the quality of a picture's levelled view: whose picture it is plays no part."""
        low, high = self.level_quality
        return int(sample_rng(self.seed, 0, index, LEVEL_STREAM).integers(low, high + 1))


def refused(path: str, window: int) -> UnreadableImageError:
    """Return the error for what the published code leaves out."""
    return UnreadableImageError(path, f"grey, or a side is below data.window {window}: processing reference takes none")


def check_views(names: Sequence[str]) -> None:
    """Refuse names of views that mean nothing."""
    for name in names:
        match = VIEW.fullmatch(name)
        quality = int(match["jpeg"] or match["webp"] or 50) if match else 0
        if match is None or not 1 <= quality <= 100 or float(match["resize"] or 1) <= 0.05:
            raise ValueError(f"view {name!r} is none of native, levelled, jpeg_Q, webp_Q (Q 1 to 100), resize_F (0.75)")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"views must be named once each, got {list(names)}")


def view(image: Pixels, crop: Pixels, window: int, name: str, level: int) -> Pixels:
    """Return a view of a picture.

    Args:
        image: The whole picture.
        crop: Its central crop.
        window: Side of the view.
        name: Which view.
        level: JPEG quality of the view `levelled`.
    """
    match = VIEW.fullmatch(name)
    assert match is not None
    if match["resize"]:
        return resized_central_crop(image, window, float(match["resize"]))
    if match["webp"]:
        return compress(crop, "webp", int(match["webp"]))
    if name == "native":
        return crop
    return compress(crop, "jpeg", int(match["jpeg"]) if match["jpeg"] else level)


def described(pictures: Pictures, number: int, crop: Pixels, applied: int | None = None) -> Sample:
    """Return the packaging of a picture: `facts`, `format` and the JPEG quality found, or applied to the crop."""
    part, position = pictures.locate(number)
    file = isinstance(part.source, FileSource)
    facts = asdict(read_facts(part.source.path(position)) if file else drawn_facts(crop.shape[:2]))
    kind = facts.pop("format")
    facts["blockiness"] = grid_of(crop)
    quality = facts["jpeg_quality"] if applied is None else float(applied)
    return {"facts": facts, "format": kind, "quality": quality}


def grid_of(crop: Pixels) -> float:
    """Return the blockiness of a crop, nan for one too small to have any."""
    return blockiness(crop) if min(crop.shape[:2]) > 16 else math.nan


def channels_first(crop: Pixels) -> Tensor:
    """Return pixels (H, W, 3) as a tensor (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))
