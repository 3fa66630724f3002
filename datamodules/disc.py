"""Photos in two views for training descriptors, and edited copies of other photos to find again."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.base import ProvenanceDataModule, Sample, SampleKey, SkippedSample
from datamodules.copy_evaluation import BACKGROUND, QUERY, REFERENCE, RetrievalTask, collate_any_size
from datamodules.images.photos import Photos, photos_of_split
from datamodules.images.randomness import sample_rng
from datamodules.images.splits import Split
from datamodules.transforms.copy_edits import EDITS, edit
from datamodules.transforms.copy_views import ViewSettings, make_view
from lightning_modules.functional.resizing import resize, resized_hw

VIEWS = 2
VIEW_STREAM = 201
EDIT_STREAM: dict[Split, int] = {"val": 202, "test": 203}


class PhotoViews(Dataset[Sample]):
    """Views of one photo each, drawn anew each epoch."""

    def __init__(self, photos: Photos, settings: ViewSettings, length: int, seed: int) -> None:
        self.photos = photos
        self.settings = settings
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey) -> Sample:
        rng = sample_rng(self.seed, key.epoch, key.index, VIEW_STREAM)
        # Turns go on over epochs, so that an endless procedural source never shows a scene twice.
        turn = key.epoch * self.length + key.index
        photo, path = self.photos.read(turn, self.settings.read_size)
        views = np.stack([make_view(photo, self.settings, rng) for _ in range(VIEWS)])
        # The photo, not the turn, tells which views are copies of one another.
        source = int(self.photos.positions[turn % len(self.photos)])
        return {"views": torch.from_numpy(views).permute(0, 3, 1, 2), "index": source, "path": path}


class EditedCopies(Dataset[Sample]):
    """A retrieval task made from photos: references, queries that are edits of some of them or of other photos.

    Positions: first the references, then the queries, then the background. The first `copied` queries are edits of the
    references in turn, the others of photos that are no reference. A photo whose turn comes again gets another edit.
    """

    def __init__(
        self,
        photos: Photos,
        references: int,
        queries: int,
        background: int,
        copied: int,
        mode: str,
        seed: int,
        stream: int,
    ) -> None:
        if copied > queries or (copied and not references):
            raise ValueError(f"{copied} queries cannot be copies of {references} references in {queries} queries")
        sourceless = queries - copied
        # Where photos are few, those that are no reference are edited several times, too.
        left = len(photos) - references - background
        if left < (sourceless > 0):
            raise ValueError(
                f"a task of {references} references, {background} background pictures and {sourceless} queries without "
                f"source needs more photos than the {len(photos)} of its split: name more photos or lower "
                "data.references, data.queries, data.background"
            )
        self.photos = photos
        self.counts = (references, queries, background)
        self.copied = copied
        self.strangers = min(sourceless, left)
        self.mode = mode
        self.seed = seed
        self.stream = stream
        self.kinds = list(EDITS)

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, key: SampleKey) -> Sample:
        role, number = self.role_of(key.index)
        photo, path = self.photos.read(self._photo_of(role, number))
        if role == QUERY:
            rng = sample_rng(self.seed, 0, key.index, self.stream)
            unrelated = self._unrelated(number)
            below = None if unrelated is None else self.photos.read(unrelated)[0]
            photo = edit(photo, self.kind_of(number), rng, background=below)
        pixels = np.require(photo, requirements=["C", "W"])
        image = resize(torch.from_numpy(pixels).permute(2, 0, 1), self.mode)
        return {"image": image, "index": key.index, "path": path, "role": role}

    def kind_of(self, query: int) -> str:
        """Return which edit a query got; every kind comes about equally often, with and without source."""
        turn = self._turn_of(query)[1]
        first = query - turn * (self.counts[0] if query < self.copied else self.strangers)
        return self.kinds[(first + turn) % len(self.kinds)]

    def role_of(self, index: int) -> tuple[int, int]:
        """Return the role of a position and its number among those of that role."""
        for role, count in enumerate(self.counts):
            if index < count:
                return role, index
            index -= count
        raise IndexError(index)

    def task(self) -> RetrievalTask:
        """Return names, roles and true pairs."""
        references, queries, background = self.counts
        groups: dict[str, list[int]] = defaultdict(list)
        for query in range(queries):
            kind = self.kind_of(query)
            groups[kind].append(references + query)
            groups[kind.split("/")[0]].append(references + query)
        number = np.arange(self.copied, dtype=np.int64)
        source = number % max(1, references)
        names = [f"R{i:06d}" for i in range(references)]
        names += [f"Q{i:05d}" for i in range(queries)]
        names += [f"T{i:06d}" for i in range(background)]
        return RetrievalTask(
            names=names,
            role=np.repeat(np.arange(3, dtype=np.int8), self.counts),
            pairs=np.stack([references + number, source], axis=1),
            groups={name: np.array(sorted(set(members)), np.int64) for name, members in sorted(groups.items())},
        )

    def _photo_of(self, role: int, number: int) -> int:
        """Return which photo stands at a role's number: references, then sourceless queries, then background."""
        references = self.counts[0]
        if role == REFERENCE:
            return number
        if role == QUERY:
            return self._turn_of(number)[0]
        return references + self.strangers + number

    def _turn_of(self, query: int) -> tuple[int, int]:
        """Return which photo a query is made of, and how many queries of its kind were before."""
        if query < self.copied:
            turn, photo = divmod(query, self.counts[0])
            return photo, turn
        turn, stranger = divmod(query - self.copied, self.strangers)
        return self.counts[0] + stranger, turn

    def _unrelated(self, query: int) -> int | None:
        """Return a photo to lay a query over, one that nobody looks for: of the background, or a sourceless query's."""
        background = self.counts[2]
        if background:
            return self._photo_of(BACKGROUND, query % background)
        own = self._photo_of(QUERY, query)
        others = [photo for photo in range(self.counts[0], self.counts[0] + self.strangers) if photo != own]
        return others[query % len(others)] if others else None


