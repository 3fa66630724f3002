"""A document with seals and everything that is true of it, from (seed, index)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodules.images.randomness import sample_rng
from datamodules.transforms.documents.backgrounds import blank_page, sheet_corners
from datamodules.transforms.documents.capture import draw_capture
from datamodules.transforms.documents.films import (
    VISIBLE_FROM,
    Film,
    LineLabel,
    Mask,
    Pixels,
    SealLabel,
    joined,
    label_of,
    on_paper,
    pressed_film,
)
from datamodules.transforms.documents.page_text import PageLine, page_lines
from datamodules.transforms.documents.plans import CAPTURE_STREAM, INK_STREAM, Plan, draw_plan
from datamodules.transforms.documents.settings import DocumentSettings, Domain
from datamodules.transforms.documents.windows import captured
from datamodules.transforms.seals.ink import flat, press
from datamodules.transforms.seals.outlines import outline, turned
from datamodules.transforms.seals.stamps import Stamp, draw_stamp

__all__ = ["Document", "DocumentSettings", "Domain", "LineLabel", "PageLine", "SealLabel", "draw_document"]


@dataclass(frozen=True, eq=False)
class Document:
    """A picture of a document and its ground truth; arrays are (H, W) or (H, W, 3).

    Attributes:
        image: The document.
        page: The same picture without its seals, by the same device: what a remover of seals should give.
        ink: Where the seals as they were cut cover more than half of a pixel.
        visible: Where printed ink can be seen.
        alpha: How much ink was printed, 0 to 1.
        area: Filled silhouettes.
        seals: Seals with their text.
        page_lines: Printed text.
        capture: The device; "" in the clean domain.
        path: Name for records.
    """

    image: Pixels
    page: Pixels
    ink: Mask
    visible: Mask
    alpha: NDArray[np.float32]
    area: Mask
    seals: tuple[SealLabel, ...]
    page_lines: tuple[PageLine, ...]
    capture: str
    path: str


def draw_document(seed: int, index: int, settings: DocumentSettings) -> Document:
    """Draw a document; seed, index and settings decide every byte.

    The two domains share page, layout, designs and colours: their draws come from streams of their own.
    """
    plan = draw_plan(seed, index, settings)
    wh = (settings.size, settings.size)
    stamps = [
        draw_stamp(design, place.side, place.angle_deg)
        for design, place in zip(plan.designs, plan.layout.places, strict=True)
    ]
    if settings.domain == "clean":
        capture, light = None, plan.paper
        page, paper = blank_page(plan, wh, light, show_through=0.0)
        films = [_film(plan, k, stamp, None, settings) for k, stamp in enumerate(stamps)]
    else:
        rng = sample_rng(seed, 0, index, CAPTURE_STREAM)
        capture = draw_capture(rng, plan.device, wh[::-1], settings.tooth)
        shine = rng.uniform(0.03, 0.11) if rng.random() < settings.show_through else 0.0
        red, green, blue = (a * b for a, b in zip(plan.paper, capture.light, strict=True))
        light = (red, green, blue)
        page, paper = blank_page(plan, wh, light, shine)
        ink_rng = sample_rng(seed, 0, index, INK_STREAM)
        films = [_film(plan, k, stamp, ink_rng, settings) for k, stamp in enumerate(stamps)]
    if paper is not None and not plan.layout.straddles:
        films = [on_paper(film, paper, sheet_corners(plan)) for film in films]
    image, page = captured(page, films, capture, light)
    planes = joined(films, wh)
    return Document(
        image=image,
        page=page,
        ink=planes.ink,
        visible=planes.alpha > VISIBLE_FROM,
        alpha=planes.alpha,
        area=planes.area,
        seals=tuple(label for film in films if (label := label_of(film, wh)) is not None),
        page_lines=tuple(page_lines(plan.sheet.lines, plan.layout.matrix, planes.area)),
        capture="" if capture is None else capture.kind,
        path=f"drawn://{seed}/{index}/{settings.domain}",
    )


def _film(plan: Plan, place: int, stamp: Stamp, rng: np.random.Generator | None, settings: DocumentSettings) -> Film:
    """Press a stamp with the ink model, or flat where there is no generator."""
    impression = flat(stamp) if rng is None else press(stamp, settings.ink, rng)
    ink = plan.inks[place].plain() if rng is None else plan.inks[place]
    edge = turned(outline(plan.designs[place]), stamp.angle_deg) * (stamp.side_px / 2) + np.array(stamp.centre)
    return pressed_film(stamp, impression, edge, ink, plan.layout.places[place], plan.layout.matrix)
