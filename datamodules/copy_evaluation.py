"""Images of known copies to be found again: queries, references and a background, and the DISC folder layout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.base import (
    ProvenanceDataModule,
    ReadGuard,
    Sample,
    SampleKey,
    SkippedSample,
    collate_samples,
    pack_images,
)
from datamodules.images.decoding import opened_header
from datamodules.images.sources import FileSource, ImageSource, open_images
from datamodules.images.splits import Split
from lightning_modules.functional.challenge_files import read_ground_truth
from lightning_modules.functional.resizing import resized_hw

REFERENCE, QUERY, BACKGROUND = 0, 1, 2
Indices = NDArray[np.int64]
_HEADER_READERS = 16  # threads that wait for disks


@dataclass(frozen=True)
class RetrievalTask:
    """What is to be found: the truth about an evaluation data set, by index."""

    names: Sequence[str]
    """Ids of the images, such as Q00001."""
    role: NDArray[np.int8]
    """0 reference, 1 query, 2 background."""
    pairs: Indices
    """Index of a query and of the reference it is a copy of, (T, 2)."""
    groups: Mapping[str, Indices] = field(default_factory=dict)
    """Indices of queries by kind of edit; may be empty."""


class EvaluationImages(Dataset[Sample]):
    """Images of several parts, one after the other, each with its role, resized as Pillow's bilinear filter does.

    Args:
        parts: Role and images of each part.
        resize: ``short_288``, ``skew_320``, ``long_800`` and the like.
    """

    def __init__(self, parts: Sequence[tuple[int, ImageSource]], resize: str) -> None:
        resized_hw(1, 1, resize)  # says what is wrong with it
        self.sources = [source for _, source in parts]
        self.role = np.repeat([role for role, _ in parts], [len(source) for source in self.sources]).astype(np.int8)
        self.resize = resize
        self._ends = np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return len(self.role)

    def __getitem__(self, key: SampleKey) -> Sample:
        source, position = self._place(key.index)
        pixels = resize_as_pillow(source.read(position), self.resize)
        return {
            "image": torch.from_numpy(pixels).permute(2, 0, 1),
            "index": key.index,
            "path": source.path(position),
            "role": int(self.role[key.index]),
        }

    def names(self) -> Iterator[str]:
        """Yield the id of each image."""
        for index, role in enumerate(self.role.tolist()):
            source, position = self._place(index)
            yield image_id(Path(source.path(position)).stem, role)

    def by_size(self) -> Sequence[int]:
        """Return all indices, images of one size after resizing beside each other, so that they can be stacked."""
        if self.resize.startswith("skew"):
            return range(len(self))
        with ThreadPoolExecutor(_HEADER_READERS) as threads:
            shapes = list(threads.map(self._shape_hw, range(len(self))))
        return sorted(range(len(self)), key=shapes.__getitem__)  # stable: by index within a size

    def _place(self, index: int) -> tuple[ImageSource, int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.sources[part], index - int(self._ends[part]) + len(self.sources[part])

    def _shape_hw(self, index: int) -> tuple[int, int]:
        source, position = self._place(index)
        if not isinstance(source, FileSource):
            return 0, 0  # drawn scenes have one size
        try:
            with opened_header(source.path(position)) as header:
                return resized_hw(header.height, header.width, self.resize)
        except Exception:  # reading the image will say what is wrong with it
            return 0, 0


def resize_as_pillow(pixels: NDArray[np.uint8], mode: str) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) resized by Pillow itself: what the published figures were measured with."""
    height, width = resized_hw(pixels.shape[0], pixels.shape[1], mode)
    if (height, width) == pixels.shape[:2]:
        return pixels
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def image_id(stem: str, role: int) -> str:
    """Return the challenge's id, such as Q00001, R000001 or T000001, of a file named so; of others the stem."""
    letter, digits = {REFERENCE: ("R", 6), QUERY: ("Q", 5), BACKGROUND: ("T", 6)}[role]
    match = re.fullmatch(rf"{letter}(\d+)", stem, re.IGNORECASE)
    return stem if match is None else f"{letter}{int(match[1]):0{digits}d}"


def match_pairs(
    named: Sequence[tuple[str, str]], names: Sequence[str], role: NDArray[np.int8], where: str | Path
) -> Indices:
    """Return pairs of ids as pairs of indices (T, 2); an id that no image has, or several, is an error."""
    named = list(dict.fromkeys(named))
    columns: list[list[int]] = []
    for side, (wanted, what) in enumerate(((QUERY, "queries"), (REFERENCE, "references"))):
        of_role = np.flatnonzero(role == wanted).tolist()
        index = {names[i]: i for i in of_role}
        if len(index) < len(of_role):
            twice = next(names[i] for i in of_role if index[names[i]] != i)
            raise ValueError(f"two {what} have the id {twice}: rename one of the files")
        absent = sorted({pair[side] for pair in named} - set(index))
        if absent:
            raise ValueError(
                f"{where} names {len(absent)} {what} that are not there, such as {absent[0]}: "
                "add the images or take out the lines"
            )
        columns.append([index[pair[side]] for pair in named])
    return np.array(columns, np.int64).T.reshape(-1, 2)


def collate_any_size(samples: Sequence[Sample | SkippedSample]) -> dict[str, Any]:
    """Merge samples into a batch: images of one size stacked, others packed, which the base turns into a list."""
    batch = collate_samples(samples, stack=False)
    images: list[Tensor] = batch.pop("image")
    if images and len({image.shape for image in images}) == 1:
        batch["image"] = torch.stack(images)
    else:
        batch["packed_image"] = pack_images(images)
    return batch


