"""Sets of documents with seals on disk: the layout that `sealmark prepare seals` writes, and those of public sets."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.images.decoding import read_image
from datamodules.images.errors import UnreadableImageError
from datamodules.images.listing import ImageListing
from datamodules.transforms.documents.films import LineLabel, SealLabel
from datamodules.transforms.documents.page_text import PageLine
from datamodules.transforms.documents.samples import Document
from datamodules.transforms.seals.layouts import KINDS
from lightning_modules.functional.plain_json import parse_json, quoted

ANNOTATIONS, TEXT, MANIFEST = "annotations.json", "text.jsonl", "manifest.json"
PLANES = ("images", "pages", "ink", "visible", "alpha", "area")
CATEGORIES = [{"id": number, "name": kind} for number, kind in enumerate(KINDS, 1)]

Json = dict[str, Any]


def file_of(index: int, plane: str = "images") -> str:
    """Return the name of a document's plane below the set's folder."""
    return f"{plane}/{index:06d}.png"


def planes_of(document: Document) -> dict[str, NDArray[np.uint8]]:
    """Return a document's arrays as they are written, by folder: masks and alpha as bytes up to 255."""
    return {
        "images": document.image,
        "pages": document.page,
        "ink": _mask_bytes(document.ink),
        "visible": _mask_bytes(document.visible),
        "alpha": np.asarray(np.round(255 * document.alpha), np.uint8),
        "area": _mask_bytes(document.area),
    }


def _mask_bytes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.asarray(mask, np.uint8) * np.uint8(255)


def annotations_of(document: Document) -> list[Json]:
    """Return COCO's annotation of each seal, without `id` and `image_id`."""
    return [_annotation(seal) for seal in document.seals]


def _annotation(seal: SealLabel) -> Json:
    x0, y0, x1, y1 = seal.box_xyxy
    lines = [
        {"text": line.text, "role": line.role, "polygon": _rounded(line.polygon), "legible": line.legible}
        for line in seal.lines
    ]
    return {
        "category_id": KINDS.index(seal.kind) + 1,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": round(float(cv2.contourArea(seal.outline)), 1),
        "segmentation": [_rounded(seal.outline)],
        "iscrowd": 0,
        "attributes": {"color": seal.color, "angle_deg": round(seal.angle_deg, 3), "lines": lines},
    }


def text_of(document: Document) -> list[Json]:
    """Return a row for each line of text, printed or in a seal, without the image's name."""
    printed = [
        {"source": "page", "text": line.text, "polygon": _rounded(line.polygon), "under_seal": line.under_seal}
        for line in document.page_lines
    ]
    in_seals = [
        {
            "source": "seal",
            "seal": number,
            "text": line.text,
            "role": line.role,
            "polygon": _rounded(line.polygon),
            "legible": line.legible,
        }
        for number, seal in enumerate(document.seals)
        for line in seal.lines
    ]
    return [*printed, *in_seals]


def _rounded(points: NDArray[np.float32]) -> list[float]:
    return [round(float(value), 2) for value in points.ravel()]


def seal_of(annotation: Mapping[str, Any]) -> SealLabel:
    """Return the label that an annotation was written from."""
    x, y, wide, high = annotation["bbox"]
    attributes = annotation["attributes"]
    lines = tuple(
        LineLabel(line["text"], line["role"], _points(line["polygon"]), bool(line["legible"]))
        for line in attributes["lines"]
    )
    kind = dict(enumerate(KINDS, 1))[annotation["category_id"]]
    box = (float(x), float(y), float(x + wide), float(y + high))
    outline = _points(annotation["segmentation"][0])
    return SealLabel(kind, attributes["color"], box, float(attributes["angle_deg"]), lines, outline)


def _points(values: Sequence[float]) -> NDArray[np.float32]:
    return np.asarray(values, np.float32).reshape(-1, 2)


class SealSet:
    """A written set: labels are in memory, pictures are read when a document is asked for.

    Args:
        folder: With `images`, the other planes, `annotations.json` and `text.jsonl`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        coco = _read_json(folder / ANNOTATIONS)
        try:
            self.files = [_inner(image["file_name"]) for image in coco["images"]]
            self._captures = [str(image.get("capture", "")) for image in coco["images"]]
            place = {image["id"]: number for number, image in enumerate(coco["images"])}
            self._annotations: dict[int, list[Json]] = defaultdict(list)
            for annotation in coco["annotations"]:
                self._annotations[place[annotation["image_id"]]].append(annotation)
        except KeyError as error:
            raise ValueError(
                f"{folder / ANNOTATIONS}: {quoted(error.args[0])!r} is missing: write the set anew"
            ) from None
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{folder / ANNOTATIONS} is no COCO of ours ({quoted(str(error))}): write it anew"
            ) from None
        self._text = _text_rows(folder / TEXT)
        missing = [plane for plane in PLANES if not (folder / plane).is_dir()]
        if missing or not self.files:
            what = f"no folder {missing[0]}" if missing else "no images"
            raise FileNotFoundError(f"the seal set {folder} has {what}: write it anew with `sealmark prepare seals`")

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> str:
        """Return a document's picture."""
        return str(self.folder / self.files[index])

    def annotations(self, index: int) -> list[Json]:
        """Return COCO's annotations of a document, without `id` and `image_id`."""
        return [{k: v for k, v in row.items() if k not in ("id", "image_id")} for row in self._annotations[index]]

    def text(self, index: int) -> list[Json]:
        """Return a document's rows of text, without its name."""
        return self._text.get(self.files[index], [])

    def plane(self, index: int, plane: str) -> NDArray[np.uint8]:
        """Return one of the arrays as it was written: RGB for pictures, (H, W) for the rest."""
        pixels = read_image(self.folder / plane / Path(self.files[index]).name)
        return pixels if plane in ("images", "pages") else np.ascontiguousarray(pixels[..., 0])

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of a seal set of {len(self)}")
        try:
            return self._document(index)
        except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
            raise ValueError(
                f"the labels of {self.path(index)} cannot be understood ({quoted(str(error))}): write the set anew"
            ) from None

    def _document(self, index: int) -> Document:
        planes = {plane: self.plane(index, plane) for plane in PLANES}
        printed = [row for row in self.text(index) if row["source"] == "page"]
        return Document(
            image=planes["images"],
            page=planes["pages"],
            ink=planes["ink"] > 127,
            visible=planes["visible"] > 127,
            alpha=planes["alpha"].astype(np.float32) / np.float32(255),
            area=planes["area"] > 127,
            seals=tuple(seal_of(row) for row in self._annotations[index]),
            page_lines=tuple(PageLine(row["text"], _points(row["polygon"]), row["under_seal"]) for row in printed),
            capture=self._captures[index],
            path=self.path(index),
        )


