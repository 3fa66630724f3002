"""`sealmark prepare sa1b`: millions of pictures in tar files or folders to shards of small ones."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from callbacks.prediction_files import FolderLock
from datamodules.images.decoding import decode_bytes
from datamodules.images.errors import UnreadableImageError
from datamodules.images.listing import ImageListing
from datamodules.images.shards import SHARD_FOLDER, shrunk
from experiments.part_workers import count_done, make_parts
from experiments.shard_joining import INDEX_FIELDS, join, write_whole
from experiments.tar_pictures import read_pictures, read_whole

Frame = Literal["short", "squash"]


@dataclass(frozen=True)
class Plan:
    """What decides every byte of the result; two starts with one output must agree on it.

    Args:
        size: Side of the pictures.
        frame: How they are resized.
        quality: Of the JPEG files.
        sources: Tar files, or files of a folder by their ends, of each shard: path, first, last, bytes.
    """

    size: int
    frame: Frame
    quality: int
    sources: list[tuple[str, int, int, int]]


def sa1b(
    inputs: list[Path],
    output: Path,
    size: int = 256,
    frame: Frame = "short",
    quality: int = 95,
    images_per_shard: int = 10_000,
    part: str = "1/1",
    workers: int | None = None,
) -> None:
    """Resize pictures into shards that `datamodules.sa1b` reads; a second start goes on where the first stopped.

    A tar file gives one shard, a folder one for each `images_per_shard`. Several machines with one output folder take
    a part each, as `--part 3/8`; the last to finish joins all. Pictures that cannot be read, and members that no
    archive of pictures has (absolute or climbing paths, links, devices), are listed in `left_out.csv`.

    Args:
        inputs: Tar files, and folders of tar files or of pictures.
        output: Folder to make.
        size: Shorter side of the pictures, or side of the square.
        frame: "short" keeps proportions, "squash" makes squares, as the published set-up does.
        quality: Of the JPEG files, whose colours are not subsampled.
        images_per_shard: Pictures a shard, where they come from folders.
        part: Which of how many parts to make: "i/n", i from 1.
        workers: Processes; None takes all cores.
    """
    number, parts = read_part(part)
    for name, value, least, most in (("size", size, 8, 4096), ("quality", quality, 1, 100)):
        if not least <= value <= most:
            raise ValueError(f"--{name} must lie in {least} to {most}, got {value}")
    if images_per_shard < 1:
        raise ValueError(f"--images_per_shard must be at least 1, got {images_per_shard}")
    plan = Plan(size, frame, quality, find_sources(inputs, images_per_shard))
    (output / SHARD_FOLDER).mkdir(parents=True, exist_ok=True)
    lock = FolderLock()
    if not lock.take(output, number):
        raise ValueError(f"another start is making part {part} of {output}: wait for it, or name another part")
    agree_on(plan, output / "plan.json")
    mine = [shard for shard in range(len(plan.sources)) if shard % parts == number - 1]
    todo = [shard for shard in mine if not sidecar(output, shard).is_file()]
    run(plan, output, todo, workers or len(os.sched_getaffinity(0)))
    lock.release()
    missing = sum(not sidecar(output, shard).is_file() for shard in range(len(plan.sources)))
    if missing:
        print(f"{output}: part {part} is done, {missing} shards of other parts are missing")
        return
    count, left_out = join(output, len(plan.sources))
    print(f"{output}: {count} pictures in {len(plan.sources)} shards, {left_out} left out")


def read_part(text: str) -> tuple[int, int]:
    """Return i and n of "i/n"."""
    number, _, parts = text.partition("/")
    if not (number.isdigit() and parts.isdigit() and 1 <= int(number) <= int(parts)):
        raise ValueError(f"--part must be i/n with i from 1 to n, such as 3/8, got {text!r}")
    return int(number), int(parts)


def find_sources(inputs: list[Path], images_per_shard: int) -> list[tuple[str, int, int, int]]:
    """Return what each shard is made of: a tar file, or a range of the pictures of a folder, in a stable order."""
    sources = []
    for given in inputs:
        if not given.exists():
            raise FileNotFoundError(f"no such file or folder: {given}; name tar files or a folder with --inputs")
        tars = sorted(given.rglob("*.tar")) if given.is_dir() else [given]
        sources += [(str(tar), 0, 0, tar.stat().st_size) for tar in tars]
        if not tars:
            count = len(ImageListing.scan(given))
            steps = range(0, count, images_per_shard)
            sources += [
                (str(given), first, last := min(first + images_per_shard, count), last - first) for first in steps
            ]
    return sources


def agree_on(plan: Plan, path: Path) -> None:
    """Write down the plan, or refuse to go on under another one."""
    text = json.dumps(asdict(plan), indent=1)
    if not path.is_file():
        write_whole(path, text.encode())
    if path.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"{path.parent} was begun with other inputs or settings ({path.name} holds them): repeat those, or name "
            "another --output"
        )


def sidecar(output: Path, shard: int) -> Path:
    """Return the file that says a shard is finished, and what is in it."""
    return output / SHARD_FOLDER / f"{shard:06d}.json"


def run(plan: Plan, output: Path, todo: list[int], workers: int) -> None:
    """Make shards in processes, under a bar that counts bytes of tar files, or pictures of folders."""
    total = sum(plan.sources[shard][3] for shard in todo)
    make_parts(partial(make_shard, plan, output), todo, workers, "preparing", total, "images")


def make_shard(plan: Plan, output: Path, shard: int) -> None:
    """Write a shard and then its sidecar, each beside its place and renamed: what has a name is whole."""
    path = output / SHARD_FOLDER / f"{shard:06d}.tar"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    for old in path.parent.glob(f".{path.stem}.*.part"):
        old.unlink(missing_ok=True)
    kept: list[tuple[str, int, int]] = []
    left_out: list[tuple[str, str]] = []
    taken: set[str] = set()
    with temporary.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data, step in read_source(plan, shard):
            content: bytes | str = data if isinstance(data, str) or name not in taken else "its name came before"
            if isinstance(content, bytes):
                content = reduced(content, name, plan)
            if isinstance(content, str):
                left_out.append((name, content))
            else:
                taken.add(name)
                kept.append((name, add_member(archive, file, name, content), len(content)))
            _count(step)
    digest = file_sha256(temporary)
    size = temporary.stat().st_size
    temporary.replace(path)
    rows = [dict(zip(INDEX_FIELDS, row, strict=True)) for row in kept]
    about = {"source": plan.sources[shard], "sha256": digest, "bytes": size, "images": rows, "left_out": left_out}
    write_whole(sidecar(output, shard), json.dumps(about).encode())


def _count(step: int) -> None:
    count_done(step)


def read_source(plan: Plan, shard: int) -> Iterator[tuple[str, bytes | str, int]]:
    """Yield name, bytes or why there are none, and how far the bar goes on, for each picture of a shard."""
    path, first, last, _ = plan.sources[shard]
    if last:
        for file in ImageListing.scan(path)[first:last]:
            yield os.path.relpath(file, path), read_whole(file), 1
        return
    yield from read_pictures(path)


def reduced(data: bytes, name: str, plan: Plan) -> bytes | str:
    """Return the JPEG file of a picture at the plan's size, or why there is none."""
    try:
        image = decode_bytes(data, name, plan.size)
    except UnreadableImageError as error:
        return error.reason
    height, width = image.shape[:2]
    if plan.frame == "squash":
        wanted = (plan.size, plan.size)
    else:
        scale = plan.size / min(height, width)
        wanted = (max(plan.size, round(width * scale)), max(plan.size, round(height * scale)))
    options = [cv2.IMWRITE_JPEG_QUALITY, plan.quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR]
    options.append(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    small = cv2.cvtColor(shrunk(image, wanted), cv2.COLOR_RGB2BGR)
    written, encoded = cv2.imencode(".jpg", small, options)
    return bytes(np.asarray(encoded).tobytes()) if written else f"a picture of {wanted} cannot be written as JPEG"


def add_member(archive: tarfile.TarFile, file: io.BufferedWriter, name: str, data: bytes) -> int:
    """Append a file without date or owner and return where its bytes begin."""
    # Numbered: names of any length and script fit, and no two are alike; the index holds the picture's own.
    member = tarfile.TarInfo(f"{archive.offset // tarfile.BLOCKSIZE:010d}.jpg")
    member.size = len(data)
    start: int = archive.offset + tarfile.BLOCKSIZE
    archive.addfile(member, io.BytesIO(data))
    return start


def file_sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