class CopyEvaluationDataModule(ProvenanceDataModule):
    """Base of evaluation data: a subclass lists the parts of a split and knows which are copies.

    Batches hold images of one size where the sizes allow it, else lists.

    Args:
        resize: How images are resized: ``short_N``, ``long_N`` or ``skew_N``.
        batch_size: Images a step and rank.
        eval_batch_size: The same, under the name it has where data are also trained on; None means `batch_size`.
        num_workers: Processes that read images, per rank; None takes the cores this rank can have, less one.
        on_unreadable: "stop" ends the run with one line; "skip" leaves the file out and lists it in skipped.jsonl.
        paths: Files, folders and manifests to predict on.
    """

    def __init__(
        self,
        resize: str = "short_288",
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        on_unreadable: Literal["stop", "skip"] = "stop",
        paths: str | list[str] | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, None, on_unreadable, paths)
        self.resize = resize
        resized_hw(1, 1, resize)  # says what is wrong with it

    def parts(self, split: Split) -> Sequence[tuple[int, ImageSource]]:
        """Return role and images of each part of a split, having checked that they are there."""
        raise NotImplementedError

    def retrieval_task(self, split: Literal["val", "test"]) -> RetrievalTask:
        """Return the truth about the images of a split."""
        raise NotImplementedError

    def build_dataset(self, split: Split) -> EvaluationImages:
        """Build the images of a split; there is none to train on."""
        if split == "train":
            raise ValueError(f"{type(self).__name__} has no train split: use it with test, train on another")
        return EvaluationImages(self.parts(split), self.resize)

    def val_dataloader(self) -> DataLoader[Any]:
        """All images of the validation split, those of one size together."""
        return self._by_size("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """All images of the test split, those of one size together."""
        return self._by_size("test")

    def images_of(self, split: Literal["val", "test"]) -> EvaluationImages:
        """Return the images of a split that was set up."""
        images = self.datasets[split]
        assert isinstance(images, EvaluationImages)
        return images

    def _by_size(self, split: Literal["val", "test"]) -> DataLoader[Any]:
        images = self.images_of(split)
        return DataLoader(
            ReadGuard(images, self.on_unreadable),
            batch_size=self.eval_batch_size,
            sampler=self._sampler(images.by_size(), shuffle=False, pad=True),
            collate_fn=collate_any_size,
            **self._worker_options(),
        )


class DiscEvaluationDataModule(CopyEvaluationDataModule):
    """Reads DISC 2021 or any images of known copies: three folders and a CSV of query and reference ids.

    Each of the four paths is below `root`, or absolute; images may also be a manifest. Validation leaves the
    background out: it is needed for score normalisation and whitening alone.

    Args:
        root: Folder of the data set.
        queries: Images that may be copies, named Q00000 and so on.
        references: Images that may have been copied, named R000000 and so on.
        background: Images that are neither, for score normalisation and whitening; null for none.
        ground_truth: CSV of query_id,reference_id; a header and lines without a reference are left out.
        resize: How images are resized: ``short_N``, ``long_N`` or ``skew_N``.
        batch_size: Images a step and rank.
        eval_batch_size: The same, under the name it has where data are also trained on; None means `batch_size`.
        num_workers: Processes that read images, per rank; None takes the cores this rank can have, less one.
        on_unreadable: "stop" ends the run with one line; "skip" leaves the file out and lists it in skipped.jsonl.
        paths: Files, folders and manifests to predict on.
    """

    def __init__(
        self,
        root: str,
        queries: str = "val_query",
        references: str = "val_ref",
        background: str | None = "training",
        ground_truth: str = "val_groundtruth_matches.csv",
        resize: str = "short_288",
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        on_unreadable: Literal["stop", "skip"] = "stop",
        paths: str | list[str] | None = None,
    ) -> None:
        super().__init__(resize, batch_size, eval_batch_size, num_workers, on_unreadable, paths)
        self.root = Path(root)
        self.queries = queries
        self.references = references
        self.background = background
        self.ground_truth = ground_truth

    def parts(self, split: Split) -> Sequence[tuple[int, ImageSource]]:
        """Return references, queries and, for test, the background, in this order."""
        wanted = {"references": (REFERENCE, self.references), "queries": (QUERY, self.queries)}
        if split == "test" and self.background is not None:
            wanted["background"] = (BACKGROUND, self.background)
        if not (self.root / self.ground_truth).is_file():
            raise FileNotFoundError(
                f"no ground truth {self.root / self.ground_truth}: set data.root to the folder of DISC, "
                "or data.ground_truth to a CSV of query_id,reference_id"
            )
        return [(role, self._opened(name, path)) for name, (role, path) in wanted.items()]

    def retrieval_task(self, split: Literal["val", "test"]) -> RetrievalTask:
        """Return the truth of the ground truth file."""
        images = self.images_of(split)
        names = list(images.names())
        truth = self.root / self.ground_truth
        named = [
            (image_id(query, QUERY), image_id(reference, REFERENCE)) for query, reference in read_ground_truth(truth)
        ]
        return RetrievalTask(names, images.role, match_pairs(named, names, images.role, truth))

    def _opened(self, name: str, path: str) -> ImageSource:
        located = path if "://" in path else self.root / path
        if isinstance(located, Path) and not located.exists():
            remedy = ", or null to do without" if name == "background" else ""
            raise FileNotFoundError(f"no {name} at {located}: set data.{name} to a folder of images{remedy}")
        return open_images(located)
