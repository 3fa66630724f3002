"""`python -m experiments.seal2real.drawn_or_real`: can a small network tell drawn seals from photographed ones?

    python -m experiments.seal2real.drawn_or_real --output DIR --real FOLDER

Crops of real seals, pictures that a seal fills, are set against crops of drawn ones: flat ink on a clean page, and
after ink model and capture. Networks are cross-validated by file, so no file is on both sides; several views of a file
have one score, their mean. An AUC of 0.5 means that they cannot be told apart, 1.0 that they always can. Name the
outlines and colours that the real seals have, so that it is not these that give drawn ones away. A contact sheet of 40
drawn seals beside the real ones lies in DIR.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from callbacks.metrics.bootstrap import Floats, bootstrap_intervals, value_of
from callbacks.metrics.domain_classifier import Crops, JudgeSettings, describe, folds_of, train_judge
from datamodules.images.randomness import sample_rng
from datamodules.images.sources import ImageSource, open_images
from datamodules.transforms.documents.samples import DocumentSettings, Domain, draw_document
from datamodules.transforms.recut import cut, square_around
from datamodules.transforms.seals.designs import SealSettings
from experiments.cli import answer
from experiments.steps import shown
from lightning_modules.functional.detection import Ranking

Pixels = NDArray[np.uint8]
ARMS: dict[str, Domain] = {"flat ink": "clean", "ink model and capture": "degraded"}
SHEET_SEALS, SHEET_COLUMNS, SHEET_PX, GAP = 40, 8, 160, 4
_VIEWS, _SURROUNDINGS = 801, 802


@dataclass(frozen=True)
class Views:
    """Crops and the file or document of each.

    Args:
        crops: (N, 3, S, S).
        sources: Name of what each was cut from, N.
    """

    crops: Crops
    sources: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge both looks, print the table and write the contact sheet."""
    parser = argparse.ArgumentParser(prog="python -m experiments.seal2real.drawn_or_real", description=__doc__)
    parser.add_argument("--real", nargs="+", required=True, help="crops of real seals: folders, files, manifests")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--drawn", type=int, default=200, help="drawn seals of each look")
    parser.add_argument("--views", type=int, default=8, help="views of each real crop")
    parser.add_argument("--size", type=int, default=96, help="side of what the networks see")
    parser.add_argument("--document-size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of each network")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=[kind for kind, _ in SealSettings().kinds], default=["round"])
    parser.add_argument("--colors", nargs="+", choices=[color for color, _ in SealSettings().colors], default=None)
    parser.add_argument("--scripts", choices=("latin", "auto", "chinese"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    real = real_views(open_images(options.real), options.views, options.size, options.seed)
    usual = SealSettings()
    seal = SealSettings(
        kinds=tuple((kind, share) for kind, share in usual.kinds if kind in options.kinds),
        colors=tuple((color, share) for color, share in usual.colors if color in (options.colors or (color,))),
    )
    settings = DocumentSettings(size=options.document_size, seals=(1, 1), scripts=options.scripts, seal=seal)
    judge = JudgeSettings(steps=options.steps, folds=options.folds, seed=options.seed)
    lines = ["| drawn seals | AUC against real ones (95 % interval) |", "|---|---|"]
    for arm, domain in ARMS.items():
        own = replace(settings, domain=domain)
        drawn = drawn_views(own, options.drawn, options.size, options.seed)
        lines.append(f"| {arm} | {shown(judged(real, drawn, judge))} |")
    files = len(set(real.sources))
    table = "\n".join([*lines, "", f"{files} real files, {options.drawn} drawn seals, {options.folds} parts by file"])
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "drawn_or_real.md").write_text(table + "\n", encoding="utf-8")
    sheet = contact_sheet(open_images(options.real), settings, options.seed)
    Image.fromarray(sheet).save(options.output / "drawn_or_real.png")
    print(f"{table}\nsheet: {options.output / 'drawn_or_real.png'}")
    return 0


def real_views(source: ImageSource, views: int, size: int, seed: int) -> Views:
    """Cut random squares out of each picture, from all of its shorter side to three quarters of it.

    Args:
        source: Pictures that a seal fills.
        views: Squares of each.
        size: Side of the result.
        seed: Of the squares.
    """
    crops, sources = [], []
    for place in range(len(source)):
        picture = source.read(place)
        for view in range(views):
            rng = sample_rng(seed, view, place, _VIEWS)
            side = max(1, round(min(picture.shape[:2]) * rng.uniform(0.75, 1)))
            top, left = (int(rng.integers(length - side + 1)) for length in picture.shape[:2])
            crops.append(_fitted(picture[top : top + side, left : left + side], size))
            sources.append(source.path(place))
    return Views(np.stack(crops), sources)


def drawn_views(settings: DocumentSettings, count: int, size: int, seed: int) -> Views:
    """Draw documents and cut one seal out of each, with as much around it as real crops have.

    Args:
        settings: What is drawn; documents whose seal is not whole are passed over.
        count: Seals.
        size: Side of the result.
        seed: Of the documents.
    """
    crops: list[Pixels] = []
    sources = []
    for index in range(4 * count):
        crop = drawn_crop(settings, seed, index)
        if crop is not None:
            crops.append(_fitted(crop, size))
            sources.append(str(index))
        if len(crops) == count:
            break
    if not crops:
        raise ValueError(f"none of {4 * count} drawn documents has a whole seal: raise --document-size or --drawn")
    return Views(np.stack(crops), sources)


def drawn_crop(settings: DocumentSettings, seed: int, index: int) -> Pixels | None:
    """Return a seal of a drawn document with its surroundings, None where no seal is whole."""
    document = draw_document(seed, index, settings)
    rng = sample_rng(seed, 0, index, _SURROUNDINGS)
    for seal in document.seals:
        left, top, right, bottom = seal.box_xyxy
        if min(left, top) > 0 and max(right, bottom) < settings.size:
            x, y, side = square_around(seal.box_xyxy)
            wide = round(side * rng.uniform(0.85, 1.05))
            shift = rng.uniform(-0.03, 0.03, 2) * side
            window = (x + round((side - wide) / 2 + shift[0]), y + round((side - wide) / 2 + shift[1]), wide)
            return cut(document.image, window)
    return None


def judged(real: Views, drawn: Views, settings: JudgeSettings) -> tuple[float, float, float]:
    """Return the AUC of real against drawn with its interval, by networks that have not seen the files.

    Args:
        real: Several views of a file.
        drawn: One view of a document.
        settings: How networks are trained.
    """
    device = torch.device("cpu")
    parts = [folds_of(views.sources, settings.folds, settings.seed) for views in (real, drawn)]
    scores: dict[str, list[tuple[float, int]]] = {"real": [], "drawn": []}
    for fold in range(settings.folds):
        held = [part == fold for part in parts]
        judge = train_judge(real.crops[~held[0]], drawn.crops[~held[1]], settings, device)
        for name, views, mine in zip(scores, (real, drawn), held, strict=True):
            logits, _ = describe(judge, views.crops[mine], device)
            sources = np.array(views.sources)[mine]
            scores[name] += [(float(logits[sources == source].mean()), fold) for source in np.unique(sources)]
    statistic = FoldedScores(
        np.array([score for pairs in scores.values() for score, _ in pairs]),
        np.arange(len(scores["real"]) + len(scores["drawn"])) < len(scores["real"]),
        np.array([fold for pairs in scores.values() for _, fold in pairs]),
    )
    interval = bootstrap_intervals({"auc": statistic}, statistic.n, seed=settings.seed)["auc"]
    return value_of(statistic, statistic.n), *interval


@dataclass(frozen=True, eq=False)
class FoldedScores:
    """AUC of scores that are comparable within a part alone; mean over parts.

    Args:
        scores: (N,).
        labels: True for what should score higher, (N,).
        folds: Part of each, (N,).
    """

    scores: Floats
    labels: NDArray[np.bool_]
    folds: NDArray[np.int64]

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.scores)

    def __call__(self, weights: Floats) -> Floats:
        """One value a row of weights (R, N)."""
        found = []
        for fold in np.unique(self.folds):
            members = np.flatnonzero(self.folds == fold)
            found.append(Ranking.of(self.scores[members], self.labels[members]).curve(weights[:, members]).auroc())
        # A resample may leave a part without real files: the other parts speak.
        known = np.stack(found)
        counted = (~np.isnan(known)).sum(0)
        return np.where(counted > 0, np.nansum(known, 0) / np.maximum(counted, 1), np.nan)


