"""Lines are cut out level, whatever the page was turned by."""

import cv2
import numpy as np
import pytest

from datamodules.transforms.line_crops import line_crop, line_size, line_width


def page():
    paper = np.full((160, 240, 3), 250, np.uint8)
    cv2.putText(paper, "Date 27.11", (40, 80), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (10, 10, 10), 2, cv2.LINE_AA)
    (wide, tall), below = cv2.getTextSize("Date 27.11", cv2.FONT_HERSHEY_SIMPLEX, 0.8, 2)
    left, top, right, bottom = 40, 80 - tall, 40 + wide, 80 + below
    return paper, np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def alike(a, b):
    return np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1]


def test_a_level_line_is_a_slice_of_the_page():
    paper = np.random.default_rng(0).integers(0, 255, (100, 200, 3), np.uint8)
    # 25 px of line and 4 % above and below are 29 px: the scale is 1 at a height of 29.
    corners = np.array([[40, 30], [140, 30], [140, 55], [40, 55]], np.float32)
    crop = line_crop(paper, corners, 29)
    assert crop.shape == (29, line_width(corners, 29), 3) == (29, 113, 3)
    assert line_size(corners) == (100, 25)
    slice_ = cv2.getRectSubPix(paper.astype(np.float32), (113, 29), (89.5, 42.0))
    assert np.abs(crop[2:-2, 8:-8].astype(float) - slice_[2:-2, 8:-8]).mean() < 24, "up to half a pixel"


@pytest.mark.parametrize("turn", [-30, 12, 90, 180])
def test_a_turned_page_gives_the_same_line(turn):
    paper, corners = page()
    matrix = cv2.getRotationMatrix2D((120, 80), turn, 0.9)
    turned = cv2.warpAffine(paper, matrix, (240, 240), flags=cv2.INTER_CUBIC, borderValue=(250, 250, 250))
    # OpenCV's points lie in the middle of pixels, corners of lines between them.
    moved = ((corners - 0.5) @ matrix[:, :2].T + matrix[:, 2] + 0.5).astype(np.float32)
    assert alike(line_crop(turned, moved, 24), line_crop(paper, corners, 24)) > 0.93
    upside_down = np.roll(moved, 2, axis=0)
    assert alike(line_crop(turned, upside_down, 24), line_crop(paper, corners, 24)) < 0.6


def test_large_lines_are_smoothed_before_they_shrink():
    paper = np.zeros((400, 800, 3), np.uint8)
    paper[::2] = 255
    corners = np.array([[50, 50], [750, 50], [750, 350], [50, 350]], np.float32)
    crop = line_crop(paper, corners, 24)
    assert crop.std() < 15, "stripes of one pixel become grey"
