"""Where documents with seals and photos of real seals come from, by turn."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.images.photos import Photos, photos_of_split
from datamodules.images.splits import Split, positions_of
from datamodules.seal_sets import MaskedPicture, SealSet, is_seal_set, masked_pictures, read_seal_set
from datamodules.transforms.documents.samples import Document, DocumentSettings, Domain, draw_document
from datamodules.transforms.documents.views import Square, View, around, ink_like, seen, square_of

DRAWN = "drawn"
REAL_FROM = 1 << 40  # index of the first drawn document that stands for a real one: no synthetic one gets so far
_COMMON_ROOM = 1.2  # of a photographed seal, its picture by its seal

Pixels = NDArray[np.uint8]


class Documents(Protocol):
    """Documents with labels, by turn."""

    def read(self, turn: int) -> Document:
        """Return the document whose turn it is; written sets begin anew after their last."""
        ...


class RealSeals(Protocol):
    """Pictures of real seals, by turn."""

    def crop(self, turn: int, rng: np.random.Generator) -> tuple[Pixels, str]:
        """Return a view (S, S, 3) of the picture whose turn it is, and its name."""
        ...


class DrawnDocuments:
    """Documents that are drawn when asked for.

    Args:
        seed: Decides them, with the turn.
        settings: What they are drawn from.
        first: Number of the first.
    """

    def __init__(self, seed: int, settings: DocumentSettings, first: int = 0) -> None:
        self.seed = seed
        self.settings = settings
        self.first = first

    def read(self, turn: int) -> Document:
        """Return the document whose turn it is."""
        return draw_document(self.seed, self.first + turn, self.settings)


class WrittenDocuments:
    """Documents of one split of a written set."""

    def __init__(self, documents: SealSet, positions: Sequence[int] | NDArray[np.int64]) -> None:
        self.documents = documents
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, turn: int) -> Document:
        """Return the document whose turn it is; after the last comes the first again."""
        return self.documents[int(self.positions[turn % len(self.positions)])]


class RealDocuments:
    """Views of documents that stand for real ones: the degraded domain, or a set of photos with labels."""

    def __init__(self, documents: Documents, view: View, size: int) -> None:
        self.documents = documents
        self.view = view
        self.size = size

    def crop(self, turn: int, rng: np.random.Generator) -> tuple[Pixels, str]:
        """Return a view of the document whose turn it is."""
        document = self.documents.read(turn)
        square = view_of(document, self.view, self.size, rng)
        return np.asarray(seen(document.image, square, self.size), np.uint8), document.path


class RealPhotos:
    """Photos of seals, each filling its picture.

    Args:
        photos: Of one split.
        view: "page" and "seal" give the whole picture, "patch" a part of it.
        size: Side of what is asked for.
        seal_side: Side of the drawn seals, to which photos are brought for patches, so that strokes are as wide.
    """

    def __init__(self, photos: Photos, view: View, size: int, seal_side: float) -> None:
        self.photos = photos
        self.view = view
        self.size = size
        self.seal_side = seal_side

    def crop(self, turn: int, rng: np.random.Generator) -> tuple[Pixels, str]:
        """Return a view of the photo whose turn it is."""
        pixels, path = self.photos.read(turn)
        height, width = pixels.shape[:2]
        if self.view != "patch":
            square = around((0, 0, width, height), 0)
            return np.asarray(seen(pixels, square, self.size), np.uint8), path
        scale = max(_COMMON_ROOM * self.seal_side / max(height, width), self.size / min(height, width))
        wh = max(self.size, round(width * scale)), max(self.size, round(height * scale))
        pixels = np.asarray(cv2.resize(pixels, wh, interpolation=cv2.INTER_AREA), np.uint8)
        square = square_of("patch", self.size, pixels.shape[:2], (), ink_like(pixels), rng)
        return np.asarray(seen(pixels, square, self.size), np.uint8), path


class MaskedSeals:
    """Pictures of real seals with masks of their ink."""

    def __init__(self, pictures: Sequence[MaskedPicture], view: View, size: int) -> None:
        self.pictures = pictures
        self.view = view
        self.size = size

    def crop(self, turn: int, rng: np.random.Generator) -> tuple[Pixels, str]:
        """Return a view of the picture whose turn it is."""
        picture = self.pictures[turn % len(self.pictures)]
        image, ink = picture.read()
        square = square_of(self.view, self.size, image.shape[:2], boxes_in(ink), ink, rng)
        return np.asarray(seen(image, square, self.size), np.uint8), picture.path


def view_of(document: Document, view: View, size: int, rng: np.random.Generator) -> Square:
    """Draw the square of a document that a view shows."""
    boxes = [seal.box_xyxy for seal in document.seals]
    return square_of(view, size, document.ink.shape, boxes, document.ink, rng)


def boxes_in(ink: NDArray[np.bool_]) -> list[tuple[float, float, float, float]]:
    """Return a box around each seal of a mask: strokes that lie closer than a thirtieth of the picture are one seal."""
    reach = max(3, 2 * round(0.03 * min(ink.shape)) + 1)
    near = cv2.dilate(ink.astype(np.uint8), np.ones((reach, reach), np.uint8))
    _, labels = cv2.connectedComponents(near)
    labels[~ink] = 0
    boxes = []
    for number in np.unique(labels[ink]).tolist():
        rows, columns = np.nonzero(labels == number)
        if len(rows) >= 16:  # less is a speck
            boxes.append((float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)))
    return boxes


def split_seed(seed: int, split: Split) -> int:
    """Return the seed of a split's drawn documents, which no other split draws."""
    return 3 * seed + ("train", "val", "test").index(split)


