"""Drawing designs of seals: Latin and Chinese company seals, name seals, office stamps and triangles."""

import math
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from datamodules.transforms.seals import wording
from datamodules.transforms.seals.layouts import (
    Color,
    Hairline,
    Kind,
    Layout,
    Ring,
    Role,
    Script,
    SealDesign,
    SealText,
)
from datamodules.transforms.seals.lettering import natural_length
from datamodules.transforms.seals.seal_fonts import Face, script_faces

Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True)
class SealSettings:
    """What seals are drawn from.

    Args:
        kinds: outlines, and how often each is drawn.
        colors: classes of ink, and how often each is drawn.
        script: of the words; "auto" is Chinese on machines that have a font with the characters.
        hairline_chance: share of seals with anti-forgery hairlines.
    """

    kinds: tuple[tuple[Kind, float], ...] = (("round", 0.55), ("oval", 0.17), ("square", 0.2), ("triangular", 0.08))
    colors: tuple[tuple[Color, float], ...] = (("red", 0.62), ("blue", 0.2), ("black", 0.08), ("violet", 0.1))
    script: Script = "latin"
    hairline_chance: float = 0.15


@dataclass(frozen=True)
class _Pen:
    """What all lines of one seal share."""

    rng: np.random.Generator
    face: Face
    chinese: bool
    color: Color
    hairlines: tuple[Hairline, ...] = field(default=())

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def fitted(self, text: str, height: float, room: float, least: float, spread: float) -> tuple[float, float]:
        """Length and condensing of a line: natural or wider by `spread`, and narrower letters where room is short."""
        natural = natural_length(text, self.face, height)
        condense = min(1.0, max(least, room / (natural * spread)))
        return min(room, natural * condense * spread), min(condense, 0.98 * room / natural)


def _weighted(rng: np.random.Generator, choices: tuple[tuple[Choice, float], ...], of: str) -> Choice:
    weights = np.array([weight for _, weight in choices])
    if not len(weights) or weights.min() < 0 or weights.sum() <= 0:
        raise ValueError(f"{of} must name at least one choice with a weight above 0, got {choices!r}")
    drawn = int(np.searchsorted(np.cumsum(weights), rng.random() * weights.sum(), side="right"))
    return choices[min(drawn, len(choices) - 1)][0]


def _hairlines(rng: np.random.Generator, chance: float) -> tuple[Hairline, ...]:
    if rng.random() >= chance:
        return ()
    cuts = rng.uniform((0, -0.85, 0.006), (180, 0.85, 0.012), (int(rng.integers(1, 5)), 3))
    return tuple(Hairline(float(angle), float(offset), float(width)) for angle, offset, width in cuts)


def _arc(pen: _Pen, text: str, role: Role, layout: Layout, inset: float, height: float, room: float) -> SealText:
    spread = 1.25 if pen.chinese else pen.between(1.05, 1.3)
    length, condense = pen.fitted(text, height, room, 0.5, spread)
    return SealText(text, role, pen.face, layout, height, length, condense, inset)


def _row(pen: _Pen, text: str, role: Role, y: float, height: float, room: float, x: float = 0.0) -> SealText:
    length, condense = pen.fitted(text, height, room, 0.6, pen.between(1.0, 1.15))
    # A line that would need letters under half their width gets lower ones instead.
    low = min(1.0, condense / 0.45)
    return SealText(text, role, pen.face, "row", height * low, length, condense / low, x=x, y=y)


def _ellipse_length(a: float, b: float) -> float:
    """Ramanujan's second approximation, exact to six digits at these shapes."""
    h = ((a - b) / (a + b)) ** 2
    return math.pi * (a + b) * (1 + 3 * h / (10 + math.sqrt(4 - 3 * h)))


def _band(a: float, b: float, y: float, height: float) -> float:
    """Width of an ellipse where a row of a height fits into it."""
    return 2 * a * math.sqrt(max(0.0, 1 - ((abs(y) + height / 2) / b) ** 2))


