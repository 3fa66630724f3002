import pytest

from lightning_modules.functional.plain_json import parse_json, quoted


def test_json_is_parsed():
    assert parse_json('{"a": [1, null, "x"]}', "it") == {"a": [1, None, "x"]}
    assert parse_json(b"3", "it") == 3


@pytest.mark.parametrize("text", ["{", "[" * 50_000, "9" * 5_000, b"\xff", ""])
def test_what_cannot_be_parsed_is_named_in_a_line(text):
    with pytest.raises(ValueError, match=r"^here, line 3, is not JSON") as error:
        parse_json(text, "here, line 3,")
    assert type(error.value) is ValueError
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(("value", "shown"), [("a b", "a b"), ("\x1b[2J", r"'\x1b[2J'"), (3, "3"), ([1], "[1]")])
def test_words_of_others_are_printable_and_short(value, shown):
    assert quoted(value) == shown
    assert len(quoted("x" * 1000)) < 130