def open_documents(
    seals: str, split: Split, seed: int, settings: DocumentSettings, domain: Domain, holdout: float
) -> Documents:
    """Return the documents of a split: drawn ones, or those of a written set that fall into it."""
    if seals == DRAWN:
        return DrawnDocuments(split_seed(seed, split), replace(settings, domain=domain))
    return _written(seals, split, holdout, "data.seals")


def open_real(
    real: str | list[str],
    split: Split,
    seed: int,
    settings: DocumentSettings,
    view: View,
    size: int,
    holdout: float,
) -> RealSeals:
    """Return the real seals of a split.

    Args:
        real: "drawn" for degraded documents, a written set, a folder with `images` and `masks` in it, or pictures of
            one seal each: folder, manifest or a list of these.
        split: Which split; files go by a hash of their name.
        seed: Decides what is drawn.
        settings: What is drawn.
        view: What is shown.
        size: Side of what is shown.
        holdout: Share of files that is not trained on.
    """
    if real == DRAWN:
        drawn = DrawnDocuments(split_seed(seed, split), replace(settings, domain="degraded"), REAL_FROM)
        return RealDocuments(drawn, view, size)
    if isinstance(real, str) and is_seal_set(real):
        return RealDocuments(_written(real, split, holdout, "data.real"), view, size)
    if isinstance(real, str) and all((Path(real) / part).is_dir() for part in ("images", "masks")):
        pictures = masked_pictures(Path(real) / "images", Path(real) / "masks")
        positions = _positions([picture.path for picture in pictures], split, holdout, f"data.real {real}")
        return MaskedSeals([pictures[i] for i in positions], view, size)
    side = settings.size * sum(settings.sides) / 2
    return RealPhotos(photos_of_split(real, None, split, holdout), view, size, side)


def _written(folder: str, split: Split, holdout: float, option: str) -> WrittenDocuments:
    documents = read_seal_set(folder)
    return WrittenDocuments(documents, _positions(documents.files, split, holdout, f"{option} {folder}"))


def _positions(paths: Sequence[str], split: Split, holdout: float, what: str) -> NDArray[np.int64]:
    positions = positions_of(paths, split, holdout)
    if not len(positions):
        raise ValueError(
            f"no document of {what} is left for the {split} split at data.holdout {holdout}: add some or raise it"
        )
    return positions
