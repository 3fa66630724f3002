"""A small reader of printed lines: convolutions over the line, then a letter or nothing at every place of it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LINE_HEIGHT = 24
STEP_PX = 2
BLANK = 0


class ReaderNetwork(nn.Module):
    """Reads lines of 24 px height from left to right.

    Args:
        letters: Number of different letters.
        width: Channels of the first layer.
    """

    def __init__(self, letters: int, width: int = 16) -> None:
        super().__init__()
        self.rows = nn.Sequential(
            _block(3, width),
            nn.MaxPool2d(2),
            _block(width, 2 * width),
            nn.MaxPool2d((2, 1)),
            _block(2 * width, 3 * width),
            nn.MaxPool2d((2, 1)),
            # The three rows that are left become channels.
            nn.Conv2d(3 * width, 4 * width, (3, 3), padding=(0, 1), bias=False),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(inplace=True),
        )
        self.context = nn.ModuleList(_context(4 * width, dilation) for dilation in (1, 2, 4))
        self.head = nn.Conv1d(4 * width, letters + 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return log probabilities of nothing and of each letter, (B, W / 2, letters + 1).

        Args:
            image: RGB lines (B, 3, 24, W) in [0, 1].
        """
        if image.shape[-2] != LINE_HEIGHT:
            raise ValueError(f"the reader takes lines of {LINE_HEIGHT} px height, got {image.shape[-2]}")
        found = self.rows(image * 2 - 1).squeeze(2)
        for layer in self.context:
            found = found + layer(found)
        return F.log_softmax(self.head(found).transpose(1, 2).float(), dim=2)


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


def _context(width: int, dilation: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(inplace=True),
    )


def encode(texts: Sequence[str], alphabet: str) -> tuple[Tensor, Tensor]:
    """Return the letters of all texts in a row, from 1, and the length of each text; int64.

    Args:
        texts: What lines say.
        alphabet: Every letter that may be in them.
    """
    places = {letter: place for place, letter in enumerate(alphabet, 1)}
    unknown = sorted({letter for text in texts for letter in text} - places.keys())
    if unknown:
        raise ValueError(f"model.alphabet lacks the letters {''.join(unknown)!r} of the data: add them")
    letters = torch.tensor([places[letter] for text in texts for letter in text], dtype=torch.int64)
    return letters, torch.tensor([len(text) for text in texts], dtype=torch.int64)


def decode(log_probability: Tensor, widths: Tensor, alphabet: str) -> list[str]:
    """Read the likeliest letter of every place; repeats are one letter unless nothing lies between them.

    Args:
        log_probability: (B, T, letters + 1).
        widths: Pixels of each line that hold text; places behind them are not read, (B,).
        alphabet: The letters.
    """
    texts = []
    for best, width in zip(log_probability.argmax(2).tolist(), widths.tolist(), strict=True):
        places = best[: steps_of(int(width))]
        kept = [now for before, now in zip([BLANK, *places], places, strict=False) if now not in (before, BLANK)]
        texts.append("".join(alphabet[letter - 1] for letter in kept))
    return texts


def steps_of(width: int) -> int:
    """Return how many places a line of so many pixels has."""
    return -(-width // STEP_PX)