class DiscDataModule(ProvenanceDataModule):
    """Trains on two views of each photo; validates and tests by finding edited copies of photos never trained on.

    For the DISC benchmark itself take `datamodules.copy_evaluation.DiscEvaluationDataModule`.

    Args:
        photos: Folder (with sub-folders, as ImageNet's), manifest, list of these, or `procedural://COUNT?size=S` for
            drawn scenes that need no files.
        test_photos: Photos of the test split alone, which training and validation leave out; None takes the hashed
            test part of `photos`.
        views: The pipeline of training views: `simclr`, `blur` or `advanced`, and its settings.
        train_samples: Photos an epoch; None means all.
        references: Pictures to be found, of each evaluation split.
        queries: Edited pictures to look for, of which `copied` have a reference. A photo is edited several times, each
            time in another way, where there are more queries than photos for them.
        copied: Queries with a reference; None means half of them.
        background: Pictures of each evaluation split that are neither: for score normalisation and whitening.
        eval_resize: How evaluated pictures are resized: `short_288`, `skew_320`, `long_800`.
        holdout: Share of the files kept from training, half for validation, half for test.
        batch_size: Photos a step and rank in training.
        eval_batch_size: Pictures a step and rank elsewhere; None means `batch_size`.
        num_workers: Processes that make samples, per rank; None takes the cores this rank can have, less one.
        seed: Decides order and draws of training, with epoch and index; None takes the run's `seed_everything`.
        eval_seed: Decides the edits of the frozen sets, so that runs of many seeds are scored on one set.
        on_unreadable: "stop" ends the run with one line; "skip" leaves the file out and lists it in skipped.jsonl.
        paths: Files, folders and manifests to predict on.
    """

    def __init__(
        self,
        photos: str | list[str] = "procedural://1000000?size=256",
        test_photos: str | list[str] | None = None,
        views: ViewSettings | None = None,
        train_samples: int | None = None,
        references: int = 400,
        queries: int = 400,
        copied: int | None = None,
        background: int = 200,
        eval_resize: str = "skew_320",
        holdout: float = 0.2,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        eval_seed: int = 0,
        on_unreadable: Literal["stop", "skip"] = "stop",
        paths: str | list[str] | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, on_unreadable, paths)
        resized_hw(1, 1, eval_resize)  # says what is wrong with it
        self.photos = photos
        self.test_photos = test_photos
        self.views = views or ViewSettings()
        self.train_samples = train_samples
        self.references = references
        self.queries = queries
        self.copied = queries // 2 if copied is None else copied
        self.background = background
        self.eval_resize = eval_resize
        self.holdout = holdout
        self.eval_seed = eval_seed

    def build_dataset(self, split: Split) -> Dataset[Sample]:
        """Build a split; its photos are in no other."""
        photos = photos_of_split(self.photos, self.test_photos, split, self.holdout)
        if split == "train":
            return PhotoViews(photos, self.views, self.train_samples or len(photos), self.seed)
        return EditedCopies(
            photos,
            self.references,
            self.queries,
            self.background,
            self.copied,
            self.eval_resize,
            self.eval_seed,
            EDIT_STREAM[split],
        )

    def collate_evaluation(self, samples: Sequence[Sample | SkippedSample]) -> dict[str, Any]:
        """Merge pictures of one size or of several."""
        return collate_any_size(samples)

    def retrieval_task(self, split: Literal["val", "test"]) -> RetrievalTask:
        """Return what there is to be found in a split."""
        copies = self.datasets[split]
        assert isinstance(copies, EditedCopies)
        return copies.task()
