"""Documents with seals: what the labels say is what the pixels show, in every domain and geometry."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from datamodules.transforms.documents import plans
from datamodules.transforms.documents.capture import BLOCK, REACH, CaptureKind
from datamodules.transforms.documents.films import filled
from datamodules.transforms.documents.samples import Document, DocumentSettings, draw_document
from datamodules.transforms.documents.typesetting import PrintedLine, Word
from datamodules.transforms.seals.designs import SealSettings
from datamodules.transforms.seals.layouts import SealDesign

SIZE = 224
SMALL = DocumentSettings(size=SIZE, sheets=4)
DEVICES: tuple[CaptureKind, ...] = ("scan", "phone", "fax")


def by(device: CaptureKind, **changes: object) -> DocumentSettings:
    return replace(SMALL, captures=((device, 1.0),), **changes)


def grown(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), np.uint8)) > 0)


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def covered(polygon: NDArray[np.float32], size: int, finer: int = 8) -> NDArray[np.bool_]:
    """Pixels of which a polygon covers at least half."""
    mask = np.zeros((size * finer, size * finer), np.uint8)
    cv2.fillPoly(mask, [np.round((polygon * finer - 0.5) * 16).astype(np.int32)], 1, cv2.LINE_8, 4)
    return np.asarray(mask.reshape(size, finer, size, finer).mean(axis=(1, 3)) >= 0.5)


def without_words(design: SealDesign) -> SealDesign:
    return replace(design, lines=())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("index", range(3))
def test_beside_the_seals_the_picture_is_the_page(device: CaptureKind, index: int) -> None:
    document = draw_document(1, index, by(device, seals=(1, 1)))
    # Whole blocks of JPEG around what blur and sharpening carry out of the ink.
    near = grown(document.alpha > 0, REACH + 2 * BLOCK)
    assert not near.all()
    np.testing.assert_array_equal(document.image[~near], document.page[~near])
    assert document.image.shape == document.page.shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("domain", ["clean", "degraded"])
@pytest.mark.parametrize("index", range(4))
def test_where_ink_is_visible_the_picture_differs_from_the_page(domain: str, index: int) -> None:
    document = draw_document(2, index, by("scan", domain=domain))
    inside = document.visible & (document.page.min(axis=2) > 140)
    darker = document.page.astype(int) - document.image
    # The most strongly absorbed channel of every pixel; blur and noise let a few on thin edges pass.
    assert (darker.max(axis=2)[inside] > 4).mean() > (0.999 if domain == "clean" else 0.93)
    untouched = ~grown(document.alpha > 0, REACH + 2 * BLOCK)
    assert not darker[untouched].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("index", range(3))
def test_the_domains_share_layout_text_and_masks(device: CaptureKind, index: int) -> None:
    clean = draw_document(3, index, by(device, domain="clean"))
    worn = draw_document(3, index, by(device, domain="degraded"))
    np.testing.assert_array_equal(clean.ink, worn.ink)
    np.testing.assert_array_equal(clean.area, worn.area)
    assert [line.text for line in clean.page_lines] == [line.text for line in worn.page_lines]
    assert [line.under_seal for line in clean.page_lines] == [line.under_seal for line in worn.page_lines]
    for a, b in zip(clean.seals, worn.seals, strict=True):
        assert (a.kind, a.color, a.box_xyxy, a.angle_deg) == (b.kind, b.color, b.box_xyxy, b.angle_deg)
        for first, second in zip(a.lines, b.lines, strict=True):
            assert (first.text, first.role) == (second.text, second.role)
            np.testing.assert_array_equal(first.polygon, second.polygon)
    assert clean.capture == ""
    assert worn.capture == device
    assert not np.array_equal(clean.image, worn.image)


@pytest.mark.parametrize("device", ["scan", "phone"])
@pytest.mark.parametrize("index", range(3))
def test_polygons_hold_the_ink_of_their_text(device: CaptureKind, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = by(
        device, seals=(1, 1), domain="clean", seal=SealSettings(kinds=(("round", 1), ("oval", 1), ("square", 1)))
    )
    document = draw_document(4, index, settings)
    drawn = plans.draw_design
    monkeypatch.setattr(plans, "draw_design", lambda *arguments: without_words(drawn(*arguments)))
    blank = draw_document(4, index, settings)
    if not document.seals or (document.ink.sum() > 0 and (blank.ink & ~document.ink).sum() > 5):
        pytest.skip("words are cut out of a filled seal")
    words = document.ink & ~blank.ink
    polygons = [filled(line.polygon, words.shape) for seal in document.seals for line in seal.lines]
    union = np.any(polygons, axis=0)
    assert (words & grown(union, 1)).sum() >= 0.99 * words.sum()
    for seal in document.seals:
        for line, mask in zip(seal.lines, polygons, strict=True):
            if line.legible:
                assert (words & mask).sum() >= 0.03 * mask.sum(), line.text


@pytest.mark.parametrize("device", ["scan", "phone"])
@pytest.mark.parametrize("index", range(4))
def test_printed_words_are_where_their_polygons_are(
    device: CaptureKind, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One word's box is printed solid: what is dark in the page must be its polygon."""
    kept = plans.kept_sheet

    def one_box(*arguments: object) -> object:
        sheet = kept(*arguments)  # type: ignore[arg-type]
        height, width = sheet.toner.shape
        toner = np.full_like(sheet.toner, 255)
        lines = []
        for y in range(20, height - 20, 60):
            for x in range(20, width - 60, 90):
                toner[y : y + 20, x : x + 50] = 0
                lines.append(PrintedLine((Word(f"{x}/{y}", x, x + 50),), y, y + 20, " "))
        return replace(sheet, toner=toner, lines=tuple(lines), accent=0)

    monkeypatch.setattr(plans, "kept_sheet", one_box)
    document = draw_document(5, index, by(device, domain="clean", seals=(0, 0)))
    assert document.page_lines
    dark = document.page.max(axis=2) < 128
    for line in document.page_lines:
        mask = covered(line.polygon, SIZE)
        near = grown(mask, 4)
        assert overlap(mask, dark & near) > 0.88, line.text
        # The middle of the toner, to a tenth of a pixel: half a pixel would be corners taken for middles.
        toner = (document.page.max() - document.page.max(axis=2).astype(float)) * near
        rows, columns = np.indices(toner.shape) + 0.5
        middle = np.array([(toner * columns).sum(), (toner * rows).sum()]) / toner.sum()
        np.testing.assert_allclose(middle, line.polygon.mean(axis=0), atol=0.15)


