"""Predictions on disk while they are made: a line, images and a descriptor an input, resumable, in flat memory."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray

from callbacks.descriptor_files import SIZE_KEY, Floats, RowFile, repair_rows, row_file_beside
from callbacks.prediction_files import (
    TEMPORARY_SUFFIX,
    FolderLock,
    ImageFormat,
    ImageThreads,
    JsonLines,
    count_lines,
    cut_torn_line,
    explained,
    read_records,
    refuse_links,
    write_whole,
)
from lightning_modules.functional.plain_json import parse_json

_PENDING_BYTES = 64 << 20  # images waiting for a thread; more than that and the network waits
_STEM_BYTES = 120  # of the 255 that a file name may have
_OWN_ENTRIES = (".lock.rank*", "*.rank*.jsonl", "*.rank*.f32", "predictions.json", "images")
_OWN_TEMPORARY = ("predictions.json", "images/*", "realised/*", "realised/*/*")


class PredictionWriter(Callback):
    """Writes each prediction as a line of `predictions.rank<R>.jsonl`, after the images that the line names.

    Where the method's outputs hold `descriptors` (B, D), each is written before its line as a row of float32 in
    `descriptors.rank<R>.f32`: row i belongs to line i. `callbacks.descriptor_files.read_descriptors` reads both.

    A later start with the same folder leaves out what is there; a start while another is at work is refused. Inputs
    that cannot be read are listed in `skipped.rank<R>.jsonl` and tried again by a later start.

    Args:
        output_dir: the folder; by default `predictions` in the folder of the run.
        save_images: whether to write the images a prediction comes with, or which of them.
        image_format: of colour images; masks are always PNG.
        writer_threads: threads that encode images.
    """

    def __init__(
        self,
        output_dir: str | None = None,
        save_images: bool | list[str] = True,
        image_format: ImageFormat = "png",
        writer_threads: int = 2,
    ) -> None:
        if writer_threads < 1:
            raise ValueError(f"`writer_threads` must be at least 1, got {writer_threads}")
        self.output_dir = output_dir
        self.save_images = save_images
        self.image_format: ImageFormat = image_format
        self.writer_threads = writer_threads
        self._folder = Path()
        self._lock = FolderLock()
        self._before = 0
        self._session: _Session | None = None
        self._taken: frozenset[int] = frozenset()
        self._checked = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tells the datamodule what is done already; its loader is built afterwards."""
        if stage != "predict":
            return
        # Lightning would keep every output until the end.
        trainer.predict_loop.return_predictions = False
        log_dir = trainer.log_dir or trainer.default_root_dir
        self._folder = Path(self.output_dir) if self.output_dir else Path(log_dir) / "predictions"
        self._checked = False
        refuse_links(self._folder, _OWN_ENTRIES)
        self._take_folder(trainer)
        if trainer.is_global_zero:
            _repair(self._folder)
        trainer.strategy.barrier("predictions repaired")
        done, self._taken = _read_done(self._folder)
        self._before = len(done)
        # Nobody writes before everybody has read: the ranks must agree on what is left.
        trainer.strategy.barrier("predictions read")
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is not None:
            # A rank may find all its share done already.
            datamodule.allow_zero_length_dataloader_with_multiple_devices = True
        if done:
            exclude = getattr(datamodule, "exclude_from_prediction", None)
            if exclude is None:
                raise ValueError(
                    f"{self._folder} holds {len(done)} predictions that these data cannot leave out: choose another "
                    "--predictions.output_dir"
                )
            exclude(done)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses to mix predictions of two models, then opens the files."""
        self._check_model(trainer, pl_module)
        self._session = _Session(self, trainer.global_rank, self._taken)
        self._taken = frozenset()
        if trainer.is_global_zero:
            for path in self._folder.glob("skipped.rank*.jsonl"):
                if int(_rank_of(path)) >= trainer.world_size:
                    path.unlink()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Queues the images of a batch and writes the lines whose images are on disk."""
        assert self._session is not None
        _forget_indices(trainer)
        for entry in batch.get("skipped", []) if isinstance(batch, Mapping) else []:
            self._session.skipped.append(entry)
        if outputs is None:
            return
        records = outputs["records"]
        images = outputs.get("images") or [{}] * len(records)
        for record, pictures, row in zip(records, images, _rows_of(outputs, len(records)), strict=True):
            self._session.add(record, pictures, row)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Waits for the last images and lines."""
        assert self._session is not None
        self._session.finish()
        self._session = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keeps what is complete and leaves nothing else behind."""
        if self._session is not None:
            self._session.abandon()
            self._session = None
        self._lock.release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prints how many inputs were predicted and skipped, and where that is."""
        if stage != "predict":
            return
        # Lightning starts no prediction where nothing is left to do.
        self._check_model(trainer, pl_module)
        trainer.strategy.barrier("predictions written")
        if trainer.is_global_zero:
            self._report()
        self._lock.release()

    def _report(self) -> None:
        predicted = sum(count_lines(path) for path in self._folder.glob("predictions.rank*.jsonl"))
        skipped = sum(count_lines(path) for path in self._folder.glob("skipped.rank*.jsonl"))
        before = f" ({self._before} of them by an earlier start)" if self._before else ""
        lost = f", skipped {skipped} unreadable (listed in skipped.rank*.jsonl)" if skipped else ", skipped none"
        sys.stdout.write(f"predicted {predicted} images{before}{lost}: {self._folder}\n")
        sys.stdout.flush()

    def wants(self, key: str) -> bool:
        """Tell whether images of this name are to be written."""
        return key in self.save_images if isinstance(self.save_images, list) else self.save_images

    def _take_folder(self, trainer: Trainer) -> None:
        rank = trainer.global_rank
        # One rank decides for all: of two runs that start together, one goes on.
        free = trainer.strategy.broadcast(rank != 0 or self._lock.take(self._folder, rank))
        if not free:
            raise ValueError(
                f"another predict is writing to {self._folder}: wait for it or name another --predictions.output_dir"
            )
        if rank != 0:
            self._lock.take(self._folder, rank)

    def _check_model(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._checked:
            return
        path = self._folder / "predictions.json"
        mine = _fingerprint(trainer, pl_module)
        theirs = _stored_fingerprint(path) if path.exists() else None
        if theirs != mine and (path.exists() or self._before):
            raise ValueError(
                f"{self._folder} holds predictions of another model or other settings: choose another "
                "--predictions.output_dir, or delete that folder to start afresh"
            )
        if trainer.is_global_zero and not path.exists():
            about = {"fingerprint": mine, "model": _name(pl_module), "ckpt_path": _ckpt_path(trainer)}
            weights = pl_module.hparams.get("weights")
            about["weights"] = str(weights) if weights else None
            with explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, (json.dumps(about, indent=2) + "\n").encode())
        self._checked = True


@dataclass(frozen=True)
class _Waiting:
    """A record that waits for its images."""

    record: dict[str, Any]
    futures: list[Future[None]]
    row: Floats | None
    size: int


class _Session:
    """The open files of one rank and the records that wait for their images."""

    def __init__(self, writer: PredictionWriter, rank: int, taken: frozenset[int]) -> None:
        self.folder = writer._folder
        self.writer = writer
        self.taken = taken
        with explained(self.folder / "images"):
            (self.folder / "images").mkdir(parents=True, exist_ok=True)
        lines = self.folder / f"predictions.rank{rank}.jsonl"
        self.predictions = JsonLines(lines)
        self.written = count_lines(lines)
        self.open_rows = row_file_beside(lines)
        self.rows: RowFile | None = None
        self.skipped = JsonLines(self.folder / f"skipped.rank{rank}.jsonl", fresh=True)
        self.threads = ImageThreads(writer.writer_threads)
        self.pending: deque[_Waiting] = deque()
        self.pending_bytes = 0

    def add(self, record: dict[str, Any], images: Mapping[str, NDArray[np.uint8]], row: Floats | None = None) -> None:
        """Queue a record behind its images; waits while too many images do."""
        chosen = {key: pixels for key, pixels in images.items() if self.writer.wants(key)}
        size = sum(pixels.nbytes for pixels in chosen.values())
        if row is not None:
            record, size = record | {SIZE_KEY: len(row)}, size + row.nbytes
        while self.pending and self.pending_bytes + size > _PENDING_BYTES:
            self._write_first()
        names: dict[str, str] = {}
        futures = []
        prefix = image_prefix(record, self.taken)
        for key, pixels in chosen.items():
            image_format: ImageFormat = self.writer.image_format if pixels.ndim == 3 else "png"
            names[key] = f"{prefix}_{key}.{image_format}"
            futures.append(self.threads.submit(self.folder / names[key], pixels, image_format))
        self.pending.append(_Waiting(record | {"images": names} if names else record, futures, row, size))
        self.pending_bytes += size
        while self.pending and all(future.done() for future in self.pending[0].futures):
            self._write_first()

    def finish(self) -> None:
        """Write everything that waits, then close."""
        while self.pending:
            self._write_first()
        self._close()

    def abandon(self) -> None:
        """Write the lines whose images can be written, remove other images, close; raises nothing."""
        # The run is ending for one reason already; a second one would hide it.
        with suppress(Exception):
            while self.pending:
                self._write_first()
        self.threads.close()
        for waiting in self.pending:
            for name in waiting.record.get("images", {}).values():
                (self.folder / name).unlink(missing_ok=True)
        self._close()

    def _write_first(self) -> None:
        waiting = self.pending[0]
        for future in waiting.futures:
            future.result()
        if waiting.row is not None:
            self.rows = self.rows or self.open_rows()
            # By position: where the line fails after it, the next attempt writes the same row.
            self.rows.put(self.written, waiting.row)
        self.predictions.append(waiting.record)
        self.written += 1
        self.pending.popleft()
        self.pending_bytes -= waiting.size

    def _close(self) -> None:
        self.threads.close()
        self.predictions.close()
        self.skipped.close()
        if self.rows is not None:
            self.rows.close()


def _forget_indices(trainer: Trainer) -> None:
    """Let go of the indices of all batches so far, which Lightning notes for writers of its own kind alone."""
    if any(isinstance(callback, BasePredictionWriter) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        return
    loaders = trainer.predict_dataloaders
    for loader in loaders if isinstance(loaders, list) else [loaders]:
        noted = getattr(getattr(loader, "batch_sampler", None), "seen_batch_indices", None)
        if isinstance(noted, list):
            noted.clear()


def image_prefix(record: Mapping[str, Any], taken: frozenset[int] = frozenset()) -> str:
    """Return `images/<index>_<name of the input>`, other for each (index, path) not among the hashes `taken`."""
    path = str(record["path"])
    # Not with pathlib, which interns every name.
    name = os.path.splitext(os.path.basename(path))[0]
    stem = re.sub(r"[^\w.-]+", "_", name).encode()[:_STEM_BYTES].decode(errors="ignore")
    prefix = f"images/{int(record['index']):06d}_{stem}"
    if hash(prefix) in taken:
        # An earlier start gave the name to another input: files were added or removed since.
        prefix += "_" + hashlib.blake2b(path.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return prefix


def _rows_of(outputs: Mapping[str, Any], count: int) -> Sequence[Floats | None]:
    """Return each record's descriptor; None for methods without."""
    descriptors = outputs.get("descriptors")
    if descriptors is None:
        return [None] * count
    rows: Floats = descriptors.detach().float().cpu().numpy()
    return list(rows)