def is_seal_set(folder: str | Path) -> bool:
    """Whether a folder is laid out as a written set."""
    return (Path(folder) / ANNOTATIONS).is_file()


def read_seal_set(folder: str | Path) -> SealSet:
    """Open a set that `sealmark prepare seals` or a realising run wrote.

    Raises:
        FileNotFoundError: the folder is no such set.
        ValueError: its labels cannot be understood.
    """
    if not is_seal_set(folder):
        raise FileNotFoundError(f"{folder} has no {ANNOTATIONS}: write a set with `sealmark prepare seals {folder}`")
    return SealSet(Path(folder))


def _read_json(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes(), path.name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): write the set anew") from error


def _inner(name: Any) -> str:
    """Return the name of a picture, which must be below the set's folder."""
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise ValueError(f"{quoted(name)} is no name of a picture in the set")
    return name


def _text_rows(path: Path) -> dict[str, list[Json]]:
    rows: dict[str, list[Json]] = defaultdict(list)
    if not path.is_file():
        return rows
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}): write the set anew") from None
    # Not `splitlines`, which cuts within texts, at the line ends of other alphabets.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        row = parse_json(line, f"{path}, line {number},")
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise ValueError(f"{path}, line {number}: no row of text with an image")
        rows[row.pop("image")].append(row)
    return dict(rows)


@dataclass(frozen=True)
class MaskedPicture:
    """A picture of seals with a mask of their ink, as DocDiff, StaVer and DDI-100 give them."""

    path: str
    mask: str

    def read(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return the picture and its mask; bright or dark, the rarer tone is ink."""
        image, gray = read_image(self.path), read_image(self.mask)[..., 1]
        if gray.shape != image.shape[:2]:
            raise UnreadableImageError(self.mask, f"{gray.shape[::-1]} is not the size of its picture {self.path}")
        ink = gray > 127
        return image, ink if ink.mean() <= 0.5 else ~ink


def masked_pictures(images: str | Path, masks: str | Path) -> list[MaskedPicture]:
    """Pair pictures with masks by their names: `a.png` with `a.png`, `a-gt.png`, `a_mask.png` and the like.

    Raises:
        FileNotFoundError: a picture has no mask, or a folder has no pictures.
    """
    found = {Path(path).stem: path for path in ImageListing.scan(masks)}
    by_stem = {**{_plain(stem): path for stem, path in found.items()}, **found}
    pairs = []
    for path in ImageListing.scan(images):
        stem = Path(path).stem
        mask = by_stem.get(stem)
        if mask is None:
            raise FileNotFoundError(f"{path} has no mask in {masks}: name it {stem}.png, or leave the picture out")
        pairs.append(MaskedPicture(path, mask))
    return pairs


def _plain(stem: str) -> str:
    for end in ("-gt", "_gt", "-mask", "_mask", "-px", "_px"):
        if stem.endswith(end):
            return stem[: -len(end)]
    return stem


@dataclass(frozen=True, eq=False)
class ReadSeal:
    """A photographed seal of ReST: a crop and the text in it."""

    path: str
    lines: tuple[tuple[str, NDArray[np.float32]], ...]


def rest_seals(labels: str | Path, images: str | Path) -> Iterator[ReadSeal]:
    """Yield the seals of ICDAR 2023 ReST: one JSON object, `gt_7: [{points, transcription}]` for the seventh picture.

    Pictures are found by that number or name, whatever comes before it: `train_7.jpg`, `gt_7.png`, `7.jpg`.

    Raises:
        ValueError: the labels are not laid out like that.
        FileNotFoundError: a picture is missing.
    """
    table = _read_json(Path(labels))
    if not isinstance(table, dict):
        raise ValueError(f"{labels} is not ReST's JSON, an object with a list of lines for each picture")
    by_number = {Path(path).stem.rsplit("_", 1)[-1]: path for path in ImageListing.scan(images)}
    for name, rows in table.items():
        path = by_number.get(name.rsplit("_", 1)[-1])
        if path is None:
            raise FileNotFoundError(f"{images} has no picture for {quoted(name)!r} of {labels}")
        try:
            lines = tuple((str(row["transcription"]), _points(np.ravel(row["points"]).tolist())) for row in rows)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            told = quoted(repr(error))
            raise ValueError(f"{labels}, {quoted(name)}: a line needs points and transcription ({told})") from error
        yield ReadSeal(path, lines)
