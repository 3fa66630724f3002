"""Asking the device twice only where seals are gives what two whole captures give."""

from dataclasses import replace

import numpy as np
import pytest

from datamodules.images.randomness import sample_rng
from datamodules.transforms.documents import samples, windows
from datamodules.transforms.documents.capture import CAPTURE_KINDS, CaptureKind, developed, draw_capture
from datamodules.transforms.documents.films import stamped
from datamodules.transforms.documents.plans import CAPTURE_STREAM
from datamodules.transforms.documents.samples import DocumentSettings, draw_document

SETTINGS = DocumentSettings(size=224, sheets=3)


@pytest.mark.parametrize("kind", CAPTURE_KINDS)
@pytest.mark.parametrize("index", range(3))
def test_the_picture_is_a_whole_capture(kind: CaptureKind, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, captures=((kind, 1.0),), show_through=0.0)
    kept = {}
    real = windows.captured

    def spied(page, films, capture, light):  # type: ignore[no-untyped-def]
        kept["whole"] = developed(stamped(page, films, light), capture)
        return real(page, films, capture, light)

    monkeypatch.setattr(samples, "captured", spied)
    document = draw_document(20, index, settings)
    difference = np.abs(document.image.astype(int) - kept["whole"])
    # Colours of JPEG are enlarged across blocks: only pixels along the seams of the windows may differ, and a little.
    assert (difference > 0).mean() < 0.01
    assert difference.max() < 40
    rng = sample_rng(20, 0, index, CAPTURE_STREAM)
    assert draw_capture(rng, kind, (224, 224)).kind == document.capture


def test_windows_that_meet_are_joined_and_are_whole_blocks() -> None:
    boxes = [(5, 5, 40, 40), (60, 10, 90, 30), (150, 150, 170, 180)]
    found = sorted(windows._windows(boxes, (200, 190)))
    assert found == [(0, 0, 112, 64), (128, 128, 192, 190)]
    for left, top, right, bottom in found:
        assert left % 16 == top % 16 == 0
        assert right % 16 == 0 or right == 200
        assert bottom % 16 == 0 or bottom == 190
