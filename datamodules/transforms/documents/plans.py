"""The plan of a document: page, seals, colours and geometry, the same in every domain."""

from dataclasses import dataclass, replace

import numpy as np

from datamodules.images.randomness import sample_rng
from datamodules.transforms.documents.capture import CaptureKind
from datamodules.transforms.documents.composing import Ink, draw_ink
from datamodules.transforms.documents.pages import Sheet, kept_sheet, page_faces
from datamodules.transforms.documents.placing import Layout, draw_layout
from datamodules.transforms.documents.settings import DocumentSettings
from datamodules.transforms.seals.designs import draw_design
from datamodules.transforms.seals.layouts import Color, SealDesign

ACCENTS: tuple[Color, ...] = ("red", "blue", "red", "violet")  # of printed letterheads
EM_SHARE = 1 / 26  # size of body text by the picture's side
# One stream a matter, so that a draw in one does not shift the others.
LAYOUT_STREAM, DESIGN_STREAM, COLOR_STREAM, INK_STREAM, CAPTURE_STREAM = range(620, 625)

Rgb = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Plan:
    """What both domains of a document share.

    Attributes:
        sheet: What is printed.
        behind: What is printed on the other side.
        designs: Of the seals.
        inks: Of the seals.
        layout: Where everything lies.
        device: What the document is captured with.
        paper: Colour of the paper, as colours of light that it gives back.
        toner: Colour of print.
        accent: Colour of print in a letterhead.
        beyond: Colour of what the paper lies on.
    """

    sheet: Sheet
    behind: Sheet
    designs: tuple[SealDesign, ...]
    inks: tuple[Ink, ...]
    layout: Layout
    device: CaptureKind
    paper: Rgb
    toner: Rgb
    accent: Rgb
    beyond: Rgb


def draw_plan(seed: int, index: int, settings: DocumentSettings) -> Plan:
    """Draw all that does not depend on the domain."""
    rng, color_rng = (sample_rng(seed, 0, index, stream) for stream in (LAYOUT_STREAM, COLOR_STREAM))
    devices, shares = zip(*settings.captures, strict=True)
    device: CaptureKind = devices[int(rng.choice(len(devices), p=np.array(shares) / sum(shares)))]
    pool = index // settings.documents_a_pool * settings.sheets if settings.documents_a_pool else 0
    sheet, behind = (_sheet(seed, pool + int(number), settings) for number in rng.integers(0, settings.sheets, 2))
    count = settings.seals[0] + sum(
        rng.random() < settings.more_share for _ in range(settings.seals[1] - settings.seals[0])
    )
    design_rng = sample_rng(seed, 0, index, DESIGN_STREAM)
    seal = replace(settings.seal, script=settings.scripts)
    designs = tuple(draw_design(design_rng, seal) for _ in range(count))
    layout = draw_layout(
        rng, sheet, tuple(design.kind for design in designs), settings.size, settings.sides, device, settings.geometry
    )
    black = color_rng.uniform(8, 60) / 255
    white = color_rng.uniform(0.94, 1.0) * (1 + color_rng.uniform(0, 0.05) * np.array([0.1, 0, -1.0]))
    paper = (min(1.0, float(white[0])), min(1.0, float(white[1])), float(white[2]))
    accent = draw_ink(color_rng, ACCENTS[int(color_rng.integers(4))]).rgb
    desk = color_rng.uniform(0.02, 0.95) * (1 + color_rng.uniform(0, 0.4) * np.array([0.0, -0.4, -1.0]))
    return Plan(
        sheet,
        behind,
        designs,
        tuple(draw_ink(color_rng, design.color) for design in designs),
        layout,
        device,
        paper,
        (black, black, black),
        accent,
        (float(desk[0]), float(desk[1]), float(desk[2])),
    )


def _sheet(seed: int, number: int, settings: DocumentSettings) -> Sheet:
    face = None
    if settings.scripts != "latin":
        faces = page_faces()
        face = faces[number % len(faces)] if faces else None
    return kept_sheet(seed, number, 2 * settings.size, settings.size * EM_SHARE, face)