def contact_sheet(source: ImageSource, settings: DocumentSettings, seed: int) -> Pixels:
    """Draw a picture with real seals above and 40 drawn ones below.

    Args:
        source: Real crops; at most 40 are shown.
        settings: What is drawn.
        seed: Of the drawn ones.
    """
    real = [_framed(source.read(place)) for place in range(min(SHEET_SEALS, len(source)))]
    drawn: list[Pixels] = []
    index = 0
    while len(drawn) < SHEET_SEALS and index < 4 * SHEET_SEALS:
        crop = drawn_crop(settings, seed, index)
        index += 1
        if crop is not None:
            drawn.append(_framed(crop))
    blocks = [_block(real), np.full((3 * GAP, SHEET_COLUMNS * (SHEET_PX + GAP) - GAP, 3), 255, np.uint8), _block(drawn)]
    return np.vstack(blocks)


def _block(pictures: Sequence[Pixels]) -> Pixels:
    rows = -(-len(pictures) // SHEET_COLUMNS)
    step = SHEET_PX + GAP
    block = np.full((rows * step - GAP, SHEET_COLUMNS * step - GAP, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // SHEET_COLUMNS * step, number % SHEET_COLUMNS * step
        block[top : top + SHEET_PX, left : left + SHEET_PX] = picture
    return block


def _framed(picture: Pixels) -> Pixels:
    """Fit a whole picture into a square of the sheet, on grey."""
    height, width = picture.shape[:2]
    scale = SHEET_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrunk = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    framed = np.full((SHEET_PX, SHEET_PX, 3), 200, np.uint8)
    top, left = (SHEET_PX - size[1]) // 2, (SHEET_PX - size[0]) // 2
    framed[top : top + size[1], left : left + size[0]] = shrunk
    return framed


def _fitted(square: Pixels, size: int) -> Pixels:
    """Return a square picture as (3, size, size)."""
    shrink = cv2.INTER_AREA if square.shape[0] > size else cv2.INTER_LINEAR
    fitted: Pixels = cv2.resize(np.ascontiguousarray(square), (size, size), interpolation=shrink)
    return np.ascontiguousarray(fitted.transpose(2, 0, 1))


if __name__ == "__main__":
    raise SystemExit(answer(main))
