"""`sealmark prepare seals`: labelled documents with seals, as PNG, COCO JSON and text."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from callbacks.prediction_files import FolderLock
from datamodules.seal_sets import (
    ANNOTATIONS,
    CATEGORIES,
    MANIFEST,
    PLANES,
    TEXT,
    annotations_of,
    file_of,
    planes_of,
    text_of,
)
from datamodules.transforms.documents.samples import DocumentSettings, Domain, draw_document
from datamodules.transforms.seals.seal_fonts import script_faces
from experiments.part_workers import count_done, make_parts
from experiments.shard_joining import write_whole
from lightning_modules.functional.plain_json import parse_json

PARTS_FOLDER = ".parts"
CHUNK = 128  # documents that a process makes at a time; as many are made anew after a kill
SHEETS = 12  # pages that a chunk is made of


@dataclass(frozen=True)
class Plan:
    """What decides every byte of the set.

    Args:
        count: Documents.
        seed: Decides them, with their number.
        settings: What they are drawn from.
    """

    count: int
    seed: int
    settings: DocumentSettings

    def text(self) -> str:
        """Return the plan as it is written down."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    def chunk(self, number: int) -> range:
        """Return the documents of a chunk."""
        return range(number * CHUNK, min(self.count, (number + 1) * CHUNK))

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.count // CHUNK)


def seals(
    output: Path,
    count: int = 1000,
    size: int = 512,
    domain: Domain = "degraded",
    seed: int = 0,
    least: int = 1,
    most: int = 2,
    scripts: Literal["latin", "auto", "chinese"] = "latin",
    workers: int | None = None,
) -> None:
    """Draw documents with seals and write them with their labels; a second start goes on where the first stopped.

    Folders of PNG files (images, pages without seals, ink, visible ink, alpha, area), `annotations.json` (COCO),
    `text.jsonl` (every line of text) and `manifest.json`. Document N of a seed is the same in every run, and the clean
    and the degraded set of one seed share pages, seals and places. Read by `data.seals: OUTPUT`.

    Args:
        output: Folder to make.
        count: Documents.
        size: Side of the pictures.
        domain: "clean" is flat ink on a crisp page, "degraded" is pressed and captured.
        seed: Of the set.
        least: Fewest seals of a document.
        most: Most seals of a document.
        scripts: "latin"; "auto" takes Chinese where a font has it; "chinese" insists (Debian: fonts-noto-cjk).
        workers: Processes; None takes all cores.
    """
    for name, value, lowest in (("count", count, 1), ("seed", seed, 0), ("workers", workers or 1, 1)):
        if value < lowest:
            raise ValueError(f"--{name} must be at least {lowest}, got {value}")
    script_faces(scripts)  # says now, not in a worker, that a font is missing
    settings = DocumentSettings(
        size=size, seals=(least, most), domain=domain, scripts=scripts, sheets=SHEETS, documents_a_pool=CHUNK
    )
    plan = Plan(count, seed, settings)
    output.mkdir(parents=True, exist_ok=True)
    lock = FolderLock()
    if not lock.take(output, 0):
        raise ValueError(f"another start is writing {output}: wait for it, or name another --output")
    try:
        agree_on(plan, output)
        if not (output / MANIFEST).is_file():
            todo = [chunk for chunk in range(plan.chunks) if not part_of(output, chunk).is_file()]
            run(plan, output, todo, workers or len(os.sched_getaffinity(0)))
            finish(plan, output)
    finally:
        lock.release()
    print(f"{output}: {count} documents")


def agree_on(plan: Plan, output: Path) -> None:
    """Write down the plan, or refuse to go on under another one."""
    done, begun = output / MANIFEST, output / PARTS_FOLDER / "plan.json"
    if done.is_file():
        about = parse_json(done.read_bytes(), str(done))
        kept = about.get("plan") if isinstance(about, dict) else None
        written = json.dumps(kept, indent=1, ensure_ascii=False)
    else:
        begun.parent.mkdir(exist_ok=True)
        if not begun.is_file():
            write_whole(begun, plan.text().encode())
        written = begun.read_text(encoding="utf-8")
    if written != plan.text():
        raise ValueError(f"{output} was begun with other settings: repeat those, or name another --output")
    for plane in PLANES:
        (output / plane).mkdir(exist_ok=True)


