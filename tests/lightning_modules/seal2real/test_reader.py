"""The reader: letters and places, and that a handful of lines can be learned by heart."""

from itertools import groupby

import cv2
import numpy as np
import pytest
import torch

from lightning_modules.seal2real.reader import ALPHABET, SealReaderModule
from lightning_modules.seal2real.reader_network import ReaderNetwork, decode, encode, steps_of

WORDS = ["abba", "cab", "bacca", "aaa", "cbc", "ba"]


def lines(words):
    """Words as pictures (B, 3, 24, 96) and their widths."""
    pictures, widths = [], []
    for word in words:
        page = np.full((24, 96, 3), 255, np.uint8)
        cv2.putText(page, word, (3, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (20, 20, 20), 1, cv2.LINE_AA)
        pictures.append(page.transpose(2, 0, 1))
        widths.append(6 + cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 1)[0][0])
    return torch.from_numpy(np.stack(pictures)).float() / 255, torch.tensor(widths)


def test_letters_become_places_and_back():
    letters, lengths = encode(["ba", "", "c"], "abc")
    assert letters.tolist() == [2, 1, 3]
    assert lengths.tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="lacks the letters 'x'"):
        encode(["ax"], "abc")
    with pytest.raises(ValueError, match="name each letter once"):
        SealReaderModule(alphabet="aba")
    assert len(set(ALPHABET)) == len(ALPHABET)


def test_decoding_merges_repeats_up_to_the_lines_end():
    rng = np.random.default_rng(0)
    best = rng.integers(0, 4, (5, 30))
    widths = torch.tensor([60, 31, 2, 1, 47])
    scores = torch.nn.functional.one_hot(torch.from_numpy(best), 4).float()
    wanted = []
    for row, width in zip(best, widths.tolist(), strict=True):
        merged = [place for place, _ in groupby(row[: -(-width // 2)].tolist()) if place]
        wanted.append("".join("xyz"[place - 1] for place in merged))
    assert decode(scores, widths, "xyz") == wanted


@pytest.mark.parametrize("width", [2, 37, 96, 97])
def test_a_line_has_a_place_every_two_pixels(width):
    network = ReaderNetwork(5, width=4).eval()
    found = network(torch.rand(1, 3, 24, width))
    assert found.shape == (1, width // 2, 6)
    assert found.exp().sum(2).sub(1).abs().max() < 1e-5
    assert steps_of(width) in (width // 2, width // 2 + 1)
    with pytest.raises(ValueError, match="lines of 24 px height, got 32"):
        network(torch.rand(1, 3, 32, width))


def test_a_few_words_are_learned(monkeypatch):
    torch.manual_seed(0)
    module = SealReaderModule(alphabet="abc", width=8)
    monkeypatch.setattr(module, "log", lambda *words, **options: None)
    image, width = lines(WORDS)
    batch = {"image": image, "width": width, "text": WORDS, "index": torch.arange(len(WORDS))}
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    for step in range(90):
        loss = module.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    outputs = module.eval().test_step(batch, 0)
    assert outputs["read"] == WORDS
    assert outputs["text"] == WORDS


def test_a_line_too_narrow_for_its_text_does_not_break_training(monkeypatch):
    module = SealReaderModule(alphabet="abc", width=4)
    monkeypatch.setattr(module, "log", lambda *words, **options: None)
    image, _ = lines(["abc"])
    loss = module.training_step({"image": image, "width": torch.tensor([4]), "text": ["abcabc"]}, 0)
    loss.backward()
    assert loss.item() == 0
