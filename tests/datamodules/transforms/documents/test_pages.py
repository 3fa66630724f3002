"""Printed pages: every word is where the label says, and a sheet is a function of its numbers."""

import numpy as np
import pytest

from datamodules.transforms.documents.pages import draw_sheet, kept_sheet
from datamodules.transforms.documents.typesetting import TypeFaces, Typesetter
from datamodules.transforms.documents.words import CHINESE, ENGLISH, PAGE_KINDS, PageKind
from datamodules.transforms.fonts import available_fonts


@pytest.mark.parametrize("kind", PAGE_KINDS)
def test_every_word_has_toner_and_words_are_in_reading_order(kind: PageKind) -> None:
    sheet = draw_sheet(np.random.default_rng(1), 512, 12, kind=kind)
    assert sheet.kind == kind
    assert sheet.anchors
    assert len(sheet.lines) > 10
    for line in sheet.lines:
        assert line.text == " ".join(word.text for word in line.words)
        ends = [end for word in line.words for end in (word.left, word.right)]
        assert ends == sorted(ends)
        for word in line.words:
            box = sheet.toner[round(line.top) : round(line.bottom) + 1, round(word.left) : round(word.right) + 1]
            assert (box < 140).any(), word.text


@pytest.mark.parametrize("kind", PAGE_KINDS)
def test_toner_outside_the_words_is_rules_and_signatures_only(kind: PageKind) -> None:
    sheet = draw_sheet(np.random.default_rng(2), 512, 12, kind=kind)
    dark = sheet.toner < 128
    rest = dark.copy()
    for line in sheet.lines:
        for word in line.words:
            rest[int(line.top) - 1 : int(line.bottom) + 2, int(word.left) - 1 : int(word.right) + 2] = False
    # Rules fill rows or columns; what is left of signatures is little.
    rest[rest.mean(axis=1) > 0.15] = False
    rest[:, rest.mean(axis=0) > 0.1] = False
    assert rest.sum() < 0.2 * dark.sum()


def test_a_sheet_is_a_function_of_its_numbers() -> None:
    first = kept_sheet(0, 3, 256, 6.0, None)
    kept_sheet.cache_clear()
    again = kept_sheet(0, 3, 256, 6.0, None)
    np.testing.assert_array_equal(first.toner, again.toner)
    assert first.lines == again.lines
    assert not np.array_equal(first.toner, kept_sheet(1, 3, 256, 6.0, None).toner)
    assert not np.array_equal(first.toner, kept_sheet(0, 4, 256, 6.0, None).toner)


def test_what_shines_through_is_the_sheet_mirrored() -> None:
    sheet = draw_sheet(np.random.default_rng(0), 512, 12)
    darkness = 255 - sheet.toner[: sheet.toner.shape[0] // 4 * 4].astype(float)
    small = darkness.reshape(-1, 4, 128, 4).mean(axis=(1, 3))[:, ::-1]
    behind = 255 - sheet.behind[: len(small)].astype(float)
    assert np.corrcoef(small.ravel(), behind.ravel())[0, 1] > 0.7


def test_paragraphs_break_where_the_column_ends_and_say_all_words() -> None:
    face = (available_fonts()[0], 0)
    page = Typesetter(300, 400, 10, TypeFaces(face, face, face), " ")
    words = [f"word{number}" for number in range(40)]
    page.paragraph(words)
    assert [word.text for line in page.lines for word in line.words] == words
    assert len(page.lines) > 3
    assert all(
        page.margin - 1 <= line.words[0].left and line.words[-1].right <= 301 - page.margin for line in page.lines
    )


@pytest.mark.parametrize("phrases", [ENGLISH, CHINESE])
def test_sentences_fill_their_slots(phrases) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert "{" not in phrases.sentence(rng)
    assert set(phrases.titles) == set(PAGE_KINDS)
    assert set(phrases.labels) == set(ENGLISH.labels)


def test_words_begin_and_end_where_their_toner_does() -> None:
    face = (available_fonts()[0], 0)
    page = Typesetter(500, 60, 16, TypeFaces(face, face, face), " ")
    page.line(20, 10, ["Hannah", "met", "Ahmed", "in", "Durham"], page.font())
    columns = (page.finished() < 128).any(axis=0)
    (line,) = page.lines
    for word, following in zip(line.words, [*line.words[1:], None], strict=True):
        inked = np.flatnonzero(columns[round(word.left) - 2 : round(word.right) + 2]) + round(word.left) - 2
        assert abs(inked[0] - word.left) < 3
        assert abs(inked[-1] + 1 - word.right) < 3
        if following is not None:
            assert following.left - word.right > 2
            assert not columns[round(word.right) + 1 : round(following.left) - 1].any()


def test_chinese_pages_are_broken_between_any_two_characters() -> None:
    # Any font will do: what it lacks is drawn as a box.
    sheet = draw_sheet(np.random.default_rng(0), 512, 12, (available_fonts()[0], 0), kind="contract")
    longest = max(sheet.lines, key=lambda line: len(line.words))
    assert len(longest.words) > 20
    assert all(len(word.text) == 1 for word in longest.words)
    assert longest.text == "".join(word.text for word in longest.words)
    assert max(line.words[-1].right for line in sheet.lines) < 512
