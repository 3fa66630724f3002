"""Samples of the tasks that seal data are made for: ink to find, pairs to verify, lines to read."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import Sample, SampleKey
from datamodules.images.randomness import sample_rng
from datamodules.seal_sets import SealSet
from datamodules.transforms.documents.samples import Document, DocumentSettings, draw_document
from datamodules.transforms.line_crops import line_crop, line_width
from datamodules.transforms.recut import (
    GENUINE,
    Axis,
    RecutSettings,
    cut,
    draw_change,
    draw_registration,
    specimen,
    square_around,
)

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Part = TypeVar("Part")
CLEAN = "clean"
TRIES = 50  # documents that are looked through for one that has what a task needs


class Documents(Protocol):
    """Labelled documents by position."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def __len__(self) -> int: ...

    def read(self, position: int) -> Document:
        """Return the document at a position; positions beyond the end begin anew."""
        ...


@dataclass(frozen=True)
class DrawnDocuments:
    """Documents that are drawn when they are asked for; there is no end of them."""

    settings: DocumentSettings
    seed: int

    @property
    def name(self) -> str:
        """For messages."""
        return f"the drawn documents of seed {self.seed}"

    def __len__(self) -> int:
        return 2**31

    def read(self, position: int) -> Document:
        """Draw a document."""
        return draw_document(self.seed, position % len(self), self.settings)


@dataclass(frozen=True, eq=False)
class WrittenDocuments:
    """Documents of a written set."""

    whole: SealSet
    positions: Sequence[int]

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.whole.folder)

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, position: int) -> Document:
        """Read a document's files."""
        document: Document = self.whole[int(self.positions[position % len(self)])]
        return document


class PartStore(Generic[Part]):
    """What a task needs of documents; of small sets it is cut once by each worker and kept.

    Args:
        documents: Where it is cut from.
        cut: Returns the parts of a document, none where it has none.
        keep: Most documents whose parts are kept.
    """

    def __init__(self, documents: Documents, cut: Callable[[Document], list[Part]], keep: int) -> None:
        self.documents = documents
        self.cut = cut
        self.keep = keep
        self._kept: dict[int, list[Part]] = {}

    def parts(self, position: int) -> tuple[list[Part], int]:
        """Return the parts of the first document from a position on that has any, and its position."""
        for turn in range(position, position + TRIES):
            place = turn % len(self.documents)
            found = self._kept.get(place)
            if found is None:
                found = self.cut(self.documents.read(place))
                if len(self._kept) < self.keep:
                    self._kept[place] = found
            if found:
                return found, place
        raise ValueError(f"{TRIES} documents of {self.documents.name} have nothing for this task: draw other ones")


