"""Corners without a trained network: by matching with the original, and by a grid of four messages."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]
LOWE_RATIO = 0.8
LEAST_MATCHES = 4
RANSAC_PX = 5.0
PAIRS_OVER, PAIRS_BESIDE = ((0, 2), (1, 3)), ((0, 1), (2, 3))
ANGLES = range(-30, 31)


def frame_corners(height: int, width: int) -> Floats:
    """Return the corners of a picture, TL, TR, BR, BL, (4, 2)."""
    return np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], np.float64)


def match_corners(original: Pixels, attacked: Pixels) -> Floats | None:
    """Return where the corners of an attacked picture (H, W, 3) are in the original, by SIFT, Lowe's ratio and RANSAC.

    None where fewer than four features match or no homography fits them.
    """
    sift = cv2.SIFT.create()
    found = [sift.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None) for image in (original, attacked)]
    (points, features), (moved_points, moved_features) = found
    if features is None or moved_features is None or len(moved_features) < 2:
        return None
    pairs = cv2.BFMatcher().knnMatch(features, moved_features, k=2)
    good = [first for first, second in pairs if first.distance < LOWE_RATIO * second.distance]
    if len(good) < LEAST_MATCHES:
        return None
    target = np.array([points[match.queryIdx].pt for match in good], np.float32)
    source = np.array([moved_points[match.trainIdx].pt for match in good], np.float32)
    cv2.setRNGSeed(0)  # RANSAC draws; the same pictures give the same answer
    homography, _ = cv2.findHomography(source, target, cv2.RANSAC, RANSAC_PX)
    if homography is None:
        return None
    corners = frame_corners(*attacked.shape[:2])[None]
    return np.asarray(cv2.perspectiveTransform(corners, homography)[0], np.float64)


def published_numbers(corners: Floats | None, height: int, width: int) -> Floats:
    """Return corners as the published baseline's eight numbers: both axes go by the width."""
    if corners is None:
        return np.array([-1, -1, 1, -1, 1, 1, -1, 1], np.float64)
    half = (width - 1) / 2
    return np.asarray((corners - [half, (height - 1) / 2]) / half).reshape(8)


def quadrant_masks(size: int) -> NDArray[np.bool_]:
    """Return which pixels each of the four messages is put on, (4, S, S): all but a cross in the middle."""
    gap = 19 if size == 256 else 37
    near = (size - gap + 1) // 2
    first, last = slice(0, near), slice(near + gap, size)
    masks = np.zeros((4, size, size), np.bool_)
    for mask, (rows, columns) in zip(masks, ((first, first), (first, last), (last, first), (last, last)), strict=True):
        mask[rows, columns] = True
    return masks


def fit_grid(labels: NDArray[np.integer]) -> tuple[float, float, float, bool]:
    """Return rotation in degrees, last row and column before the cuts, and whether the picture is mirrored.

    Args:
        labels: Which message (0 to 3) each pixel carries, −1 for none, (S, S).
    """
    least = 40 if labels.shape[0] == 256 else 80
    fits: dict[tuple[float, bool], list[tuple[float, float, float]]] = {}
    for angle in ANGLES:
        masks = _rotated(labels, angle)
        rows = [_counts(mask, axis=1, least=least) for mask in masks]
        columns = [_counts(mask, axis=0, least=least) for mask in masks]
        cut_row, missed_row = _best_cut(rows, PAIRS_OVER)
        for mirrored in (False, True):
            beside = tuple((second, first) for first, second in PAIRS_BESIDE) if mirrored else PAIRS_BESIDE
            cut_column, missed_column = _best_cut(columns, beside)
            fits.setdefault((missed_row + missed_column, mirrored), []).append((angle, cut_row, cut_column))
    (_, mirrored), best = min(fits.items(), key=lambda fit: fit[0])
    first, last = best[0], best[-1]  # in the order of their angles
    middle = [(low + high) / 2 for low, high in zip(first, last, strict=True)]
    return middle[0], middle[1], middle[2], mirrored


def grid_corners(fit: tuple[float, float, float, bool], size: int) -> Floats:
    """Return where the corners of a picture are by the cuts found in it: as if it were cut out at the top left."""
    angle, row, column, mirrored = fit
    # A picture whose cut lies behind its middle shows this share of the original. The published one undoes no cut
    # where it has found a mirrored picture, nor one before the middle.
    cuts = np.array([size / 2, size / 2] if mirrored else [column, row])
    corners = frame_corners(size, size) * (size / np.maximum(size, 2 * cuts))
    centre = (size - 1) / 2
    turn = np.deg2rad(-angle)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    corners = (corners - centre) @ matrix.T + centre
    return np.asarray(np.stack([size - 1 - corners[:, 0], corners[:, 1]], axis=1) if mirrored else corners)


def _rotated(labels: NDArray[np.integer], angle: int) -> list[NDArray[np.bool_]]:
    masks = [labels == label for label in range(4)]
    if angle == 0:
        return masks
    return [ndimage.rotate(mask.astype(np.float64), angle, reshape=False) > 0.5 for mask in masks]


def _counts(mask: NDArray[np.bool_], axis: int, least: int) -> Floats:
    """Return how many pixels of each line carry a message; few are taken for noise."""
    counts = mask.sum(axis=axis)
    return np.where(counts < least, 0, counts).astype(np.float64)


def _best_cut(counts: list[Floats], pairs: tuple[tuple[int, int], ...]) -> tuple[float, float]:
    """Return the last line before the cut that misplaces fewest pixels, and how many those are."""
    missed = sum(counts[first].sum() - np.cumsum(counts[first]) + np.cumsum(counts[second]) for first, second in pairs)
    cut = int(np.argmin(missed))
    return float(cut), float(np.asarray(missed)[cut])
