"""Documents with seals, drawn or written before, beside pictures of real seals that are not paired with them."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
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
    unpack_images,
)
from datamodules.images.randomness import sample_rng
from datamodules.images.splits import Split
from datamodules.seal_predictions import DocumentsToPredict, open_predictions
from datamodules.seal_sources import DRAWN, Documents, RealSeals, WrittenDocuments, open_documents, open_real, view_of
from datamodules.transforms.documents.films import filled
from datamodules.transforms.documents.samples import Document, DocumentSettings, Domain
from datamodules.transforms.documents.views import View, seen

VIEW_STREAM, REAL_STREAM = 630, 631
# Side of a drawn document by the side of a view of it: a seal with room around it is then shown at its own scale.
DRAWN_SIDE: dict[View, int] = {"page": 1, "seal": 2, "patch": 4}
PACKED = "packed_"


class SealSamples(Dataset[Sample]):
    """A view of a synthetic document with its labels, and one of a real seal.

    Args:
        documents: Synthetic ones.
        real: Real ones.
        view: What is shown of both.
        size: Side of the views.
        length: Samples an epoch; turns go on over epochs.
        seed: Decides the views, with epoch and index.
        redraw: Whether every epoch has other samples; else all are those of the first.
    """

    def __init__(
        self, documents: Documents, real: RealSeals, view: View, size: int, length: int, seed: int, redraw: bool = True
    ) -> None:
        self.documents = documents
        self.real = real
        self.view: View = view
        self.size = size
        self.length = length
        self.seed = seed
        self.redraw = redraw

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey) -> Sample:
        turn = key.index + (key.epoch * self.length if self.redraw else 0)
        document = self.documents.read(turn)
        square = view_of(document, self.view, self.size, sample_rng(self.seed, 0, turn, VIEW_STREAM))
        real, real_path = self.real.crop(turn, sample_rng(self.seed, 0, turn, REAL_STREAM))
        planes = {
            "image": document.image,
            "page": document.page,
            "ink": document.ink,
            "visible": document.visible,
            "alpha": np.asarray(np.round(255 * document.alpha), np.uint8),
            "text": text_mask(document),
        }
        return {name: channels_first(seen(plane, square, self.size)) for name, plane in planes.items()} | {
            "real": channels_first(real),
            "index": key.index,
            "path": document.path,
            "real_path": real_path,
        }


def text_mask(document: Document) -> NDArray[np.bool_]:
    """Return the pixels (H, W) in which a seal's own lines of text lie."""
    mask = np.zeros(document.ink.shape, np.bool_)
    for seal in document.seals:
        for line in seal.lines:
            mask |= filled(line.polygon, mask.shape)
    return mask


def channels_first(pixels: NDArray[Any]) -> Tensor:
    """Return (H, W) or (H, W, 3) as a tensor (C, H, W) of its own."""
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(np.array(planes.transpose(2, 0, 1), order="C"))