class TaskSamples(Dataset[Sample], Generic[Part]):
    """Samples of a task, each from one document; training goes on over epochs, evaluation is frozen.

    Args:
        store: Parts of documents.
        length: Samples an epoch.
        seed: Of the draws.
        stream: Keeps splits apart.
    """

    def __init__(self, store: PartStore[Part], length: int, seed: int, stream: int) -> None:
        self.store = store
        self.length = length
        self.seed = seed
        self.stream = stream

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey) -> Sample:
        rng = sample_rng(self.seed, key.epoch, key.index, self.stream)
        parts, place = self.store.parts(key.epoch * self.length + key.index)
        part = parts[int(rng.integers(len(parts)))]
        return self.make(part, key, rng) | {"index": key.index, "path": f"{self.store.documents.name}#{place}"}

    def make(self, part: Part, key: SampleKey, rng: np.random.Generator) -> Sample:
        """Return the tensors of a sample."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class InkedPage:
    """A picture and its ink."""

    image: Pixels
    mask: Mask
    alpha: Pixels
    family: str


@dataclass(frozen=True)
class PageCutter:
    """Takes the picture and the mask of a document, reduced.

    Args:
        target: Which pixels count: `visible` printed ink, clean `ink` as it was cut, or the filled `area`.
        reduce: By what pictures are made smaller first.
    """

    target: str
    reduce: float

    def __call__(self, document: Document) -> list[InkedPage]:
        """Return the page; every document has one."""
        mask = getattr(document, self.target)
        kinds = sorted({seal.kind for seal in document.seals})
        family = "+".join(kinds) if kinds else CLEAN
        levels = np.asarray(np.round(255 * document.alpha), np.uint8)  # a quarter of the memory, where pages are kept
        if self.reduce == 1:
            return [InkedPage(document.image, mask, levels, family)]
        size = (round(mask.shape[1] / self.reduce), round(mask.shape[0] / self.reduce))
        shrink = cv2.INTER_AREA if self.reduce > 1 else cv2.INTER_LINEAR
        image, share, alpha = (
            cv2.resize(plane, size, interpolation=shrink) for plane in (document.image, mask.astype(np.float32), levels)
        )
        return [InkedPage(image, share > 0.5, alpha, family)]


class InkWindows(TaskSamples[InkedPage]):
    """Square windows of pages at their own scale, for a module that segments marks.

    Args:
        store: Pages.
        length: Samples an epoch.
        seed: Of the draws.
        stream: Keeps splits apart.
        size: Side of a window.
        on_ink: Share of windows that are laid over ink.
    """

    def __init__(
        self, store: PartStore[InkedPage], length: int, seed: int, stream: int, size: int, on_ink: float
    ) -> None:
        super().__init__(store, length, seed, stream)
        self.size = size
        self.on_ink = on_ink

    def make(self, part: InkedPage, key: SampleKey, rng: np.random.Generator) -> Sample:
        """Return what `WatermarkSegmentationModule` reads; its families are the outlines of seals."""
        size = self.size
        if min(part.mask.shape) < size:
            raise ValueError(
                f"documents of {self.store.documents.name} have {part.mask.shape[1]} x {part.mask.shape[0]} px here, "
                f"windows {size}: lower data.size or data.reduce"
            )
        left, top = _window(part.mask, size, rng, over_ink=rng.random() < self.on_ink)
        image = part.image[top : top + size, left : left + size]
        mask = part.mask[top : top + size, left : left + size]
        alpha = part.alpha[top : top + size, left : left + size]
        if rng.random() < 0.5:
            image, mask, alpha = image[:, ::-1], mask[:, ::-1], alpha[:, ::-1]
        plane = torch.from_numpy(np.ascontiguousarray(mask))[None]
        marked = bool(plane.any())
        return {
            "image": channels_first(image),
            "mask": plane.to(torch.uint8) * 255,
            "ignore": torch.zeros_like(plane),
            "family": part.family if marked else CLEAN,
            "opacity": float(alpha[mask].mean()) / 255 if marked else math.nan,
            "has_mark": marked,
        }


@dataclass(frozen=True, eq=False)
class SealCrop:
    """A seal on its page, cut out with its clean ink."""

    image: Pixels
    ink: Mask
    area: Mask
    axis: Axis
    kind: str


def seal_crops(document: Document) -> list[SealCrop]:
    """Return the seals of a document that are whole and lie on no other."""
    height, width = document.ink.shape
    found = []
    for number, seal in enumerate(document.seals):
        left, top, right, bottom = seal.box_xyxy
        whole = left > 0 and top > 0 and right < width and bottom < height
        others = [other.box_xyxy for place, other in enumerate(document.seals) if place != number]
        if not whole or any(_meet(seal.box_xyxy, other) for other in others):
            continue
        window = square_around(seal.box_xyxy)
        ink, area = (
            cut(np.asarray(plane, np.uint8), window, cv2.BORDER_CONSTANT) > 0 for plane in (document.ink, document.area)
        )
        axis = Axis(seal.angle_deg, seal.kind == "round")
        found.append(SealCrop(cut(document.image, window).copy(), ink, area, axis, seal.kind))
    return found


class SealPairs(TaskSamples[SealCrop]):
    """A questioned seal on its page and the specimen of it, or of a re-cut one; every second pair is genuine.

    Args:
        store: Seals.
        length: Samples an epoch.
        seed: Of the draws.
        stream: Keeps splits apart.
        size: Side of both pictures.
        recut: How far a re-cut seal is from the genuine one.
    """

    def __init__(
        self, store: PartStore[SealCrop], length: int, seed: int, stream: int, size: int, recut: RecutSettings
    ) -> None:
        super().__init__(store, length, seed, stream)
        self.size = size
        self.recut = recut

    def make(self, part: SealCrop, key: SampleKey, rng: np.random.Generator) -> Sample:
        """Return `image`, `reference`, `authentic` and `kind`."""
        genuine = key.index % 2 == 0
        change = GENUINE if genuine else draw_change(rng, self.recut)
        drawn = specimen(part.ink, part.area, part.axis, change, draw_registration(rng, self.recut), self.size)
        shrink = cv2.INTER_AREA if part.ink.shape[0] > self.size else cv2.INTER_LINEAR
        image: Pixels = cv2.resize(part.image, (self.size, self.size), interpolation=shrink)
        return {
            "image": channels_first(image),
            "reference": torch.from_numpy(drawn)[None],
            "authentic": genuine,
            "kind": part.kind,
        }


@dataclass(frozen=True, eq=False)
class PrintedLine:
    """A printed line, cut out."""

    image: Pixels
    text: str


@dataclass(frozen=True)
class LineCutter:
    """Cuts printed lines out of a document.

    Args:
        height: Of the crops.
        most_width: Longer lines are left out.
        under_seals: Whether lines that no seal lies on are left out.
    """

    height: int
    most_width: int
    under_seals: bool

    def __call__(self, document: Document) -> list[PrintedLine]:
        """Return the lines."""
        return [
            PrintedLine(line_crop(document.image, line.polygon, self.height), line.text)
            for line in document.page_lines
            if (line.under_seal or not self.under_seals) and line_width(line.polygon, self.height) <= self.most_width
        ]


class PrintedLines(TaskSamples[PrintedLine]):
    """Lines of one height, padded to one width.

    Args:
        store: Lines.
        length: Samples an epoch.
        seed: Of the draws.
        stream: Keeps splits apart.
        width: Of all samples.
    """

    def __init__(self, store: PartStore[PrintedLine], length: int, seed: int, stream: int, width: int) -> None:
        super().__init__(store, length, seed, stream)
        self.width = width

    def make(self, part: PrintedLine, key: SampleKey, rng: np.random.Generator) -> Sample:
        """Return `image`, the `width` of the line in it, and `text`."""
        wide = part.image.shape[1]
        padded: Pixels = cv2.copyMakeBorder(part.image, 0, 0, 0, self.width - wide, cv2.BORDER_REPLICATE)
        return {"image": channels_first(padded), "width": wide, "text": part.text}


def channels_first(pixels: Pixels) -> Tensor:
    """Return (H, W, 3) pixels as a tensor (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _window(mask: Mask, size: int, rng: np.random.Generator, over_ink: bool) -> tuple[int, int]:
    """Left and top of a window within the picture: anywhere, or near a drawn pixel of ink."""
    height, width = mask.shape
    inked = np.flatnonzero(mask) if over_ink else ()
    if not len(inked):
        return int(rng.integers(width - size + 1)), int(rng.integers(height - size + 1))
    row, column = divmod(int(inked[int(rng.integers(len(inked)))]), width)
    row, column = (place + int(rng.integers(-size // 4, size // 4 + 1)) - size // 2 for place in (row, column))
    return min(max(column, 0), width - size), min(max(row, 0), height - size)


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
