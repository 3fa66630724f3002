"""What every datamodule shares: loaders per split, resumable order, and what happens to unreadable files."""

import os
import signal
import threading
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.images.errors import UnreadableImageError
from datamodules.images.randomness import sample_rng
from datamodules.images.sources import ImageSource, open_images
from datamodules.images.splits import Split
from lightning_modules.functional.pixels import to_unit

Sample = dict[str, Any]
LoaderT = TypeVar("LoaderT", bound=DataLoader[Any])
SPLITS_OF_STAGE: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": (),
}
ORDER_STREAM = 101  # keeps the shuffling apart from the draws of the samples themselves


@dataclass(frozen=True)
class SampleKey:
    """Names one draw of one sample: the same key is the same sample on any worker, rank or restart."""

    epoch: int
    index: int


@dataclass(frozen=True)
class SkippedSample:
    """Stands in the batch for a file that could not be read, so that it is counted and never replaced."""

    path: str
    reason: str
    index: int


class ReadGuard(Dataset[Sample | SkippedSample]):
    """Turns an unreadable image into a `SkippedSample` or, under "stop", lets its error end the run."""

    def __init__(self, dataset: Dataset[Sample], on_unreadable: Literal["stop", "skip"]) -> None:
        self.dataset = dataset
        self.on_unreadable = on_unreadable

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: SampleKey) -> Sample | SkippedSample:
        try:
            return self.dataset[key]
        except UnreadableImageError as error:
            if self.on_unreadable == "stop":
                raise
            return SkippedSample(path=error.path, reason=error.reason, index=key.index)


