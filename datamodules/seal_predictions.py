"""Whole documents of any size with their labels, for predict."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.base import Sample, SampleKey
from datamodules.seal_sets import (
    MaskedPicture,
    SealSet,
    annotations_of,
    is_seal_set,
    masked_pictures,
    planes_of,
    read_seal_set,
    text_of,
)
from datamodules.seal_sources import boxes_in, split_seed
from datamodules.transforms.documents.samples import DocumentSettings, Domain, draw_document

# Names of a document's planes in a batch, by the folders they are written to.
BATCH_NAME = {"images": "image", "pages": "page", "ink": "ink", "visible": "visible", "alpha": "alpha", "area": "area"}
PREDICT_FROM = 1 << 41  # number of the first drawn document to predict on, beyond those that are tested on

Record = tuple[dict[str, NDArray[np.uint8]], list[tuple[float, float, float, float]], dict[str, Any]]


class Predictable(Protocol):
    """Documents by position: planes by the folder they are written to, boxes of seals, labels as they are written."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> str:
        """Name a document."""
        ...

    def record(self, index: int) -> Record:
        """Return a document."""
        ...


class DrawnToPredict:
    """The first drawn documents of a seed."""

    def __init__(self, seed: int, settings: DocumentSettings, count: int) -> None:
        self.seed = seed
        self.settings = settings
        self.count = count

    def __len__(self) -> int:
        return self.count

    def path(self, index: int) -> str:
        """Name a document."""
        return f"drawn_{self.settings.domain}_{index:06d}.png"

    def record(self, index: int) -> Record:
        """Draw a document."""
        document = draw_document(self.seed, PREDICT_FROM + index, self.settings)
        labels = {"annotations": annotations_of(document), "text": text_of(document)}
        return planes_of(document), [seal.box_xyxy for seal in document.seals], labels


class WrittenToPredict:
    """A written set, its labels as they are."""

    def __init__(self, documents: SealSet) -> None:
        self.documents = documents

    def __len__(self) -> int:
        return len(self.documents)

    def path(self, index: int) -> str:
        """Name a document."""
        return self.documents.path(index)

    def record(self, index: int) -> Record:
        """Read a document."""
        annotations = self.documents.annotations(index)
        planes = {plane: self.documents.plane(index, plane) for plane in BATCH_NAME}
        boxes = [(x, y, x + wide, y + high) for x, y, wide, high in (row["bbox"] for row in annotations)]
        return planes, boxes, {"annotations": annotations, "text": self.documents.text(index)}


class MaskedToPredict:
    """A user's synthetic seals: pictures with masks of their ink, and no other labels."""

    def __init__(self, pictures: Sequence[MaskedPicture]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def path(self, index: int) -> str:
        """Name a document."""
        return self.pictures[index].path

    def record(self, index: int) -> Record:
        """Read a document; its seals are found in the mask."""
        image, ink = self.pictures[index].read()
        planes = {"images": image, "ink": np.asarray(255 * ink.astype(np.uint8), np.uint8)}
        return planes, boxes_in(ink), {"annotations": [], "text": []}


class DocumentsToPredict(Dataset[Sample]):
    """Documents as samples of any size; masks are uint8 up to 255."""

    def __init__(self, documents: Predictable) -> None:
        self.documents = documents

    def __len__(self) -> int:
        return len(self.documents)

    def path(self, index: int) -> str:
        """Name a document."""
        return self.documents.path(index)

    def __getitem__(self, key: SampleKey) -> Sample:
        planes, boxes, labels = self.documents.record(key.index)
        tensors = {
            BATCH_NAME[plane]: torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)
            for plane, pixels in planes.items()
        }
        return tensors | {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": labels,
            "index": key.index,
            "path": self.path(key.index),
        }


def open_predictions(
    paths: str | list[str] | None,
    masks: str | None,
    seed: int,
    settings: DocumentSettings,
    domain: Domain,
    count: int,
) -> DocumentsToPredict:
    """Open what is to be predicted on: drawn documents, a written set, or pictures with masks."""
    only = paths[0] if isinstance(paths, list) and len(paths) == 1 else paths
    if not only:
        return DocumentsToPredict(DrawnToPredict(split_seed(seed, "test"), replace(settings, domain=domain), count))
    if isinstance(only, str) and is_seal_set(only):
        return DocumentsToPredict(WrittenToPredict(read_seal_set(only)))
    if masks is None or not isinstance(only, str):
        raise ValueError(
            f"data.paths {paths} is no written set: name one folder of pictures with --data.paths and the folder of "
            "their ink masks with --data.masks, or write a set with `sealmark prepare seals`"
        )
    return DocumentsToPredict(MaskedToPredict(masked_pictures(only, masks)))