def _chinese_rings(pen: _Pen) -> tuple[tuple[Ring, ...], float]:
    """One ring, seldom two, and how far inside the outline letters may begin."""
    ring = Ring(0.0, pen.between(0.025, 0.052))
    inner = (Ring(ring.width + pen.between(0.02, 0.04), pen.between(0.008, 0.016)),) if pen.chance(0.15) else ()
    return (ring, *inner), (inner[0].inset + inner[0].width if inner else ring.width) + pen.between(0.045, 0.1)


def _chinese_title(pen: _Pen, edge: float, room: float, aspect: float) -> tuple[SealText, float]:
    """The company over the top, in lower letters where it is long, and the angle that it takes."""
    title = wording.draw_company(pen.rng, chinese=True)
    height = room * min(1.0, 1.42 - 0.04 * len(title))
    middle = edge + height / 2
    around = _ellipse_length(1 - middle, aspect - middle)
    # 21 degrees a character between 200 and 290; rows under the title need the lower sixth.
    span = min(290.0, max(200.0, 21.0 * len(title)))
    length = span / 360 * around
    condense = min(pen.between(0.6, 0.8), 0.9 * length / (len(title) * height))
    return SealText(title, "title", pen.face, "over", height, length, condense, middle), span


def _chinese_round(pen: _Pen) -> SealDesign:
    rings, edge = _chinese_rings(pen)
    title, span = _chinese_title(pen, edge, pen.between(0.25, 0.31), 1.0)
    height = title.height
    lines, use = [title], wording.draw_use(pen.rng, chinese=True)
    free = (1 - span / 360) * _ellipse_length(1 - edge, 1 - edge)
    star = pen.between(0.28, 0.36) * (1.0 if span < 270 else 0.85)
    if span < 235 and pen.chance(0.45):
        small = height * pen.between(0.7, 0.85)
        lines.append(_arc(pen, use, "usage", "under", edge + small / 2, small, free * 0.75))
    else:
        small, inside = pen.between(0.15, 0.19), 1 - edge - height - 0.03
        # Under a short title a row may reach out to the ring; under a long one it stays within the letters.
        y, reach = (0.46, 1 - edge) if span < 230 else (0.42, inside)
        row = _row(pen, use, "usage", y, small, min(1.1, 0.94 * _band(reach, reach, y, small)))
        if row.height > 0.1:
            lines.append(row)
        if pen.chance(0.6):
            serial = wording.draw_serial(pen.rng, chinese=True)
            lines.append(_arc(pen, serial, "serial", "under", edge + 0.05, 0.09, min(1.15 * (1 - edge), free * 0.7)))
    return SealDesign("round", pen.color, tuple(lines), rings, pen.hairlines, star, -0.04)


def _chinese_oval(pen: _Pen, aspect: float) -> SealDesign:
    """A company's invoice seal: the title over the top, a register number in the middle, its use below."""
    rings, edge = _chinese_rings(pen)
    title, _ = _chinese_title(pen, edge, pen.between(0.2, 0.24), aspect)
    height = title.height
    a, b = 1 - edge - height - 0.04, aspect - edge - height - 0.04
    small = 0.36 * b
    serial, use = wording.draw_serial(pen.rng, chinese=True), wording.draw_use(pen.rng, chinese=True)
    rows = [(-0.3 * b, serial, "serial"), (0.35 * b, use, "usage")] if pen.chance(0.6) else [(0.35 * b, use, "usage")]
    lines = tuple(
        _row(pen, text, "serial" if role == "serial" else "usage", y, small, 0.94 * _band(a, b, y, small))
        for y, text, role in rows
    )
    star = 0.42 * b if len(rows) == 1 else 0.0
    return SealDesign("oval", pen.color, (title, *lines), rings, pen.hairlines, star, -0.32 * b, aspect)


