"""Words that belong to a scene: the faces of signs, and printed pages."""

import cv2
import numpy as np

from datamodules.images.scene_layers import Rgb, draw_texture, draw_tint, draw_tints, pasted, smooth_tints
from datamodules.transforms.mark_text import draw_font, draw_sentence, text_mask
from datamodules.transforms.marks import draw_mark


def draw_panel(rng: np.random.Generator, h: int, w: int) -> Rgb:
    """The face of a sign: ground, words and perhaps a logo, all opaque."""
    panel = smooth_tints(rng, h, w) if rng.random() < 0.75 else draw_texture(rng, h, w)
    bare = rng.random() < 0.5
    if bare or rng.random() < 0.3:
        _add_logo(rng, panel)
    if not bare or rng.random() < 0.5:
        _add_words(rng, panel)
    if rng.random() < 0.4:
        cv2.rectangle(panel, (0, 0), (w - 1, h - 1), draw_tint(rng), max(1, round(min(h, w) * 0.08)))
    return panel


def _add_logo(rng: np.random.Generator, panel: Rgb) -> None:
    h, w = panel.shape[:2]
    mark = draw_mark(rng, max(8, round(min(h, w) * rng.uniform(0.4, 0.9))), "logo")
    y, x = int(rng.integers(max(1, h - mark.shape[0]))), int(rng.integers(max(1, w - mark.shape[1])))
    pasted(panel, np.ascontiguousarray(mark[..., :3]), mark[..., 3], y, x)


def _add_words(rng: np.random.Generator, panel: Rgb) -> None:
    h, w = panel.shape[:2]
    ink = np.empty_like(panel)
    tint = draw_tints(rng, 1)[0]
    ink[:] = 255 - tint * 0.3 if panel.mean() < 120 else tint * 0.4
    font = draw_font(rng, "train")
    lines = [draw_sentence(rng, font)[:24] for _ in range(1 + int(rng.random() < 0.4))]
    words = text_mask(lines, font, round(w * rng.uniform(0.6, 0.9)))
    scale = min(1.0, h * 0.85 / words.shape[0], w * 0.9 / words.shape[1])
    size = (max(1, round(words.shape[1] * scale)), max(1, round(words.shape[0] * scale)))
    words = cv2.resize(words, size, interpolation=cv2.INTER_AREA)
    pasted(panel, ink, words, (h - words.shape[0]) // 2, (w - words.shape[1]) // 2)


def draw_page(rng: np.random.Generator, h: int, w: int) -> Rgb:
    """Paper with columns of printed lines, some short, and perhaps pictures between them."""
    paper = smooth_tints(rng, h, w) // 8 + np.uint8(rng.integers(190, 224))
    ink = np.empty_like(paper)
    ink[:] = draw_tints(rng, 1)[0] * 0.3
    margin, columns = round(w * rng.uniform(0.03, 0.15)), 1 + int(rng.random() < 0.3)
    step, font = max(12, (w - 2 * margin) // columns), draw_font(rng, "train")
    sentence = [" ".join(draw_sentence(rng, font) for _ in range(int(rng.integers(1, 4)))) for _ in range(4)]
    lines = [text_mask([words], font, step) for words in sentence]
    for column in range(columns):
        y = round(h * rng.uniform(0.02, 0.12))
        while y < h * 0.96:
            if rng.random() < 0.06:
                picture = draw_texture(rng, max(16, h // 4), max(16, round(step * 0.9)))
                pasted(paper, picture, np.full(picture.shape[:2], 255, np.uint8), y, margin + column * step)
                y += picture.shape[0] + 4
                continue
            line = lines[rng.integers(4)]
            wide = round(line.shape[1] * (0.95 if rng.random() < 0.8 else rng.uniform(0.2, 0.9)))
            line = np.ascontiguousarray(line[:h, : min(wide, w)])
            pasted(paper, ink, line, y, margin + column * step)
            y += max(4, round(line.shape[0] * 1.5))
    return paper