@pytest.mark.parametrize("index", range(3))
def test_masks_and_boxes_agree(index: int) -> None:
    document = draw_document(6, index, replace(SMALL, seals=(1, 1)))
    if not document.seals:
        assert not document.ink.any()
        return
    (seal,) = document.seals
    rows, columns = np.nonzero(document.area)
    assert seal.box_xyxy == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    outlined = covered(seal.outline, SIZE)
    assert not (outlined & ~grown(document.area, 1)).any()
    assert not (document.area & ~grown(outlined, 1)).any()
    assert (document.ink & ~grown(document.area, 1)).sum() == 0
    assert document.visible.sum() == (document.alpha > 0.12).sum()
    assert document.alpha.min() >= 0
    assert document.alpha.max() <= 1


@pytest.mark.parametrize("index", range(6))
def test_no_label_without_ink(index: int) -> None:
    document = draw_document(7, index, SMALL)
    for seal in document.seals:
        x0, y0, x1, y1 = (int(value) for value in seal.box_xyxy)
        assert document.area[y0:y1, x0:x1].any()
        for line in seal.lines:
            if line.legible:
                mask = filled(line.polygon, document.ink.shape)
                clean = (document.ink & mask).sum()
                assert clean > 0
                assert (document.visible & document.ink & mask).sum() >= 0.4 * clean


def test_text_under_a_seal_is_marked_and_other_text_is_not() -> None:
    under, free = 0, 0
    for index in range(12):
        document = draw_document(8, index, SMALL)
        for line in document.page_lines:
            mask = filled(line.polygon, document.area.shape)
            share = (mask & document.area).sum() / max(1, mask.sum())
            assert line.under_seal == (share >= 0.1) or abs(share - 0.1) < 0.03
            under, free = under + line.under_seal, free + (not line.under_seal)
            assert line.polygon.min() >= 0
            assert line.polygon.max() <= SIZE
    assert under > 10
    assert free > 30


def test_a_document_is_a_function_of_seed_index_and_settings() -> None:
    first, again = draw_document(9, 3, SMALL), draw_document(9, 3, SMALL)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.alpha, again.alpha)
    assert not np.array_equal(first.image, draw_document(9, 4, SMALL).image)
    assert not np.array_equal(first.image, draw_document(10, 3, SMALL).image)


def test_a_page_without_seals_is_its_own_background() -> None:
    document = draw_document(11, 0, replace(SMALL, seals=(0, 0)))
    np.testing.assert_array_equal(document.image, document.page)
    assert document.seals == ()
    assert not document.ink.any()
    assert not any(line.under_seal for line in document.page_lines)


def spots(document: Document) -> tuple[bool, bool]:
    cut = any(min(s.box_xyxy) <= 0 or max(s.box_xyxy) >= SIZE for s in document.seals)
    return cut, len(document.seals) > 1


def test_seals_are_whole_cut_and_over_each_other() -> None:
    found = [spots(draw_document(12, index, replace(SMALL, domain="clean"))) for index in range(60)]
    cut, several = (float(np.mean(column)) for column in zip(*found, strict=True))
    assert 0.05 < cut < 0.5
    assert 0.1 < several < 0.5


def test_a_strong_press_leaves_less_legible_than_a_flat_one() -> None:
    shares = {}
    for domain in ("clean", "degraded"):
        lines = [
            line.legible
            for index in range(25)
            for seal in draw_document(13, index, replace(SMALL, domain=domain)).seals
            for line in seal.lines
        ]
        shares[domain] = float(np.mean(lines))
    assert shares["clean"] >= shares["degraded"] > 0.2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"size": 8}, "size"),
        ({"seals": (2, 1)}, "seals"),
        ({"sides": (0.5, 0.2)}, "sides"),
        ({"sheets": 0}, "sheets"),
        ({"captures": ()}, "captures"),
    ],
)
def test_settings_are_checked(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(SMALL, **changes)
