"""Designs of seals: from a seed alone, of every kind, and asked for plainly."""

import numpy as np
import pytest

from datamodules.transforms.seals import designs, seal_fonts
from datamodules.transforms.seals.designs import SealSettings, draw_design
from datamodules.transforms.seals.layouts import COLORS, KINDS, Kind
from datamodules.transforms.seals.lettering import natural_length


def many(settings: SealSettings, count: int = 120) -> list[designs.SealDesign]:
    return [draw_design(np.random.default_rng((8, seed)), settings) for seed in range(count)]


def test_the_same_seed_gives_the_same_design_and_others_differ() -> None:
    settings = SealSettings()
    assert draw_design(np.random.default_rng(3), settings) == draw_design(np.random.default_rng(3), settings)
    assert len(set(many(settings, 40))) == 40


def test_all_kinds_and_colours_are_drawn_about_as_often_as_asked() -> None:
    found = many(SealSettings(), 400)
    for kind, share in SealSettings().kinds:
        assert np.mean([design.kind == kind for design in found]) == pytest.approx(share, abs=0.08)
    for color, share in SealSettings().colors:
        assert np.mean([design.color == color for design in found]) == pytest.approx(share, abs=0.08)
    assert {kind for kind, _ in SealSettings().kinds} == set(KINDS)
    assert {color for color, _ in SealSettings().colors} == set(COLORS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_with_all_the_weight_is_the_only_one(kind: Kind) -> None:
    found = many(SealSettings(kinds=((kind, 2.0),), colors=(("blue", 1.0), ("red", 0.0))), 30)
    assert {design.kind for design in found} == {kind}
    assert {design.color for design in found} == {"blue"}
    assert all(design.aspect == 1 for design in found if kind == "round")
    assert all(0.6 < design.aspect < 0.81 for design in found if kind == "oval")


def test_lines_are_not_wider_than_their_letters_need_or_squeezed_to_nothing() -> None:
    for design in many(SealSettings()):
        assert design.lines
        for line in design.lines:
            assert line.text.strip() == line.text != ""
            assert line.length <= 2.9 * np.pi
            if line.layout != "column":
                assert natural_length(line.text, line.face, line.height) * line.condense <= line.length * 1.001
            assert 0.25 < line.condense <= 1.0, (design.kind, line)


def test_roles_cover_titles_uses_serials_and_names() -> None:
    roles = {line.role for design in many(SealSettings()) for line in design.lines}
    assert roles == {"title", "usage", "serial", "name"}


def test_hairlines_follow_their_chance() -> None:
    assert not any(design.hairlines for design in many(SealSettings(hairline_chance=0.0), 30))
    assert all(design.hairlines for design in many(SealSettings(hairline_chance=1.0), 30))


def test_chinese_that_cannot_be_drawn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal_fonts, "font_folders", lambda: ())
    with pytest.raises(FileNotFoundError, match="fonts-noto-cjk") as caught:
        draw_design(np.random.default_rng(0), SealSettings(script="chinese"))
    assert "\n" not in str(caught.value)
    auto = draw_design(np.random.default_rng(0), SealSettings(script="auto"))
    assert auto == draw_design(np.random.default_rng(0), SealSettings(script="latin"))


def test_settings_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="script must be"):
        draw_design(np.random.default_rng(0), SealSettings(script="greek"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kinds must name at least one choice"):
        draw_design(np.random.default_rng(0), SealSettings(kinds=(("round", 0.0),)))
    with pytest.raises(ValueError, match="colors must name at least one choice"):
        draw_design(np.random.default_rng(0), SealSettings(colors=()))