def _latin_middle(pen: _Pen, a: float, b: float) -> tuple[list[SealText], float]:
    """What is inside the inner ring, an ellipse: a star, or one to three rows; and the size of the star."""
    if pen.chance(0.4):
        return [], b * pen.between(0.55, 0.7)
    states = [wording.draw_state(pen.rng, False), wording.draw_date(pen.rng), wording.draw_place(pen.rng, False)]
    rows = states[: int(pen.rng.integers(1, 4))]
    height = b * (0.36, 0.36, 0.31)[len(rows) - 1]
    lines = []
    for i, text in enumerate(rows):
        y = (i - (len(rows) - 1) / 2) * height * 1.6
        lines.append(_row(pen, text, "usage", y, height, 0.94 * _band(a, b, y, height)))
    return lines, 0.0


def _latin_round(pen: _Pen, aspect: float) -> SealDesign:
    ring = Ring(0.0, pen.between(0.02, 0.05))
    second = (Ring(ring.width + pen.between(0.02, 0.035), pen.between(0.008, 0.016)),) if pen.chance(0.4) else ()
    edge = second[-1].inset + second[-1].width if second else ring.width
    height = pen.between(0.15, 0.21) * (0.4 + 0.6 * aspect)
    gap = height * pen.between(0.35, 0.5)
    middle = edge + gap + height / 2
    around = _ellipse_length(1 - middle, aspect - middle)
    title = _arc(pen, wording.draw_company(pen.rng, False), "title", "over", middle, height, around * 0.6)
    rest = around - title.length
    if pen.chance(0.5):
        text, role = wording.draw_serial(pen.rng, False), "serial"
    else:
        text, role = pen.rng.choice([wording.draw_use(pen.rng, False), wording.draw_place(pen.rng, False)]), "usage"
    lower = _arc(pen, str(text), "serial" if role == "serial" else "usage", "under", middle, height * 0.9, rest * 0.75)
    inside = edge + 2 * gap + height
    inner = (Ring(inside, pen.between(0.01, 0.025)),) if pen.chance(0.7) else ()
    rings = (ring, *second, *inner)
    room = 1 - inside - sum(line.width for line in inner) - 0.03
    rows, star = _latin_middle(pen, room, aspect - 1 + room)
    kind: Kind = "round" if aspect == 1 else "oval"
    return SealDesign(kind, pen.color, (title, lower, *rows), rings, pen.hairlines, star, 0.0, aspect)


def _name_square(pen: _Pen) -> SealDesign:
    """Two columns of two characters, read from the right; or up to four Latin letters in two rows."""
    yin = pen.chance(0.5)
    border = pen.between(0.05, 0.1)
    room = 1 - border - pen.between(0.06, 0.1)
    rings = (Ring(0.0, border),)
    lines: list[SealText] = []
    if pen.chinese:
        name = wording.draw_person(pen.rng, chinese=True)
        columns = [name[:2], name[2:]] if len(name) > 3 else ([name[:1], name[1:]] if len(name) > 2 else [name])
        for i, text in enumerate(columns):
            width = 2 * room / len(columns)
            height = 2 * room / len(text) * 0.94
            x = (len(columns) - 1) * width / 2 - i * width
            condense = width * 0.92 / height
            lines.append(SealText(text, "name", pen.face, "column", height, 2 * room * 0.97, condense, x=x))
    else:
        words = wording.draw_person(pen.rng, chinese=False).split()
        height = 2 * room / len(words) * (0.6 if len(words) > 1 else 0.4)
        for i, text in enumerate(words):
            lines.append(_row(pen, text, "name", (i - (len(words) - 1) / 2) * height * 1.5, height, 1.9 * room))
    return SealDesign(
        "square", pen.color, tuple(lines), rings, pen.hairlines, corner=pen.between(0.02, 0.15), yin=yin
    )  # fmt: skip


