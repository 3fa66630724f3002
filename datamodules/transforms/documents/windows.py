"""The picture with and without seals, the device being asked twice only where they differ."""

import numpy as np

from datamodules.transforms.documents.capture import BLOCK, REACH, Capture, developed
from datamodules.transforms.documents.films import Box, Film, Pixels, box_of, stamped
from datamodules.transforms.documents.plans import Rgb


def captured(page: Pixels, films: list[Film], capture: Capture | None, light: Rgb) -> tuple[Pixels, Pixels]:
    """Return the picture with and without seals; the device is asked again only where a seal changes what it sees."""
    inked = stamped(page, films, light)
    if capture is None:
        return inked, page
    clean = developed(page, capture)
    image = clean.copy()
    wh = (page.shape[1], page.shape[0])
    for left, top, right, bottom in _windows([box for film in films if (box := box_of(film, wh)) is not None], wh):
        outer = _grown((left, top, right, bottom), BLOCK, wh)
        seen = np.ascontiguousarray(inked[outer[1] : outer[3], outer[0] : outer[2]])
        part = developed(seen, capture, outer[1], outer[0])
        image[top:bottom, left:right] = part[top - outer[1] : bottom - outer[1], left - outer[0] : right - outer[0]]
    return image, clean


def _windows(boxes: list[Box], wh: tuple[int, int]) -> list[Box]:
    """Return whole blocks of JPEG around boxes and what blur carries out of them; those that meet are joined."""
    rest = [_aligned(_grown(box, REACH, wh), wh) for box in boxes]
    done: list[Box] = []
    while rest:
        box = rest.pop()
        meeting = [other for other in done if _meet(box, other)]
        if not meeting:
            done.append(box)
            continue
        done = [other for other in done if other not in meeting]
        lefts, tops, rights, bottoms = zip(box, *meeting, strict=True)
        rest.append((min(lefts), min(tops), max(rights), max(bottoms)))
    return done


def _grown(box: Box, by: int, wh: tuple[int, int]) -> Box:
    return max(0, box[0] - by), max(0, box[1] - by), min(wh[0], box[2] + by), min(wh[1], box[3] + by)


def _aligned(box: Box, wh: tuple[int, int]) -> Box:
    left, top = box[0] // BLOCK * BLOCK, box[1] // BLOCK * BLOCK
    return left, top, min(wh[0], -(-box[2] // BLOCK) * BLOCK), min(wh[1], -(-box[3] // BLOCK) * BLOCK)


def _meet(a: Box, b: Box) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
