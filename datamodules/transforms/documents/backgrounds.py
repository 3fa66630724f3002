"""A sheet in the picture before any seal: print, paper, what shines through, and what lies beyond its edge."""

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.transforms.documents.films import Mask, Pixels, filled
from datamodules.transforms.documents.placing import mapped, on_pixels
from datamodules.transforms.documents.plans import Plan, Rgb


def blank_page(plan: Plan, wh: tuple[int, int], light: Rgb, show_through: float) -> tuple[Pixels, Mask | None]:
    """Return the page in the picture, and where there is paper if its edge can be seen.

    Args:
        plan: Of the document.
        wh: Width and height of the picture.
        light: Colour of the paper as it is lit.
        show_through: How strongly the other side's print shines through.
    """
    matrix = plan.layout.matrix
    toner = cv2.warpPerspective(
        plan.sheet.toner, on_pixels(matrix), wh, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=255
    )
    if show_through:
        larger = on_pixels(matrix @ np.diag([4.0, 4.0, 1.0]))
        behind = cv2.warpPerspective(plan.behind.behind, larger, wh, flags=cv2.INTER_LINEAR, borderValue=255)
        toner = cv2.addWeighted(toner, 1, cv2.bitwise_not(behind), -show_through, 0)
    exposure = (light[0] / plan.paper[0], light[1] / plan.paper[1], light[2] / plan.paper[2])
    page = cv2.LUT(cv2.merge([toner, toner, toner]), _tones(plan.toner, plan.paper, exposure))
    if plan.sheet.accent:
        width = plan.sheet.toner.shape[1]
        band = mapped(matrix, np.array([[0, 0], [width, 0], [width, plan.sheet.accent], [0, plan.sheet.accent]]))
        mask = filled(band.astype(np.float32), wh[::-1])
        if mask.any():
            colored = cv2.LUT(cv2.merge([toner, toner, toner]), _tones(plan.accent, plan.paper, exposure))
            cv2.copyTo(colored, mask.astype(np.uint8), page)
    paper = filled(sheet_corners(plan).astype(np.float32), wh[::-1])
    if paper.all():
        return np.asarray(page, np.uint8), None
    return _beyond(plan, page, paper, exposure), paper


def sheet_corners(plan: Plan) -> NDArray[np.float64]:
    """Return the corners (4, 2) of the sheet in the picture."""
    height, width = plan.sheet.toner.shape
    return mapped(plan.layout.matrix, np.array([[0, 0], [width, 0], [width, height], [0, height]]))


def _tones(dark: Rgb, paper: Rgb, exposure: Rgb) -> NDArray[np.uint8]:
    share = np.linspace(0, 1, 256)[:, None]
    values = (np.array(dark) * (1 - share) + share) * np.array(paper) * np.array(exposure)
    return np.asarray(np.clip(np.round(255 * values), 0, 255)[:, None], np.uint8)


def _beyond(plan: Plan, page: Pixels, paper: Mask, exposure: Rgb) -> Pixels:
    """Put a desk, or another sheet, behind the paper's edge, which casts a thin shadow."""
    other = tuple(0.97 * value for value in plan.paper) if plan.layout.straddles else plan.beyond
    color = np.clip(255 * np.array(other) * np.array(exposure), 0, 255).astype(np.uint8)
    mask = paper.astype(np.uint8)
    cv2.copyTo(page, mask, behind := np.full(page.shape, color, np.uint8))
    soft = cv2.blur(cv2.blur(255 * mask, (reach := 3 + round(plan.sheet.em / 5), reach)), (reach, reach))
    shade = cv2.bitwise_not(cv2.convertScaleAbs(soft, alpha=0.5))
    cv2.copyTo(np.full(paper.shape, 255, np.uint8), mask, shade)
    return np.asarray(cv2.multiply(behind, cv2.merge([shade, shade, shade]), scale=1 / 255), np.uint8)
