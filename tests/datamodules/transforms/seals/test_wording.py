"""Words of seals."""

import re

import numpy as np
import pytest

from datamodules.transforms.seals import wording


@pytest.mark.parametrize("chinese", [False, True])
def test_what_seals_say_is_in_letters_that_their_fonts_are_asked_for(chinese: bool) -> None:
    allowed = set(wording.HAN_LETTERS) if chinese else set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789&.,- o")
    draws = (wording.draw_company, wording.draw_place, wording.draw_use, wording.draw_state, wording.draw_person)
    rng = np.random.default_rng(0)
    for draw in draws:
        texts = {draw(rng, chinese) for _ in range(200)}
        assert len(texts) > 5
        for text in texts:
            assert set(text) <= allowed, text
            assert text == text.strip() != ""
            assert all(wording.is_han(char) for char in text) == chinese


def test_serials_and_dates_are_numbers() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        assert re.fullmatch(r"\d{7}|\d{11}|\d{13}", wording.draw_serial(rng, chinese=True))
        assert re.fullmatch(r"(No\. |REG\. |ID )?\d{5,8}", wording.draw_serial(rng, chinese=False))
        assert re.fullmatch(r"\d\d [A-Z]{3} \d{4}|\d{4}-\d\d-\d\d|\d\d\.\d\d\.\d{4}", wording.draw_date(rng))


def test_chinese_names_fit_two_columns_of_two() -> None:
    rng = np.random.default_rng(2)
    names = [wording.draw_person(rng, chinese=True) for _ in range(200)]
    assert {len(name) for name in names} == {2, 3, 4}
    assert not any(name.endswith("之") for name in names)
