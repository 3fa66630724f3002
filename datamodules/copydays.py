"""Copydays: 157 holiday photos and their copies in 20 blocks of growing strength, among distractors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.copy_evaluation import BACKGROUND, QUERY, REFERENCE, CopyEvaluationDataModule, RetrievalTask
from datamodules.images.listing import ImageListing
from datamodules.images.sources import FileSource, ImageSource, open_images
from datamodules.images.splits import Split

ORIGINALS, STRONG = 157, 229
BLOCKS: Mapping[str, int] = {
    "original": ORIGINALS,
    "strong": STRONG,
    **{f"jpegqual/{quality}": ORIGINALS for quality in (3, 5, 8, 10, 15, 20, 30, 50, 75)},
    **{f"crops/{percent}": ORIGINALS for percent in (10, 15, 20, 30, 40, 50, 60, 70, 80)},
}
_SHARED_CHARACTERS = 4  # of the names of an original and its strong copies


class CopydaysDataModule(CopyEvaluationDataModule):
    """Every image of Copydays is a query, originals too; they look for the originals among the distractors.

    The lists of distractors and whitening images behind the published figures (10,000 and 20,000 of YFCC100M) were
    never published: name images of your own.

    Args:
        root: Folder with ``original``, ``strong``, ``jpegqual/3`` … and ``crops/10`` …
        distractors: Images that nothing is a copy of: files, folders, manifests; null for none.
        background: Images to learn centring and whitening from; null where no codec needs them.
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
        distractors: str | list[str] | None = None,
        background: str | list[str] | None = None,
        resize: str = "short_288",
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        on_unreadable: Literal["stop", "skip"] = "stop",
        paths: str | list[str] | None = None,
    ) -> None:
        super().__init__(resize, batch_size, eval_batch_size, num_workers, on_unreadable, paths)
        self.root = Path(root)
        self.distractors = distractors
        self.background = background

    def parts(self, split: Split) -> Sequence[tuple[int, ImageSource]]:
        """Return originals, distractors, the 20 blocks and, for test, the background, in this order."""
        blocks = list_blocks(self.root)
        parts: list[tuple[int, ImageSource]] = [(REFERENCE, _source(blocks["original"]))]
        if self.distractors is not None:
            parts.append((REFERENCE, open_images(self.distractors)))
        parts.append((QUERY, _source([path for paths in blocks.values() for path in paths])))
        if split == "test" and self.background is not None:
            parts.append((BACKGROUND, open_images(self.background)))
        return parts

    def retrieval_task(self, split: Literal["val", "test"]) -> RetrievalTask:
        """Return which original each image was made from, and its block as the group."""
        images = self.images_of(split)
        first = int(np.flatnonzero(images.role == QUERY)[0])
        names = list(images.names())
        queries = block_names(list_blocks(self.root))
        names[first : first + len(queries)] = queries
        matches = block_matches(list_blocks(self.root))
        pairs = np.array([(first + query, original) for query, original in matches], np.int64)
        starts = first + np.cumsum([0, *BLOCKS.values()])
        groups = {block: np.arange(start, start + BLOCKS[block]) for block, start in zip(BLOCKS, starts, strict=False)}
        return RetrievalTask(names, images.role, pairs, groups)


def list_blocks(root: Path) -> dict[str, list[Path]]:
    """Return the files of each block, sorted by name; a block that is not whole is an error."""
    blocks = {block: sorted((root / block).glob("*.jpg"), key=lambda path: path.name) for block in BLOCKS}
    for block, files in blocks.items():
        if len(files) != BLOCKS[block]:
            raise FileNotFoundError(
                f"Copydays has {BLOCKS[block]} .jpg files in {root / block}, found {len(files)}: "
                "set data.root to the folder with original, strong, jpegqual and crops"
            )
    return blocks


def block_names(blocks: Mapping[str, Sequence[Path]]) -> list[str]:
    """Return names such as strong/200001, in the order of the queries."""
    return [f"{block}/{path.stem}" for block, files in blocks.items() for path in files]


def block_matches(blocks: Mapping[str, Sequence[Path]]) -> list[tuple[int, int]]:
    """Return pairs of a query's place among all blocks and its original's place in its block.

    A strong copy matches the originals whose names begin like its own; any other image that at its place.
    """
    originals = [path.name[:_SHARED_CHARACTERS] for path in blocks["original"]]
    pairs, query = [], 0
    for block, files in blocks.items():
        for place, path in enumerate(files):
            begins = path.name[:_SHARED_CHARACTERS]
            found = [i for i, name in enumerate(originals) if name == begins] if block == "strong" else [place]
            if not found:
                raise ValueError(f"{path} is a copy of no original: none has a name that begins with {begins}")
            pairs += [(query, original) for original in found]
            query += 1
    return pairs


def _source(paths: Sequence[Path]) -> FileSource:
    return FileSource(ImageListing.from_paths(paths))
