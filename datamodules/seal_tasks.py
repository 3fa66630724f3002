"""The tasks that seal data are made for, on drawn documents and on written sets: find ink, verify seals, read lines."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, Literal

from torch.utils.data import Dataset

from datamodules.base import ProvenanceDataModule, Sample
from datamodules.images.splits import Split, positions_of
from datamodules.seal_sets import SealSet, read_seal_set
from datamodules.seal_task_samples import (
    Documents,
    DrawnDocuments,
    InkWindows,
    LineCutter,
    PageCutter,
    PartStore,
    PrintedLines,
    SealPairs,
    WrittenDocuments,
    seal_crops,
)
from datamodules.transforms.documents.samples import DocumentSettings
from datamodules.transforms.recut import RecutSettings

DRAWN = ("clean", "degraded")
STREAM_OF_SPLIT: dict[Split, int] = {"train": 710, "val": 711, "test": 712}
LINE_HEIGHT = 24  # what the reader takes


class SealTaskDataModule(ProvenanceDataModule):
    """What the three tasks share: where documents come from, split by split.

    A source is `clean` or `degraded`, documents drawn on the fly, or the folder of a written or realised set. Splits
    share no document: drawn ones have seeds of their own, those of one set are dealt by a hash of their names.

    Args:
        train: Source of training and validation.
        test: Source of the test split.
        document: What is drawn; its domain follows from the sources.
        train_samples: Samples an epoch.
        val_samples: Size of the frozen validation set.
        test_samples: Size of the frozen test set.
        holdout: Share of a set kept from training, half for validation, half for test.
        keep: Most documents of a set whose crops each worker keeps.
        batch_size: Samples a step and rank in training.
        eval_batch_size: Samples a step and rank elsewhere; None means `batch_size`.
        num_workers: Processes that make samples, per rank; None takes the cores this rank can have, less one.
        seed: Decides order and draws of training, with epoch and index; None takes the run's `seed_everything`.
        eval_seed: Decides the draws of the frozen sets.
        on_unreadable: "stop" ends the run with one line; "skip" leaves the file out and lists it in skipped.jsonl.
    """

    def __init__(
        self,
        train: str = "degraded",
        test: str = "degraded",
        document: DocumentSettings | None = None,
        train_samples: int = 4096,
        val_samples: int = 128,
        test_samples: int = 256,
        holdout: float = 0.2,
        keep: int = 400,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        eval_seed: int = 0,
        on_unreadable: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, on_unreadable)
        self.sources: dict[Split, str] = {"train": train, "val": train, "test": test}
        self.document = document or DocumentSettings()
        self.samples: dict[Split, int] = {"train": train_samples, "val": val_samples, "test": test_samples}
        self.holdout = holdout
        self.keep = keep
        self.eval_seed = eval_seed

    def build_dataset(self, split: Split) -> Dataset[Sample]:
        """Build a split; its documents are in no other."""
        seed = self.seed if split == "train" else self.eval_seed
        documents = self._documents(split, seed)
        keep = self.keep if isinstance(documents, WrittenDocuments) else 0
        return self.task(documents, split, {"seed": seed, "stream": STREAM_OF_SPLIT[split]}, keep)

    @abstractmethod
    def task(self, documents: Documents, split: Split, draws: dict[str, int], keep: int) -> Dataset[Sample]:
        """Return the samples of a task.

        Args:
            documents: Of the split.
            split: Which.
            draws: `seed` and `stream` of its draws.
            keep: Most documents whose parts are kept.
        """

    def setup(self, stage: str) -> None:
        """Build what the stage needs; nothing is predicted here."""
        if stage == "predict":
            raise ValueError(f"{type(self).__name__} trains and tests: predict with the datamodule of your pictures")
        super().setup(stage)

    def _documents(self, split: Split, seed: int) -> Documents:
        source = self.sources[split]
        if source in DRAWN:
            domain: Any = source
            # Three streams of seeds that never meet.
            own = 3 * seed + list(STREAM_OF_SPLIT).index(split)
            return DrawnDocuments(replace(self.document, domain=domain), own)
        whole = read_seal_set(source)
        own_set = split == "test" and source != self.sources["train"]
        places = range(len(whole)) if own_set else positions_of(_paths(whole), split, self.holdout).tolist()
        if not len(places):
            raise ValueError(
                f"the seal set {source} of {len(whole)} documents has none for {split}: write a larger one"
            )
        return WrittenDocuments(whole, places)


def _paths(whole: SealSet) -> list[str]:
    return [whole.path(place) for place in range(len(whole))]


class SealSegmentationDataModule(SealTaskDataModule):
    """Windows of documents with masks of seals' ink, for `WatermarkSegmentationModule`.

    Args:
        size: Side of the windows, at the documents' own scale.
        reduce: By what documents are made smaller before.
        on_ink: Share of windows laid over ink; the others lie anywhere.
        target: What is to be found: `visible` ink, all of the clean `ink` also where none was printed, or `area`.
        train: Source of training and validation: `clean`, `degraded` or the folder of a set.
        test: Source of the test split.
        document: What is drawn.
        train_samples: Samples an epoch.
        val_samples: Size of the frozen validation set.
        test_samples: Size of the frozen test set.
        holdout: Share of a set kept from training, half for validation, half for test.
        keep: Most documents of a set that each worker keeps.
        batch_size: Samples a step and rank in training.
        eval_batch_size: Samples a step and rank elsewhere; None means `batch_size`.
        num_workers: Processes that make samples, per rank; None takes the cores this rank can have, less one.
        seed: Decides order and draws of training, with epoch and index; None takes the run's `seed_everything`.
        eval_seed: Decides the draws of the frozen sets.
        on_unreadable: "stop" ends the run with one line; "skip" leaves the file out and lists it in skipped.jsonl.
    """

    def __init__(
        self,
        size: int = 128,
        reduce: float = 1.0,
        on_ink: float = 0.8,
        target: Literal["visible", "ink", "area"] = "visible",
        train: str = "degraded",
        test: str = "degraded",
        document: DocumentSettings | None = None,
        train_samples: int = 4096,
        val_samples: int = 128,
        test_samples: int = 256,
        holdout: float = 0.2,
        keep: int = 400,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        eval_seed: int = 0,
        on_unreadable: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__(
            *(train, test, document, train_samples, val_samples, test_samples, holdout, keep),
            *(batch_size, eval_batch_size, num_workers, seed, eval_seed, on_unreadable),
        )
        if reduce <= 0:
            raise ValueError(f"data.reduce must be above 0, got {reduce}")
        self.size = size
        self.reduce = reduce
        self.on_ink = on_ink
        self.target = target

    def task(self, documents: Documents, split: Split, draws: dict[str, int], keep: int) -> Dataset[Sample]:
        """Return windows."""
        store = PartStore(documents, PageCutter(self.target, self.reduce), keep)
        return InkWindows(store, self.samples[split], **draws, size=self.size, on_ink=self.on_ink)


class SealVerificationDataModule(SealTaskDataModule):
    """Pairs of a questioned seal on its page and a specimen: of the same seal, or of one re-cut after it.

    Specimens are clean ink, as registers of seals keep it, laid over the impression with a small error. Every second
    pair is genuine. Seals that the page's edge cuts or that overlap are left out.

    Args:
        size: Side of both pictures.
        recut: How far a re-cut seal is from the genuine one.
        train: Source of training and validation: `clean`, `degraded` or the folder of a set.
        test: Source of the test split.
        document: What is drawn.
        train_samples: Samples an epoch.
        val_samples: Size of the frozen validation set.
        test_samples: Size of the frozen test set.
        holdout: Share of a set kept from training, half for validation, half for test.
        keep: Most documents of a set whose seals each worker keeps.
        batch_size: Samples a step and rank in training.
        eval_batch_size: Samples a step and rank elsewhere; None means `batch_size`.
        num_workers: Processes that make samples, per rank; None takes the cores this rank can have, less one.
        seed: Decides order and draws of training, with epoch and index; None takes the run's `seed_everything`.
        eval_seed: Decides the draws of the frozen sets.
        on_unreadable: "stop" ends the run with one line; "skip" leaves the file out and lists it in skipped.jsonl.
    """

    def __init__(
        self,
        size: int = 96,
        recut: RecutSettings | None = None,
        train: str = "degraded",
        test: str = "degraded",
        document: DocumentSettings | None = None,
        train_samples: int = 4096,
        val_samples: int = 128,
        test_samples: int = 256,
        holdout: float = 0.2,
        keep: int = 400,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        eval_seed: int = 0,
        on_unreadable: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__(
            *(train, test, document, train_samples, val_samples, test_samples, holdout, keep),
            *(batch_size, eval_batch_size, num_workers, seed, eval_seed, on_unreadable),
        )
        if size < 32:
            raise ValueError(f"data.size of pairs must be at least 32, got {size}")
        self.size = size
        self.recut = recut or RecutSettings()

    def task(self, documents: Documents, split: Split, draws: dict[str, int], keep: int) -> Dataset[Sample]:
        """Return pairs."""
        store = PartStore(documents, seal_crops, keep)
        return SealPairs(store, self.samples[split], **draws, size=self.size, recut=self.recut)


class SealReadingDataModule(SealTaskDataModule):
    """Crops of printed lines of 24 px height, for a reader; those of the test split lie under seals.

    Args:
        width: Width of all samples; longer lines are left out.
        train_lines: `all` printed lines, or those `under_seals` alone.
        train: Source of training and validation: `clean`, `degraded` or the folder of a set.
        test: Source of the test split.
        document: What is drawn.
        train_samples: Samples an epoch.
        val_samples: Size of the frozen validation set.
        test_samples: Size of the frozen test set.
        holdout: Share of a set kept from training, half for validation, half for test.
        keep: Most documents of a set whose lines each worker keeps.
        batch_size: Samples a step and rank in training.
        eval_batch_size: Samples a step and rank elsewhere; None means `batch_size`.
        num_workers: Processes that make samples, per rank; None takes the cores this rank can have, less one.
        seed: Decides order and draws of training, with epoch and index; None takes the run's `seed_everything`.
        eval_seed: Decides the draws of the frozen sets.
        on_unreadable: "stop" ends the run with one line; "skip" leaves the file out and lists it in skipped.jsonl.
    """

    def __init__(
        self,
        width: int = 256,
        train_lines: Literal["all", "under_seals"] = "all",
        train: str = "degraded",
        test: str = "degraded",
        document: DocumentSettings | None = None,
        train_samples: int = 4096,
        val_samples: int = 128,
        test_samples: int = 256,
        holdout: float = 0.2,
        keep: int = 400,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        eval_seed: int = 0,
        on_unreadable: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__(
            *(train, test, document, train_samples, val_samples, test_samples, holdout, keep),
            *(batch_size, eval_batch_size, num_workers, seed, eval_seed, on_unreadable),
        )
        self.width = width
        self.train_lines = train_lines

    def task(self, documents: Documents, split: Split, draws: dict[str, int], keep: int) -> Dataset[Sample]:
        """Return lines; all of validation and test lie under seals."""
        under_seals = split != "train" or self.train_lines == "under_seals"
        store = PartStore(documents, LineCutter(LINE_HEIGHT, self.width, under_seals), keep)
        return PrintedLines(store, self.samples[split], **draws, width=self.width)