class SplitSampler(DistributedSampler[SampleKey]):
    """Deals the samples of a split to ranks in an order that depends on (seed, epoch) alone.

    It is a `DistributedSampler` so that Lightning leaves it in place, and it yields `SampleKey`s so that workers
    that live for many epochs learn the epoch. With `pad` every rank gets equally many samples (the first ones
    again), which losses and metrics with collectives need; evaluation callbacks drop the repeats.
    """

    def __init__(
        self, positions: Sequence[int], *, seed: int, rank: int, world_size: int, shuffle: bool, pad: bool
    ) -> None:
        super().__init__(positions, world_size, rank, shuffle, seed)  # type: ignore[arg-type]
        self.positions = positions
        self.pad = pad
        self.skip = 0

    def __len__(self) -> int:
        if self.pad:
            return -(-len(self.positions) // self.num_replicas)
        return len(range(self.rank, len(self.positions), self.num_replicas))

    def __iter__(self) -> Iterator[SampleKey]:
        # Only training draws afresh each epoch; evaluation and prediction are frozen at epoch 0.
        epoch = self.epoch if self.shuffle else 0
        length = len(self.positions)
        order = sample_rng(self.seed, epoch, 0, stream=ORDER_STREAM).permutation(length) if self.shuffle else None
        start, self.skip = self.skip, 0
        for turn in range(start, len(self)):
            place = (turn * self.num_replicas + self.rank) % length
            yield SampleKey(epoch, int(self.positions[order[place] if order is not None else place]))


class ResumableLoader(DataLoader[Any]):
    """A training loader that goes on in the middle of an epoch.

    Its datamodule stores in checkpoints how far it is. Samples are functions of their key, so the number of batches
    already handed out is all there is to remember; no batch is drawn again to get there.
    """

    handed_out = 0
    _resume_at = 0

    def __iter__(self) -> Any:
        # A generator: the sampler is asked only after Lightning has told it the epoch.
        assert isinstance(self.sampler, SplitSampler)
        assert self.batch_size is not None
        self.handed_out, self._resume_at = self._resume_at, 0
        self.sampler.skip = self.handed_out * self.batch_size
        for batch in super().__iter__():
            self.handed_out += 1
            yield batch

    def go_on_behind(self, batches: int) -> None:
        """Start the next epoch behind as many batches; a finished epoch starts at its beginning."""
        self.handed_out = batches  # for a checkpoint that is saved before the next batch
        self._resume_at = batches % len(self)

    def state_dict(self) -> dict[str, int]:
        """Return nothing: this is here because Lightning warns of loaders without."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave it to the datamodule, which knows of `limit_train_batches`."""


def collate_samples(samples: Sequence[Sample | SkippedSample], stack: bool = True) -> dict[str, Any]:
    """Merge samples into a batch: tensors stacked, numbers as tensors, strings as lists, skipped ones listed.

    Args:
        samples: What the workers made.
        stack: Whether tensors have one size; a prediction batch keeps a list of images of any sizes.
    """
    kept = [sample for sample in samples if not isinstance(sample, SkippedSample)]
    skipped = [asdict(sample) for sample in samples if isinstance(sample, SkippedSample)]
    if stack and not kept:
        first = skipped[0]
        raise UnreadableImageError(first["path"], f"{first['reason']} (as is every image of its batch)")
    batch: dict[str, Any] = {"skipped": skipped}
    for key in kept[0] if kept else ("image", "index", "path"):
        values = [sample[key] for sample in kept]
        batch[key] = _merge(key, values, stack)
    return batch


def _merge(key: str, values: list[Any], stack: bool) -> Any:
    if key == "index":
        return torch.tensor(values, dtype=torch.int64)
    if values and isinstance(values[0], Tensor) and stack:
        return torch.stack(values)
    if values and isinstance(values[0], bool | int | float):
        return torch.tensor(values)
    return values


def pack_images(images: Sequence[Tensor]) -> dict[str, Any]:
    """Put images (C, H, W) of any sizes and one type into one tensor.

    A tensor costs milliseconds to hand from a worker to the main process, whatever its size.
    """
    rows = [image.permute(1, 2, 0).reshape(-1) for image in images]
    return {"pixels": torch.cat(rows) if rows else torch.empty(0), "shapes": [tuple(image.shape) for image in images]}


def unpack_images(packed: dict[str, Any]) -> list[Tensor]:
    """Return the images of `pack_images` as views."""
    parts = packed["pixels"].split([channels * height * width for channels, height, width in packed["shapes"]])
    return [
        part.view(height, width, channels).permute(2, 0, 1)
        for part, (channels, height, width) in zip(parts, packed["shapes"], strict=True)
    ]


class PredictionImages(Dataset[Sample]):
    """Images at their own sizes, with path and position."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> Sample:
        pixels = torch.from_numpy(self.source.read(key.index))
        return {"image": pixels.permute(2, 0, 1), "index": key.index, "path": self.source.path(key.index)}


class ProvenanceDataModule(LightningDataModule):
    """Base of all datamodules: a subclass says how to build the data set of a split.

    Args:
        batch_size: Samples a step and rank in training.
        eval_batch_size: Samples a step and rank elsewhere; None means `batch_size`.
        num_workers: Processes that make samples, per rank; None takes the cores this rank can have, less one.
        seed: Decides order and draws, together with epoch and index; None takes the run's `seed_everything`.
        on_unreadable: "stop" ends the run with one line; "skip" leaves the file out and lists it in skipped.jsonl.
        paths: Files, folders and manifests to predict on.
    """

    def __init__(
        self,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        on_unreadable: Literal["stop", "skip"] = "stop",
        paths: str | list[str] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self.on_unreadable: Literal["stop", "skip"] = on_unreadable
        self.paths = paths
        self.datasets: dict[Split, Dataset[Sample]] = {}
        self._images: ImageSource | None = None
        self._excluded: frozenset[str] = frozenset()
        self._train_loader: ResumableLoader | None = None
        self.worker_timeout = 0.0  # seconds to wait for a batch; the process watch of a run says how many
        self._resume_from: dict[str, int] | None = None

    def collate_evaluation(self, samples: Sequence[Sample | SkippedSample]) -> dict[str, Any]:
        """Merge samples of validation or test into a batch; a subclass may take images of several sizes."""
        return collate_samples(samples)

    @abstractmethod
    def build_dataset(self, split: Split) -> Dataset[Sample]:
        """Build the data set of one split; its items are taken by `SampleKey`."""

    def setup(self, stage: str) -> None:
        """Build what the stage needs and nothing else."""
        for split in SPLITS_OF_STAGE[stage]:
            if split not in self.datasets:
                self.datasets[split] = self.build_dataset(split)
        if stage == "predict":
            if not self.paths:
                raise ValueError("nothing to predict on: name files, folders or a manifest with --data.paths")
            self._images = open_images(self.paths)

    def exclude_from_prediction(self, paths: set[str]) -> None:
        """Leave out images that an earlier, interrupted run has done; the others keep their index."""
        self._excluded = frozenset(paths)

    def train_dataloader(self) -> ResumableLoader:
        """Endless order in epochs; every rank gets equally many batches."""
        length = len(self.datasets["train"])  # type: ignore[arg-type]
        batches = -(-length // self._world_size) // self.batch_size
        if batches == 0:
            raise ValueError(
                f"the training split has {length} samples, fewer than one batch of {self.batch_size} on each of "
                f"{self._world_size} processes: lower --data.batch_size"
            )
        self._train_loader = self._loader("train", ResumableLoader, self.batch_size)
        if self._resume_from is not None:
            self._train_loader.go_on_behind(self._resume_from["handed_out"])
            self._resume_from = None
        return self._train_loader

    def state_dict(self) -> dict[str, int]:
        """Return how far the running epoch is, for the checkpoint; a finished epoch counts as not begun."""
        if self._train_loader is None:
            return {}
        state = {"handed_out": self._train_loader.handed_out}
        # `limit_train_batches` may end an epoch before the loader does.
        if self.trainer is not None and state["handed_out"] >= self.trainer.num_training_batches:
            state["handed_out"] = 0
        return state

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on in the middle of the epoch.

        Lightning would restore the loader itself, but not where a schedule asks for `estimated_stepping_batches`:
        that sets the loader up before the checkpoint's loops are read, and its state is then never given to it.
        """
        handed_out = state_dict.get("handed_out", None if state_dict else 0) if isinstance(state_dict, dict) else None
        if not isinstance(handed_out, int) or handed_out < 0:
            raise ValueError("the checkpoint does not say how many batches were handed out: name one of this project")
        self._resume_from = state_dict or None

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation split in its stable order."""
        return self._loader("val", DataLoader, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """The test split in its stable order."""
        return self._loader("test", DataLoader, self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The images of `paths` that are still to do."""
        assert self._images is not None
        source: ImageSource = self._images
        todo: Sequence[int] = range(len(source))
        if self._excluded:
            left = (index for index in todo if source.path(index) not in self._excluded)
            # An array: workers share its pages, where counting references to a million numbers would copy them.
            todo = np.fromiter(left, np.int64)  # type: ignore[assignment]
        return DataLoader(
            ReadGuard(PredictionImages(source), self.on_unreadable),
            batch_size=self.eval_batch_size,
            sampler=self._sampler(todo, shuffle=False, pad=False),
            collate_fn=_collate_any_size,
            **self._worker_options(),
        )

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Turn uint8 pixels into float on the device; images of any sizes become a list and stay uint8."""
        # Batches travel as uint8, a quarter of the bytes.
        batch = {key: to_unit(value) if isinstance(value, Tensor) else value for key, value in batch.items()}
        if "packed_image" in batch:
            batch["image"] = unpack_images(batch.pop("packed_image"))
        return batch

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _sampler(self, positions: Sequence[int], *, shuffle: bool, pad: bool) -> SplitSampler:
        rank = self.trainer.global_rank if self.trainer is not None else 0
        world_size = self._world_size
        return SplitSampler(positions, seed=self.seed, rank=rank, world_size=world_size, shuffle=shuffle, pad=pad)

    def _loader(self, split: Split, kind: type[LoaderT], batch_size: int) -> LoaderT:
        dataset, training = self.datasets[split], split == "train"
        return kind(
            ReadGuard(dataset, self.on_unreadable),
            batch_size=batch_size,
            sampler=self._sampler(range(len(dataset)), shuffle=training, pad=True),  # type: ignore[arg-type]
            collate_fn=collate_samples if training else self.collate_evaluation,
            drop_last=training,
            **self._worker_options(),
        )

    def worker_count(self) -> int:
        """Return how many processes make samples for this rank."""
        return max(1, self._cores() - 1) if self.num_workers is None else self.num_workers

    def free_cores(self) -> int:
        """Return how many cores the workers of this rank leave to its network, at least one."""
        return max(1, self._cores() - self.worker_count())

    def _cores(self) -> int:
        local_ranks = self.trainer.num_devices if self.trainer is not None else 1
        return max(1, len(os.sched_getaffinity(0)) // local_ranks)

    def _worker_options(self) -> dict[str, Any]:
        workers = self.worker_count()
        options: dict[str, Any] = {"num_workers": workers, "pin_memory": torch.cuda.is_available()}
        # An own generator: the loader's draw of a worker seed must not advance the model's random stream.
        options["generator"] = torch.Generator().manual_seed(self.seed)
        if workers:
            options |= {"worker_init_fn": _start_worker, "persistent_workers": True, "prefetch_factor": 2}
            options["timeout"] = self.worker_timeout
        return options


def _collate_any_size(samples: Sequence[Sample | SkippedSample]) -> dict[str, Any]:
    batch = collate_samples(samples, stack=False)
    batch["packed_image"] = pack_images(batch.pop("image"))
    return batch


def _start_worker(worker_id: int) -> None:
    """Keep a worker to one thread, and leave Ctrl-C, SIGTERM and SIGUSR1 to the main process."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # Blocked in this thread and in all that it starts, so that the waiting one gets it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_parent_says, daemon=True).start()


def _end_when_parent_says() -> None:
    """Heed SIGTERM from the main process alone.

    `timeout`, systemd and SLURM send it to every process of a run; without its workers the main process could not end
    its step and save. From the main process it is torch's last means against a worker that hangs.
    """
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)  # as torch's own handler does: another code would be reported as a crash