class SealDocumentsDataModule(ProvenanceDataModule):
    """Synthetic documents with seals and, unpaired, real ones; validation and test sets are frozen by the seed.

    A sample holds `image`, `page` (the same without seals) and `real` as uint8 (3, S, S), `ink`, `visible` and `text`
    as bool (1, S, S), `alpha` as uint8 (1, S, S). Drawn documents of two splits have seeds of their own; files are
    dealt to splits by a hash of their names.

    Args:
        seals: "drawn", or the folder of a written set.
        real: "drawn" for degraded documents of other numbers, the folder of a written set, a folder with `images` and
            `masks` in it, or pictures of one seal each: folder, manifest or a list of these.
        view: "page" shows whole documents, "seal" a seal with room around it, "patch" a part at its own scale.
        size: Side of the square samples.
        settings: What is drawn; its `domain` is set by the use. None draws documents of once, twice or four times
            `size` for pages, seals and patches.
        domain: Domain of the drawn synthetic documents.
        redraw: Whether training draws other samples each epoch; false repeats those of the first.
        train_samples: Samples an epoch; None means one a document of a written set, and 10,000 drawn ones.
        val_samples: Size of the frozen validation set.
        test_samples: Size of the frozen test set.
        predict_samples: How many documents `predict` draws where `paths` names none.
        holdout: Share of files kept from training, half for validation, half for test.
        masks: Folder of masks of the ink in `paths`, where these are pictures and no written set.
        batch_size: Samples a step and rank in training.
        eval_batch_size: Samples a step and rank elsewhere; None means `batch_size`.
        num_workers: Processes that make samples, per rank; None takes the cores this rank can have, less one.
        seed: Decides order and draws of training, with epoch and index; None takes the run's `seed_everything`.
        eval_seed: Decides the draws of the frozen sets, so that runs of many seeds are scored on one set.
        on_unreadable: "stop" ends the run with one line; "skip" leaves the file out and lists it in skipped.jsonl.
        paths: What to predict on: a written set, or pictures with `masks`; None draws documents.
    """

    def __init__(
        self,
        seals: str = DRAWN,
        real: str | list[str] = DRAWN,
        view: View = "seal",
        size: int = 128,
        settings: DocumentSettings | None = None,
        domain: Domain = "clean",
        redraw: bool = True,
        train_samples: int | None = None,
        val_samples: int = 256,
        test_samples: int = 512,
        predict_samples: int = 16,
        holdout: float = 0.2,
        masks: str | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        eval_seed: int = 0,
        on_unreadable: Literal["stop", "skip"] = "stop",
        paths: str | list[str] | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, on_unreadable, paths)
        if size < 8:
            raise ValueError(f"data.size must be at least 8, got {size}")
        self.seals = seals
        self.real = real
        self.view: View = view
        self.size = size
        self.settings = settings or DocumentSettings(size=min(4096, max(64, DRAWN_SIDE[view] * size)))
        self.domain: Domain = domain
        self.redraw = redraw
        self.samples: dict[Split, int | None] = {"train": train_samples, "val": val_samples, "test": test_samples}
        self.predict_samples = predict_samples
        self.holdout = holdout
        self.masks = masks
        self.eval_seed = eval_seed
        self._predicted: DocumentsToPredict | None = None

    def build_dataset(self, split: Split) -> Dataset[Sample]:
        """Build a split; its documents and real seals are in no other."""
        # Evaluation has seeds that training does not draw, whatever its seed is.
        seed = self.seed if split == "train" else self.eval_seed
        documents = open_documents(self.seals, split, seed, self.settings, self.domain, self.holdout)
        real = open_real(self.real, split, seed, self.settings, self.view, self.size, self.holdout)
        count = len(documents) if isinstance(documents, WrittenDocuments) else 10_000
        length = self.samples[split] or count
        return SealSamples(documents, real, self.view, self.size, length, seed, self.redraw)

    def setup(self, stage: str) -> None:
        """Build what the stage needs and nothing else."""
        if stage != "predict":
            super().setup(stage)
            return
        self._predicted = open_predictions(
            self.paths, self.masks, self.eval_seed, self.settings, self.domain, self.predict_samples
        )

    def predict_dataloader(self) -> DataLoader[Any]:
        """Whole documents of any sizes that are still to do, with their labels."""
        assert self._predicted is not None
        documents = self._predicted
        todo = [index for index in range(len(documents)) if documents.path(index) not in self._excluded]
        return DataLoader(
            ReadGuard(documents, self.on_unreadable),
            batch_size=self.eval_batch_size,
            sampler=self._sampler(todo, shuffle=False, pad=False),
            collate_fn=collate_documents,
            **self._worker_options(),
        )

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Turn uint8 pixels into float on the device; documents of any sizes become lists and stay uint8."""
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        for name in [name for name in batch if name.startswith(PACKED)]:
            batch[name.removeprefix(PACKED)] = unpack_images(batch.pop(name))
        return batch


def collate_documents(samples: Sequence[Sample | SkippedSample]) -> dict[str, Any]:
    """Merge whole documents into a batch whose pictures and masks are packed."""
    batch = collate_samples(samples, stack=False)
    planes = [name for name in ("image", "ink", "page", "visible", "alpha", "area") if name in batch]
    return {name: value for name, value in batch.items() if name not in planes} | {
        PACKED + name: pack_images(batch[name]) for name in planes
    }
