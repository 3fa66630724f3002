"""Printed lines on a sheet: drawn at twice the size, with the place of every word."""

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datamodules.transforms.fonts import AnyFont
from datamodules.transforms.seals.seal_fonts import Face, open_face

Gray = NDArray[np.uint8]
FINER = 2  # text is drawn at this multiple and averaged: hinting and bitmap strikes do not show


@dataclass(frozen=True)
class Word:
    """A word and where it begins and ends, in pixels of the sheet."""

    text: str
    left: float
    right: float


@dataclass(frozen=True)
class PrintedLine:
    """A line of text on a sheet, between `top` and `bottom`."""

    words: tuple[Word, ...]
    top: float
    bottom: float
    joiner: str

    @property
    def text(self) -> str:
        """The line as one reads it."""
        return self.joiner.join(word.text for word in self.words)


@dataclass(frozen=True)
class TypeFaces:
    """Fonts of a page."""

    body: Face
    bold: Face
    hand: Face


@dataclass
class Typesetter:
    """A sheet that is being filled from top to bottom.

    Args:
        width: Of the sheet, in its pixels.
        height: Of the sheet, in its pixels.
        em: Size of body text, in pixels of the sheet.
        faces: Fonts.
        joiner: What stands between two words.
    """

    width: int
    height: int
    em: float
    faces: TypeFaces
    joiner: str
    lines: list[PrintedLine] = field(default_factory=list)
    anchors: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._image = Image.new("L", (FINER * self.width, FINER * self.height), 255)
        self._draw = ImageDraw.Draw(self._image)
        self.margin = 2.6 * self.em
        self.cursor = 2.2 * self.em

    @property
    def column(self) -> float:
        """Width between the margins."""
        return self.width - 2 * self.margin

    def font(self, scale: float = 1.0, bold: bool = False) -> AnyFont:
        """Return a font for the finer raster."""
        return open_face(self.faces.bold if bold else self.faces.body, max(1, round(FINER * self.em * scale)))

    def line(self, x: float, y: float, words: list[str], font: AnyFont, centred: float = 0.0) -> float:
        """Draw words from `x`, the top of their letters near `y`; return where they end.

        Args:
            x: Left end; with `centred`, the share of the width that lies left of it.
            y: Top of the line.
            words: What to draw.
            font: For the finer raster.
            centred: 0 begins at `x`, 0.5 centres, 1 ends there.
        """
        text = self.joiner.join(words)
        if not text:
            return x
        left = FINER * x - centred * font.getlength(text)
        _, upper, _, lower = font.getbbox(text)
        self._draw.text((left, FINER * y), text, fill=0, font=font)
        placed, before = [], ""
        for word in words:
            start = font.getlength(before)
            placed.append(Word(word, (left + start) / FINER, (left + start + font.getlength(word)) / FINER))
            before += word + self.joiner
        self.lines.append(PrintedLine(tuple(placed), y + upper / FINER, y + lower / FINER, self.joiner))
        return placed[-1].right

    def paragraph(self, words: list[str], scale: float = 1.0, indent: float = 0.0, until: float = 1.0) -> None:
        """Set words in lines down from the cursor, as long as they stay above a share of the height."""
        font, width = self.font(scale), FINER * (self.column - indent)
        kept: list[str] = []
        for word in [*words, None]:
            if word is not None and (not kept or font.getlength(self.joiner.join([*kept, word])) <= width):
                kept.append(word)
                continue
            if self.cursor > until * self.height - self.em:
                return
            self.line(self.margin + indent, self.cursor, kept, font)
            self.cursor += 1.45 * self.em * scale
            kept = [] if word is None else [word]
        self.cursor += 0.35 * self.em

    def rule(self, left: float, top: float, right: float, bottom: float, stroke: float = 0.06) -> None:
        """Draw a straight line; its width is a share of an em."""
        ends = [FINER * value for value in (left, top, right, bottom)]
        self._draw.line(ends, fill=40, width=max(1, round(FINER * stroke * self.em)))

    def signature(self, x: float, y: float, name: str) -> None:
        """Write a name by hand; it is no text that a reader should find."""
        font = open_face(self.faces.hand, round(FINER * 1.7 * self.em))
        self._draw.text((FINER * x, FINER * y), name, fill=30, font=font)

    def finished(self) -> Gray:
        """Return the sheet: 255 where there is paper, 0 where there is toner."""
        fine = np.asarray(self._image)
        return np.asarray(cv2.resize(fine, (self.width, self.height), interpolation=cv2.INTER_AREA), np.uint8)
