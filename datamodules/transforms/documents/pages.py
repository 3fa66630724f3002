"""Pages of contracts, invoices, letters and tables, kept after they were drawn once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from datamodules.images.randomness import sample_rng
from datamodules.transforms.documents.typesetting import Gray, PrintedLine, TypeFaces, Typesetter
from datamodules.transforms.documents.words import CHINESE, ENGLISH, PAGE_KINDS, PageKind, Phrases
from datamodules.transforms.fonts import BUILT_IN, available_fonts, font_family
from datamodules.transforms.seals.seal_fonts import Face, chinese_faces, covers

PAGE_STREAM = 601
SHEET_RATIO = 2**0.5
# Families that offices print with, and hands for signatures, of those that augly brings.
_BODY = ("IBMPlexSans", "IBMPlexSerif", "NotoSans", "NotoSerif", "OpenSans", "SourceSansPro", "Ubuntu", "IBMPlexMono")
_HANDS = ("Allura", "AlexBrush", "GreatVibes", "blackjack", "DancingScript")


@dataclass(frozen=True)
class Sheet:
    """A printed page.

    Attributes:
        toner: (H, W), 255 where there is paper, 0 where there is toner.
        behind: What shines through from the other side: mirrored, out of focus, a quarter of the size.
        lines: Its text.
        anchors: Where seals are put: dates, signatures, totals, x and y.
        accent: Rows from the top that are printed in colour.
        em: Size of body text in pixels.
        kind: What the page is.
    """

    toner: Gray
    behind: Gray
    lines: tuple[PrintedLine, ...]
    anchors: tuple[tuple[float, float], ...]
    accent: int
    em: float
    kind: PageKind


@lru_cache(maxsize=64)
def kept_sheet(seed: int, number: int, width: int, em: float, chinese_face: Face | None) -> Sheet:
    """Return a sheet of a pool; the five numbers decide every pixel.

    Args:
        seed: Of the pool.
        number: Of the sheet.
        width: In pixels.
        em: Size of body text in pixels, before the page's own choice.
        chinese_face: Draws Chinese pages with this font; None draws English ones.
    """
    return draw_sheet(sample_rng(seed, 0, number, PAGE_STREAM), width, em, chinese_face)


def draw_sheet(
    rng: np.random.Generator, width: int, em: float, chinese_face: Face | None = None, kind: PageKind | None = None
) -> Sheet:
    """Draw a page of a kind, or of any."""
    kind = kind or PAGE_KINDS[int(rng.integers(len(PAGE_KINDS)))]
    phrases = ENGLISH if chinese_face is None else CHINESE
    faces = _faces(rng, chinese_face)
    size = em * rng.uniform(0.85, 1.15)
    setter = Typesetter(width, round(width * SHEET_RATIO), size, faces, phrases.joiner)
    accent = _TEMPLATES[kind](rng, setter, phrases)
    toner = setter.finished()
    return Sheet(toner, _seen_from_behind(toner), tuple(setter.lines), tuple(setter.anchors), accent, size, kind)


def page_faces() -> tuple[Face, ...]:
    """Return the Chinese fonts of this machine that have every character of the pages."""
    return _with_all(chinese_faces())


@lru_cache(maxsize=4)
def _with_all(faces: tuple[Face, ...]) -> tuple[Face, ...]:
    letters = "".join(sorted(set(repr(CHINESE)) - set(repr(ENGLISH))))
    return tuple(face for face in faces if covers(face[0], letters, face[1]))


def _faces(rng: np.random.Generator, chinese_face: Face | None) -> TypeFaces:
    fonts = {family: _of_family(family) for family in (*_BODY, *_HANDS)}
    hands = [path for family in _HANDS for path in fonts[family][:1]]
    hand = hands[int(rng.integers(len(hands)))] if hands else BUILT_IN
    if chinese_face is not None:
        return TypeFaces(chinese_face, chinese_face, (hand, 0))
    families = [fonts[family] for family in _BODY if fonts[family]] or [(BUILT_IN,)]
    family = families[int(rng.integers(len(families)))]
    return TypeFaces((family[0], 0), (family[-1], 0), (hand, 0))


@lru_cache(maxsize=32)
def _of_family(family: str) -> tuple[str, ...]:
    """The regular face of a family and, if it has one, the bold face."""
    paths = [path for path in available_fonts() if font_family(path) == family]
    ends = ("-Regular.", "-Bold.")
    return tuple(path for end in ends for path in paths if end in path)[:2]


def _seen_from_behind(toner: Gray) -> Gray:
    small = cv2.resize(toner, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(cv2.blur(small, (3, 3))[:, ::-1], np.uint8)


def _title(rng: np.random.Generator, page: Typesetter, phrases: Phrases, kind: PageKind) -> None:
    title = phrases.words(phrases.one(rng, phrases.titles[kind]))
    page.line(page.width / 2, page.cursor, title, page.font(rng.uniform(1.5, 2.0), bold=True), centred=0.5)
    page.cursor += 2.9 * page.em


def _letterhead(rng: np.random.Generator, page: Typesetter, phrases: Phrases) -> int:
    """Name and address on top, often in colour; return the rows that it takes."""
    name = phrases.words(phrases.one(rng, phrases.names))
    page.line(page.width / 2, page.cursor, name, page.font(1.6, bold=True), centred=0.5)
    page.cursor += 2.3 * page.em
    address = phrases.words(f"{int(rng.integers(1, 300))}{phrases.joiner}{phrases.one(rng, phrases.places)}")
    page.line(page.width / 2, page.cursor, address, page.font(0.8), centred=0.5)
    page.cursor += 1.5 * page.em
    page.rule(page.margin, page.cursor, page.width - page.margin, page.cursor, 0.12)
    rows = round(page.cursor + 0.3 * page.em)
    page.cursor += 1.2 * page.em
    return rows if rng.random() < 0.6 else 0


def _labelled(page: Typesetter, x: float, y: float, phrases: Phrases, label: str, value: str) -> float:
    words = [*phrases.words(f"{phrases.labels[label]}:"), *phrases.words(value)]
    return page.line(x, y, words, page.font())


def _signature_block(rng: np.random.Generator, page: Typesetter, phrases: Phrases, x: float, label: str) -> None:
    """A label, a line to sign on, a name and a date: what real seals sit on."""
    em, top = page.em, page.cursor
    page.line(x, top, phrases.words(f"{phrases.labels[label]}:"), page.font())
    page.rule(x, top + 4.2 * em, x + 13 * em, top + 4.2 * em)
    person = phrases.one(rng, phrases.people)
    if rng.random() < 0.7:
        page.signature(x + rng.uniform(0, 4) * em, top + 1.9 * em, person if phrases.joiner else "J. Chen")
    page.line(x, top + 4.6 * em, phrases.words(phrases.one(rng, phrases.names)), page.font(0.9))
    _labelled(page, x, top + 6.2 * em, phrases, "date", phrases.day(rng))
    page.anchors.append((x + rng.uniform(4, 10) * em, top + rng.uniform(2.5, 6.5) * em))


def _contract(rng: np.random.Generator, page: Typesetter, phrases: Phrases) -> int:
    _title(rng, page, phrases, "contract")
    number = f"{int(rng.integers(2004, 2027))}-{int(rng.integers(100_000)):05d}"
    _labelled(page, page.margin, page.cursor, phrases, "number", number)
    page.cursor += 1.8 * page.em
    parties = [f"{phrases.labels[key]}: {phrases.one(rng, phrases.names)}" for key in ("between", "and")]
    for party in parties:
        page.paragraph(phrases.words(party))
    last = rng.uniform(0.45, 0.8)
    for clause in range(1, 20):
        if page.cursor > last * page.height:
            break
        heading = phrases.words(f"{clause}. {phrases.one(rng, phrases.headings)}")
        page.line(page.margin, page.cursor, heading, page.font(bold=True))
        page.cursor += 1.7 * page.em
        page.paragraph(phrases.words(phrases.paragraph(rng)), indent=page.em, until=0.84)
    page.cursor += page.em
    for x, label in ((page.margin, "first"), (page.width / 2 + page.em, "second")):
        _signature_block(rng, page, phrases, x, label)
    page.line(page.width / 2, page.height - 2 * page.em, ["1"], page.font(0.8), centred=0.5)
    return 0


def _letter(rng: np.random.Generator, page: Typesetter, phrases: Phrases) -> int:
    rows = _letterhead(rng, page, phrases)
    _labelled(page, page.margin, page.cursor, phrases, "date", phrases.day(rng))
    page.cursor += 1.8 * page.em
    _labelled(page, page.margin, page.cursor, phrases, "to", phrases.one(rng, phrases.names))
    page.cursor += 2.6 * page.em
    _title(rng, page, phrases, "letter")
    for _ in range(int(rng.integers(2, 7))):
        page.paragraph(phrases.words(phrases.paragraph(rng)), until=0.78)
    page.cursor += page.em
    x = page.margin if rng.random() < 0.4 else page.width / 2 + page.em
    page.line(x, page.cursor, phrases.words(phrases.labels["closing"]), page.font())
    page.cursor += 1.6 * page.em
    _signature_block(rng, page, phrases, x, "signed")
    return rows


def _grid(rng: np.random.Generator, page: Typesetter, phrases: Phrases, rows: int) -> None:
    """A ruled table of goods, quantities and amounts from the cursor down."""
    em, left = page.em, page.margin
    edges = [left + page.column * share for share in (0, 0.44, 0.6, 0.8, 1)]
    step = rng.uniform(1.7, 2.3) * em
    top, pad = page.cursor, (step - 1.25 * em) / 2
    head = page.font(0.95, bold=True)
    for edge, text in zip(edges, phrases.columns, strict=False):
        page.line(edge + 0.5 * em, top + pad, phrases.words(text), head)
    font = page.font(0.95)
    for row in range(1, rows):
        y = top + row * step + pad
        page.line(edges[0] + 0.5 * em, y, phrases.words(phrases.one(rng, phrases.goods)), font)
        cells = (str(int(rng.integers(1, 900))), f"{rng.uniform(1, 900):.2f}", phrases.money(rng))
        for edge, text in zip(edges[2:], cells, strict=True):
            page.line(edge - 0.5 * em, y, [text], font, centred=1.0)
    bottom = top + rows * step
    ruled = rng.random() < 0.7
    for row in range(rows + 1):
        if ruled or row in (0, 1, rows):
            page.rule(left, top + row * step, edges[-1], top + row * step)
    if ruled:
        for edge in edges:
            page.rule(edge, top, edge, bottom)
    page.anchors.append((edges[3], bottom - rng.uniform(0, 2) * step))
    page.cursor = bottom + em


def _invoice(rng: np.random.Generator, page: Typesetter, phrases: Phrases) -> int:
    rows = _letterhead(rng, page, phrases)
    _title(rng, page, phrases, "invoice")
    _labelled(page, page.margin, page.cursor, phrases, "number", f"{int(rng.integers(10_000_000)):07d}")
    _labelled(page, page.width / 2 + page.em, page.cursor, phrases, "date", phrases.day(rng))
    page.cursor += 1.8 * page.em
    _labelled(page, page.margin, page.cursor, phrases, "to", phrases.one(rng, phrases.names))
    page.cursor += 2.4 * page.em
    _grid(rng, page, phrases, int(rng.integers(4, 13)))
    total = [*phrases.words(f"{phrases.labels['total']}:"), phrases.money(rng)]
    page.line(page.width - page.margin, page.cursor, total, page.font(1.1, bold=True), centred=1.0)
    page.anchors.append((page.width - page.margin - 5 * page.em, page.cursor))
    page.cursor += 2.6 * page.em
    page.paragraph(phrases.words(phrases.paragraph(rng, 1, 3)), until=0.8)
    page.cursor += page.em
    _signature_block(rng, page, phrases, page.width / 2 + page.em, "signed")
    return rows


def _table(rng: np.random.Generator, page: Typesetter, phrases: Phrases) -> int:
    _title(rng, page, phrases, "table")
    page.paragraph(phrases.words(phrases.paragraph(rng, 1, 2)))
    _grid(rng, page, phrases, int(rng.integers(10, 20)))
    page.paragraph(phrases.words(phrases.paragraph(rng, 1, 2)), until=0.82)
    page.cursor += page.em
    for x, label in ((page.margin, "made"), (page.width / 2 + page.em, "approved")):
        _signature_block(rng, page, phrases, x, label)
    return 0


_TEMPLATES: dict[PageKind, Callable[[np.random.Generator, Typesetter, Phrases], int]] = {
    "contract": _contract,
    "invoice": _invoice,
    "letter": _letter,
    "table": _table,
}
