"""The parts of a seal before it is cut: its outline, rings, star, hairlines, and where its words go."""

from dataclasses import dataclass
from typing import Literal

from datamodules.transforms.seals.seal_fonts import Face

Kind = Literal["round", "oval", "square", "triangular"]
Color = Literal["red", "blue", "black", "violet"]
Role = Literal["title", "usage", "serial", "name"]
Script = Literal["latin", "chinese", "auto"]
Layout = Literal["over", "under", "row", "column"]

KINDS: tuple[Kind, ...] = ("round", "oval", "square", "triangular")
COLORS: tuple[Color, ...] = ("red", "blue", "black", "violet")


@dataclass(frozen=True)
class Ring:
    """A line along the outline: how far inside its outer edge lies, and its width."""

    inset: float
    width: float


@dataclass(frozen=True)
class Hairline:
    """A thin straight cut through the whole seal: where it passes, seen from the middle, and its width."""

    angle_deg: float
    offset: float
    width: float


@dataclass(frozen=True)
class SealText:
    """A line of text; all lengths are in halves of the seal's longest side.

    Args:
        layout: `over` runs clockwise over the top of an ellipse, `under` counter-clockwise under it, letters
            upright at its lowest point; `row` runs left to right, `column` top to bottom.
        height: height of a capital letter or of a Chinese character.
        length: from the left edge of the first letter to the right edge of the last, along the middle of the letters.
        condense: width of the letters by their natural width.
        inset: of arcs: from the outline to the middle of the letters.
        x: of rows and columns: the middle, to the right.
        y: of rows and columns: the middle, downwards.
    """

    text: str
    role: Role
    face: Face
    layout: Layout
    height: float
    length: float
    condense: float = 1.0
    inset: float = 0.0
    x: float = 0.0
    y: float = 0.0


@dataclass(frozen=True)
class SealDesign:
    """A seal, in halves of its longest side around its middle, x to the right and y down.

    Args:
        aspect: height by width of the outline.
        corner: radius of the rounded corners of squares and triangles.
        star: distance of the star's tips from the middle; 0 for none.
        star_y: where the star's middle is, downwards.
        yin: the outline is filled, and the words are cut out of it.
    """

    kind: Kind
    color: Color
    lines: tuple[SealText, ...]
    rings: tuple[Ring, ...]
    hairlines: tuple[Hairline, ...] = ()
    star: float = 0.0
    star_y: float = 0.0
    aspect: float = 1.0
    corner: float = 0.0
    yin: bool = False