def part_of(output: Path, chunk: int) -> Path:
    """Return the file that says a chunk is finished, and what its labels are."""
    return output / PARTS_FOLDER / f"{chunk:06d}.jsonl"


def run(plan: Plan, output: Path, todo: list[int], workers: int) -> None:
    """Make chunks in processes under a bar that counts documents."""
    total = sum(len(plan.chunk(chunk)) for chunk in todo)
    make_parts(partial(make_chunk, plan, output), todo, workers, "drawing", total, "documents")


def make_chunk(plan: Plan, output: Path, chunk: int) -> None:
    """Write the documents of a chunk, and then their labels: what has labels is whole."""
    rows = []
    for index in plan.chunk(chunk):
        document = draw_document(plan.seed, index, plan.settings)
        sums = {plane: write_png(output / file_of(index, plane), px) for plane, px in planes_of(document).items()}
        rows.append(
            {
                "capture": document.capture,
                "sha256": sums,
                "annotations": annotations_of(document),
                "text": text_of(document),
            }
        )
        count_done()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(part_of(output, chunk), lines.encode())


def write_png(path: Path, pixels: NDArray[np.uint8]) -> str:
    """Write pixels, RGB or grey, and return the hash of the file."""
    ordered = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    written, encoded = cv2.imencode(".png", ordered, [cv2.IMWRITE_PNG_COMPRESSION, 2])
    assert written
    data = encoded.tobytes()
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def finish(plan: Plan, output: Path) -> None:
    """Join the labels of all chunks, say what the set is, and remove what was needed to go on."""
    digest = hashlib.sha256()
    for row in _rows(plan, output):
        for plane in PLANES:
            digest.update(f"{row['sha256'][plane]}\n".encode())
    _write_annotations(plan, output)
    _write_text(plan, output)
    sums = {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in (ANNOTATIONS, TEXT)}
    about = {"plan": json.loads(plan.text()), "sha256": sums | {"pictures": digest.hexdigest()}}
    write_whole(output / MANIFEST, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())
    shutil.rmtree(output / PARTS_FOLDER)


def _rows(plan: Plan, output: Path) -> Iterator[dict[str, Any]]:
    for chunk in range(plan.chunks):
        with part_of(output, chunk).open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file)


def _write_annotations(plan: Plan, output: Path) -> None:
    """Write COCO's file row by row: a set of millions does not fit into memory as objects."""
    side, number = plan.settings.size, 0
    temporary = output / PARTS_FOLDER / ANNOTATIONS
    with temporary.open("w", encoding="utf-8") as file:
        file.write(f'{{"info": {{"description": "drawn by sealmark", "seed": {plan.seed}}},\n')
        file.write(f'"categories": {json.dumps(CATEGORIES)},\n"images": [')
        for index, row in enumerate(_rows(plan, output)):
            image = {"id": index, "file_name": file_of(index), "width": side, "height": side}
            file.write((",\n" if index else "\n") + json.dumps(image | {"capture": row["capture"]}))
        file.write('\n],\n"annotations": [')
        for index, row in enumerate(_rows(plan, output)):
            for annotation in row["annotations"]:
                text = json.dumps({"id": number, "image_id": index} | annotation, ensure_ascii=False)
                file.write((",\n" if number else "\n") + text)
                number += 1
        file.write("\n]}\n")
    temporary.replace(output / ANNOTATIONS)


def _write_text(plan: Plan, output: Path) -> None:
    temporary = output / PARTS_FOLDER / TEXT
    with temporary.open("w", encoding="utf-8") as file:
        for index, row in enumerate(_rows(plan, output)):
            for line in row["text"]:
                file.write(json.dumps({"image": file_of(index)} | line, ensure_ascii=False) + "\n")
    temporary.replace(output / TEXT)