def _framed(pen: _Pen) -> SealDesign:
    """A frame of one or two lines with rows in it, as office stamps have."""
    aspect = pen.between(0.32, 0.75)
    ring = Ring(0.0, pen.between(0.02, 0.05))
    inner = (Ring(ring.width + pen.between(0.025, 0.04), 0.012),) if pen.chance(0.35) else ()
    edge = sum(line.width + 0.04 for line in (ring, *inner)) + 0.03
    chinese = pen.chinese
    texts: list[tuple[str, Role]] = [(wording.draw_state(pen.rng, chinese), "title")]
    extra: list[tuple[str, Role]] = [
        (wording.draw_date(pen.rng), "usage"),
        (wording.draw_serial(pen.rng, chinese), "serial"),
        (wording.draw_company(pen.rng, chinese), "name"),
    ]
    most = 1 if aspect < 0.4 else 2 if aspect < 0.58 else 3
    texts += [extra[int(i)] for i in pen.rng.permutation(3)[: int(pen.rng.integers(0, most + 1))]]
    shares = np.array([1.5, 1, 1, 1][: len(texts)])
    heights = 2 * (aspect - edge) * shares / shares.sum()
    tops = np.cumsum(heights) - heights - (aspect - edge)
    lines = tuple(
        _row(pen, text, role, float(top + row / 2), float(row) * 0.62, 1.86 * (1 - edge))
        for (text, role), row, top in zip(texts, heights, tops, strict=True)
    )
    corner = pen.between(0.0, 0.12)
    return SealDesign("square", pen.color, lines, (ring, *inner), pen.hairlines, aspect=aspect, corner=corner)


def _triangular(pen: _Pen) -> SealDesign:
    """Rows that widen towards the base; the middle of the outline is the triangle's centre of mass."""
    ring = Ring(0.0, pen.between(0.03, 0.055))
    inner = (Ring(ring.width + 0.03, 0.012),) if pen.chance(0.3) else ()
    edge = sum(line.width + 0.03 for line in (ring, *inner)) + 0.04
    base, side = 1 / math.sqrt(3), math.sqrt(3)
    texts: list[tuple[str, Role]] = [
        (wording.draw_place(pen.rng, pen.chinese), "title"),
        (wording.draw_state(pen.rng, pen.chinese), "usage"),
        (wording.draw_serial(pen.rng, pen.chinese), "serial"),
    ]
    texts = texts[: int(pen.rng.integers(1, 4))]
    height = (0.3, 0.24, 0.19)[len(texts) - 1]
    lines = []
    for i, (text, role) in enumerate(reversed(texts)):
        y = base - edge - height * (0.62 + 1.45 * i)
        room = 2 * (y - height / 2 + 2 * base - 2 * edge) / side
        lines.append(_row(pen, text, role, y, height, room * 0.94))
    star = pen.between(0.12, 0.17) if len(texts) < 3 and pen.chance(0.5) else 0.0
    star_y = -0.42 if star else 0.0
    corner = pen.between(0.05, 0.2)
    return SealDesign(
        "triangular", pen.color, tuple(reversed(lines)), (ring, *inner), pen.hairlines, star, star_y, corner=corner
    )


def draw_design(rng: np.random.Generator, settings: SealSettings | None = None) -> SealDesign:
    """A seal of one of four outlines, with words, an ink colour, and perhaps a star and hairlines.

    Raises:
        FileNotFoundError: the settings demand Chinese, and no font of this machine has the characters.
    """
    settings = settings or SealSettings()
    faces, chinese = script_faces(settings.script)
    kind = _weighted(rng, settings.kinds, "kinds")
    color = _weighted(rng, settings.colors, "colors")
    face = faces[int(rng.integers(len(faces)))]
    pen = _Pen(rng, face, chinese, color, _hairlines(rng, settings.hairline_chance))
    if kind == "triangular":
        return _triangular(pen)
    if kind == "square":
        return _name_square(pen) if pen.chance(0.4) else _framed(pen)
    aspect = 1.0 if kind == "round" else pen.between(0.62, 0.8)
    if not chinese:
        return _latin_round(pen, aspect)
    return _chinese_round(pen) if kind == "round" else _chinese_oval(pen, aspect)