def _repair(folder: Path) -> None:
    for path in folder.glob("*.rank*.jsonl"):
        cut_torn_line(path)
    for path in folder.glob("predictions.rank*.jsonl"):
        repair_rows(path)
    # Of ours alone: a user may have named a folder with half-made files of others.
    for pattern in _OWN_TEMPORARY:
        for path in folder.glob(pattern + TEMPORARY_SUFFIX):
            path.unlink()


def _read_done(folder: Path) -> tuple[set[str], frozenset[int]]:
    """Return the paths of finished inputs and the hashes of the prefixes of their images' names."""
    done: set[str] = set()
    taken: set[int] = set()
    for path in sorted(folder.glob("predictions.rank*.jsonl")):
        for number, record in enumerate(read_records(path), start=1):
            named, images = record.get("path"), record.get("images", {})
            if not isinstance(named, str) or not isinstance(images, dict) or not _all_texts(images.values()):
                raise ValueError(
                    f"{path}, line {number}, is no prediction: delete that line to predict its input again"
                )
            done.add(named)
            for key, name in images.items():
                taken.add(hash(name.rsplit(f"_{key}.", 1)[0]))
    return done, frozenset(taken)


def _all_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _stored_fingerprint(path: Path) -> Any:
    about = parse_json(path.read_bytes(), str(path))
    if not isinstance(about, dict):
        raise ValueError(f"{path} does not say what made the predictions: predict again into an empty folder")
    return about.get("fingerprint")


def _fingerprint(trainer: Trainer, pl_module: LightningModule) -> str:
    """Identify what made a prediction: by the module's own word, else its settings and checkpoint."""
    own = getattr(pl_module, "prediction_fingerprint", None)
    if own is not None:
        return str(own())
    identity = [_name(pl_module), sorted((key, str(value)) for key, value in pl_module.hparams.items())]
    text = json.dumps([*identity, _ckpt_path(trainer)])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _ckpt_path(trainer: Trainer) -> str | None:
    return str(Path(trainer.ckpt_path).resolve()) if trainer.ckpt_path else None


def _name(pl_module: LightningModule) -> str:
    return f"{type(pl_module).__module__}.{type(pl_module).__qualname__}"


def _rank_of(path: Path) -> str:
    number = path.name.split(".rank")[1].split(".")[0]
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"{path} is not of this project: remove it, or name another folder")
    return number
