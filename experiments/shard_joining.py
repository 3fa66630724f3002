"""Finished shards to one index: checked, listed, joined in memory that grows by tens of bytes a picture."""

from __future__ import annotations

import csv
import io
import os
import shutil
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from datamodules.images.shards import INDEX_FOLDER, SHARD_FOLDER, PackedNames, ShardIndex
from lightning_modules.functional.plain_json import parse_json, quoted

INDEX_FIELDS = ("name", "offset", "length")


def progress_bar() -> Progress:
    """Return a bar with the share done, the rate and the time left."""
    columns = ("{task.description}", "{task.fields[rate]}")
    return Progress(
        TextColumn(columns[0]), BarColumn(), TaskProgressColumn(), TextColumn(columns[1]), TimeRemainingColumn()
    )


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there entirely or not at all, whoever writes it too."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_bytes(data)
    temporary.replace(path)


def join(output: Path, shards: int) -> tuple[int, int]:
    """Write the index, the checksums and the list of what was left out; return how many there are of each.

    Raises:
        ValueError: a shard is not as long as it was when it was finished.
    """
    names, ends = bytearray(), array("q")
    numbers, offsets, lengths = array("i"), array("q"), array("i")
    sums, left_out = [], io.StringIO()
    writer = csv.writer(left_out)
    writer.writerow(("source", "name", "reason"))
    count_left_out = 0
    for shard in range(shards):
        try:
            about = _read_sidecar(output, shard)
            for row in about["images"]:
                names += os.fsencode(row["name"])
                ends.append(len(names))
                numbers.append(shard)
                offsets.append(row["offset"])
                lengths.append(row["length"])
            sums.append(f"{about['sha256']}  {SHARD_FOLDER}/{shard:06d}.tar\n")
            writer.writerows([about["source"][0], *entry] for entry in about["left_out"])
            count_left_out += len(about["left_out"])
        except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError, csv.Error) as error:
            path = _sidecar(output, shard)
            raise ValueError(f"{path} is damaged ({quoted(str(error))}): delete it and start again") from None
    if not len(ends):
        raise ValueError(f"no picture could be read: see {output / SHARD_FOLDER}/*.json for the reasons")
    index = ShardIndex(
        PackedNames(np.frombuffer(names, np.uint8), np.frombuffer(ends, np.int64)),
        np.frombuffer(numbers, np.int32),
        np.frombuffer(offsets, np.int64),
        np.frombuffer(lengths, np.int32),
        PackedNames.pack(f"{shard:06d}.tar" for shard in range(shards)),
    )
    write_whole(output / "SHA256SUMS", "".join(sums).encode())
    write_whole(output / "left_out.csv", left_out.getvalue().encode("utf-8", "surrogateescape"))
    _place(index, output / INDEX_FOLDER)
    return len(index), count_left_out


def _place(index: ShardIndex, folder: Path) -> None:
    """Put the index where readers look for it, whole; one that is there is of the same shards."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    index.save(temporary)
    try:
        temporary.replace(folder)
    except OSError:  # of an earlier start, or of another part that came first
        shutil.rmtree(temporary)


def _sidecar(output: Path, shard: int) -> Path:
    return output / SHARD_FOLDER / f"{shard:06d}.json"


def _read_sidecar(output: Path, shard: int) -> dict[str, Any]:
    path = _sidecar(output, shard)
    about: dict[str, Any] = parse_json(path.read_bytes(), str(path))
    tar = path.with_suffix(".tar")
    if not tar.is_file() or tar.stat().st_size != about["bytes"]:
        raise ValueError(f"{tar} is missing or was changed: delete {path} and start again")
    return about
