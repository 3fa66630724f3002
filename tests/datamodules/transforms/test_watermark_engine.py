"""The default engine: labels follow what can be seen, samples repeat from their seed, signs are no marks."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from datamodules.images.errors import UnreadableImageError
from datamodules.transforms.mark_bank import MarkBank, load_logos, premultiply, pyramid
from datamodules.transforms.watermark_engine import CompositingSettings, compose, paint_sign, pick, warp_mark


class OneMark:
    """Always the same mark, straight RGBA given, premultiplied returned."""

    def __init__(self, mark: np.ndarray) -> None:
        self.mark = premultiply(mark)

    def draw(self, rng: np.random.Generator, extent: float, kind: str) -> np.ndarray:
        return self.mark


def disc(color: tuple[int, int, int], side: int = 64) -> OneMark:
    mark = np.zeros((side, side, 4), np.uint8)
    mark[..., :3] = color
    cv2.circle(mark[..., 3:].copy(), (side // 2, side // 2), side // 3, 255, -1)
    yy, xx = np.mgrid[:side, :side] - side / 2 + 0.5
    mark[..., 3] = 255 * (np.hypot(yy, xx) < side / 3)
    return OneMark(mark)


PLAIN = CompositingSettings(
    clean_fraction=0, sign_fraction=0, degraded_fraction=0, families={"logo": 1.0}, modes={"normal": 1.0}, most={}
)
GREY = np.full((96, 128, 3), 100, np.uint8)


def test_labels_are_where_the_picture_changed() -> None:
    for seed in range(20):
        drawn = compose(GREY, disc((255, 255, 255)), PLAIN, np.random.default_rng(seed))
        changed = np.abs(drawn.image.astype(int) - GREY).sum(axis=-1)
        assert drawn.family == "logo"
        assert (changed[drawn.label] >= PLAIN.visible_change).all()
        assert (changed[~drawn.label & ~drawn.ignore] <= 0.05 * 155 * 3 + 3).all(), "what is neither is untouched"
        assert not (drawn.label & drawn.ignore).any()


def test_every_border_of_a_label_is_ignored() -> None:
    drawn = compose(GREY, disc((255, 255, 255)), PLAIN, np.random.default_rng(3))
    around = cv2.dilate(drawn.label.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~drawn.label
    assert around.any()
    assert drawn.ignore[around].all()


def test_photo_blur_softens_the_photo_and_not_the_mark() -> None:
    scene = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    soft = replace(PLAIN, photo_blur=(1.0, 1.0))
    clean = compose(scene, disc((255, 255, 255)), replace(soft, clean_fraction=1.0), np.random.default_rng(0))
    assert np.array_equal(clean.image, cv2.GaussianBlur(scene, (0, 0), 1.0))
    drawn = compose(GREY, disc((255, 255, 255)), replace(soft, opacity=(1.0, 1.0)), np.random.default_rng(0))
    plain = compose(GREY, disc((255, 255, 255)), replace(PLAIN, opacity=(1.0, 1.0)), np.random.default_rng(0))
    assert np.array_equal(drawn.image, plain.image), "on an even photo only a blurred mark could differ"


def test_an_invisible_mark_leaves_a_clean_picture() -> None:
    drawn = compose(GREY, disc((100, 100, 100)), PLAIN, np.random.default_rng(0))
    assert drawn.family == "clean"
    assert not drawn.label.any()
    assert np.isnan(drawn.opacity)
    assert np.array_equal(drawn.image, GREY)


def test_alpha_and_colour_explain_the_picture() -> None:
    drawn = compose(GREY, disc((250, 40, 10)), PLAIN, np.random.default_rng(5), parts=True)
    assert drawn.alpha is not None
    assert drawn.color is not None
    alpha = drawn.alpha[..., None] / 255.0
    explained = drawn.color * alpha + GREY * (1 - alpha)
    assert np.abs(explained - drawn.image).max() <= 3
    inside = drawn.label & (drawn.alpha > 60)
    assert np.abs(drawn.color[inside].astype(int) - (250, 40, 10)).max() <= 4
    assert drawn.alpha[inside].max() / 255 == pytest.approx(drawn.opacity, abs=0.01)


def test_same_generator_state_gives_the_same_sample() -> None:
    bank, settings = MarkBank(), CompositingSettings()
    photo = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    first, again, other = (compose(photo, bank, settings, np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.label, again.label)
    assert not np.array_equal(first.image, other.image)


def test_shares_of_clean_pictures_and_signs_are_kept() -> None:
    photo = np.random.default_rng(1).integers(0, 255, (48, 48, 3), np.uint8)
    settings = CompositingSettings(clean_fraction=0.5, sign_fraction=0.4, degraded_fraction=0)
    families = [compose(photo, MarkBank(), settings, np.random.default_rng(seed)).family for seed in range(200)]
    clean, negative = families.count("clean"), families.count("hard_negative")
    assert 36 <= clean <= 90, "0.5 · 0.6 of 200, give or take 4 sigma and marks that cannot be seen"
    assert 18 <= negative <= 64


def test_signs_change_the_scene_and_are_not_labelled() -> None:
    settings = CompositingSettings(clean_fraction=1, sign_fraction=1, degraded_fraction=0)
    drawn = compose(GREY, disc((255, 0, 0)), settings, np.random.default_rng(2))
    assert drawn.family == "hard_negative"
    assert not drawn.label.any()
    assert not np.array_equal(drawn.image, GREY)


def test_sign_stays_inside_the_picture() -> None:
    painted = paint_sign(GREY, disc((255, 255, 255)), np.random.default_rng(0))
    assert painted.shape == GREY.shape
    assert painted.dtype == np.uint8


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 200.0])
def test_warp_keeps_extent_and_place(angle: float) -> None:
    mark = np.full((40, 80, 4), 255, np.uint8)
    layer = warp_mark(mark, 60.0, angle, (70.0, 50.0), (120, 150))
    assert layer is not None
    ink = np.zeros((120, 150), np.float32)
    ink[layer.window] = layer.ink
    yy, xx = np.nonzero(ink > 0.5)
    scale = 60 / np.hypot(40, 80)
    assert len(xx) == pytest.approx(40 * 80 * scale**2, rel=0.05)
    assert (xx.mean(), yy.mean()) == pytest.approx((70, 50), abs=0.6)
    assert np.abs(layer.color[layer.ink > 0.1] - 1).max() < 0.02


def test_warp_keeps_the_colour_of_edges() -> None:
    """A red mark on transparent black stays red where it fades: the reason for premultiplied sources."""
    mark = np.zeros((64, 64, 4), np.uint8)
    mark[16:48, 16:48] = (255, 0, 0, 255)
    layer = warp_mark(premultiply(mark), 30.0, 33.0, (40.0, 40.0), (80, 80))
    assert layer is not None
    fading = (layer.ink > 0.1) & (layer.ink < 0.9)
    assert fading.any()
    assert layer.color[fading][:, 0].min() > 0.93


def test_a_mark_off_the_canvas_is_none() -> None:
    assert warp_mark(np.full((8, 8, 4), 255, np.uint8), 10.0, 0.0, (-50.0, 5.0), (40, 40)) is None


def test_pick_follows_the_weights() -> None:
    rng = np.random.default_rng(0)
    drawn = [pick({"a": 3, "b": 1, "never": 0}, rng) for _ in range(2000)]
    assert drawn.count("a") / 2000 == pytest.approx(0.75, abs=0.04)
    assert "never" not in drawn


def test_pyramid_keeps_ink_and_halves() -> None:
    rng = np.random.default_rng(0)
    logo = rng.integers(0, 255, (200, 120, 4), np.uint8)
    levels = pyramid(logo)
    assert [level.shape[:2] for level in levels] == [(200, 120), (100, 60), (50, 30)]
    for level in levels[1:]:
        assert level[..., 3].mean() == pytest.approx(levels[0][..., 3].mean(), abs=1.5)


def test_bank_takes_the_smallest_level_that_is_large_enough() -> None:
    logo = np.full((400, 400, 4), 255, np.uint8)
    bank = MarkBank([pyramid(logo)], drawn_fraction=0)
    rng = np.random.default_rng(0)
    assert bank.draw(rng, 250.0, "logo").shape[0] == 200
    assert bank.draw(rng, 9999.0, "logo").shape[0] == 400
    assert bank.draw(rng, 40.0, "text").shape[0] < 200, "text is always drawn"


def test_a_logo_without_ink_is_named(tmp_path) -> None:
    path = tmp_path / "empty.png"
    cv2.imwrite(str(path), np.zeros((8, 8, 4), np.uint8))
    cv2.imwrite(str(tmp_path / "good.png"), np.full((8, 8, 4), 255, np.uint8))
    paths = [str(path), str(tmp_path / "good.png"), str(tmp_path / "missing.png")]
    with pytest.raises(UnreadableImageError, match=r"empty\.png': as a logo it is fully transparent"):
        load_logos(paths)
    logos, errors = load_logos(paths, on_unreadable="skip")
    assert len(logos) == 1
    assert [error.path for error in errors] == [paths[0], paths[2]]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"families": {"tile": 1.0}}, r"\['tile'\]; known are logo, text, tiled"),
        ({"modes": {"normal": 1.0, "dodge": 0.1}}, r"\['dodge'\]; known are"),
        ({"most": {"logos": 3}}, r"most names \['logos'\]"),
        ({"families": {"logo": 0.0}}, "positive sum"),
        ({"opacity": (0.9, 0.3)}, r"opacity must be two ascending numbers from 0 on, got \[0.9, 0.3\]"),
        ({"clean_fraction": 1.5}, r"clean_fraction must lie in \[0, 1\]"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CompositingSettings(**setting)
