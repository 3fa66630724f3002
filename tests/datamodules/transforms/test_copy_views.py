"""Views of copy detection against Pillow's and torchvision's, their draws against the published distributions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from PIL import Image, ImageFilter
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from datamodules.images.procedural import draw_scene
from datamodules.transforms import copy_operations as operations
from datamodules.transforms import copy_overlays as overlays
from datamodules.transforms import fonts
from datamodules.transforms.copy_views import ViewPlan, ViewSettings, draw_box, draw_plan, make_view, render_view
from experiments.benchmarks.views import plain_view

PIPELINES = ("simclr", "blur", "advanced")


@pytest.fixture(scope="module")
def photo():
    return draw_scene(np.random.default_rng(5), (168, 225))  # their difference is odd


def pillow(array):
    return Image.fromarray(array)


def error(answer, expected):
    return np.abs(np.asarray(answer).astype(int) - np.asarray(expected))


# --- operations against Pillow ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.2, 0.77, 1, 1.33, 1.8])
def test_light_and_saturation_follow_pillow(photo, factor):
    assert error(operations.brighten(photo, factor), tv.adjust_brightness(pillow(photo), factor)).max() == 0
    assert error(operations.change_contrast(photo, factor), tv.adjust_contrast(pillow(photo), factor)).max() <= 1
    assert error(operations.saturate(photo, factor), tv.adjust_saturation(pillow(photo), factor)).max() <= 1


@pytest.mark.parametrize("turn", [-0.2, -0.05, 0.11, 0.2])
def test_hue_follows_pillow(photo, turn):
    expected = np.asarray(tv.adjust_hue(pillow(photo), turn)).astype(int)
    answer = operations.shift_hue(photo, turn)
    assert error(answer, expected).mean() < 1.2
    assert np.abs((answer - expected).mean((0, 1))).max() < 2  # Pillow cuts the hue to whole steps, OpenCV rounds it


def test_greyscale_follows_pillow(photo):
    assert error(operations.greyscale(photo), tv.to_grayscale(pillow(photo), 3)).max() <= 1


@pytest.mark.parametrize("sigma", [0.3, 1, 2.5, 5])
def test_blur_follows_pillow_inside_and_has_its_strength(photo, sigma):
    expected = np.asarray(pillow(photo).filter(ImageFilter.GaussianBlur(sigma)))
    answer = operations.gaussian_blur(photo, sigma)
    assert error(answer, expected).mean() < 0.8
    assert np.diff(answer, axis=1).std() == pytest.approx(np.diff(expected, axis=1).std(), rel=0.05)
    impulse = np.zeros((81, 81, 3), np.uint8)
    impulse[40, 40] = 255
    if sigma >= 1:
        spread = operations.gaussian_blur(np.repeat(impulse[40:41], 81, axis=0), sigma)[40, :, 0].astype(float)
        assert np.sqrt(np.average((np.arange(81) - 40) ** 2, weights=spread)) == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize("size_wh", [(96, 96), (224, 100), (300, 260)])
def test_resize_is_within_a_level_of_pillow(photo, size_wh):
    expected = pillow(photo[3:150, 10:200]).resize(size_wh, Image.Resampling.BILINEAR)
    answer = operations.resize(photo[3:150, 10:200], size_wh)
    assert error(answer, expected).max() <= 1
    assert abs((answer.astype(int) - np.asarray(expected)).mean()) < 0.05


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("width", [100, 168, 224])
def test_quarter_turn_is_pillow_s_where_no_pixel_is_halved(photo, degrees, width):
    expected = pillow(photo[:, :width]).rotate(degrees, Image.Resampling.BILINEAR)
    assert error(operations.quarter_turn(np.ascontiguousarray(photo[:, :width]), degrees), expected).max() == 0


@pytest.mark.parametrize("degrees", [10, 90, 203, 359])
def test_rotation_follows_pillow_and_a_box_of_it_is_its_part(photo, degrees):
    expected = np.asarray(pillow(photo).rotate(degrees, Image.Resampling.BILINEAR))
    answer = operations.rotate(photo, degrees)
    assert np.median(error(answer, expected)) <= 1
    assert (error(answer, expected).max(2) > 2).mean() < 0.02  # the seam
    part = operations.rotate(photo, degrees, (20, 33, 70, 110))
    assert error(part, answer[20:90, 33:143]).max() <= 1


# --- overlays --------------------------------------------------------------------------------------------------------


def drawn_stamps(size_wh, count=12):
    rng = np.random.default_rng(3)
    emoji = [
        overlays.emoji_stamp(overlays.draw_emoji(rng), size_wh, legacy)
        for legacy in (False, True)
        for _ in range(count)
    ]
    texts = [overlays.text_stamp(overlays.draw_text(rng), size_wh) for _ in range(count)]
    return [*emoji, *(stamp for stamp in texts if stamp)]


def test_overlay_on_a_part_is_the_part_of_the_overlay_on_the_whole(photo):
    boxes = np.random.default_rng(1)
    for stamp in drawn_stamps(photo.shape[1::-1]):
        whole = photo.copy()
        overlays.lay(whole, stamp)
        assert (whole != photo).any()
        top, left, height, width = draw_box(photo.shape[:2], boxes)
        part = photo[top : top + height, left : left + width].copy()
        overlays.lay(part, stamp, left, top)
        np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


def test_fitting_length_is_the_longest_that_brute_force_finds():
    rng = np.random.default_rng(2)
    lengths = []
    for size_wh in [(300, 200), (90, 60), (5000, 300), (40, 12), (7, 7)]:
        for _ in range(5):
            drawn = overlays.draw_text(rng)
            font = overlays._load_font(drawn.font, max(1, min(size_wh) // 6))
            boxes = [font.getbbox(drawn.characters[:n]) for n in range(1, 100)]
            fits = [n for n, box in enumerate(boxes, 1) if box[2] - box[0] <= size_wh[0] and box[3] <= size_wh[1]]
            lengths.append(max(fits, default=0))
            assert overlays.fitting_length(font, drawn.characters, size_wh) == lengths[-1]
    assert 0 < min(lengths) + 1 < 20 < max(lengths)


def test_text_that_fits_as_a_whole_is_written_unless_legacy():
    drawn = replace(overlays.draw_text(np.random.default_rng(0)), size=0.1)
    wide = (100_000, 100)
    assert overlays.text_stamp(drawn, wide) is not None
    assert overlays.text_stamp(drawn, wide, legacy=True) is None
    assert overlays.text_stamp(drawn, (300, 100), legacy=True) is not None


def test_every_font_draws_its_code_points_without_an_error():
    rng = np.random.default_rng(0)
    assert len(overlays.text_fonts()) == 364
    assert len(fonts.emoji_files()) == 872
    for font in overlays.text_fonts():
        points = overlays._code_points(font)
        text = "".join(map(chr, rng.permutation(points)[:60].tolist()))
        overlays._load_font(font, 20).getbbox(text)


def test_text_that_the_layout_engine_gives_up_on_is_left_out():
    font = next(font for font in overlays.text_fonts() if font.endswith("NotoSerifDisplay-Regular.ttf"))
    assert not {0x0A, 0x0D, 0x2029} & set(overlays._code_points(font).tolist())
    text = overlays.TextOverlay(font, "A\u2029" + "B" * 98, 0.2, 0.9, (0, 0, 0), 1.0, 0.0, 0.0)
    assert overlays.text_stamp(text, (400, 400)) is None
    assert overlays.text_stamp(replace(text, characters="B" * 100), (400, 400)) is not None


# --- draws -----------------------------------------------------------------------------------------------------------


def test_boxes_have_torchvision_s_distribution():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    for size_hw in [(150, 200), (60, 300)]:
        ours = np.array([draw_box(size_hw, rng) for _ in range(1500)])
        blank = torch.empty(3, *size_hw)
        theirs = np.array([RandomResizedCrop.get_params(blank, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(1500)])
        for field in range(4):
            assert stats.ks_2samp(ours[:, field], theirs[:, field]).pvalue > 1e-3


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 50), (50, 1), (9, 9), (30, 200)])
def test_boxes_lie_inside(size_hw):
    rng = np.random.default_rng(0)
    top, left, height, width = np.array([draw_box(size_hw, rng) for _ in range(200)]).T
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= size_hw[0]
    assert (left + width).max() <= size_hw[1]


@pytest.mark.parametrize(("pipeline", "blur"), [("simclr", (0.1, 2)), ("blur", (1, 5)), ("advanced", (1, 5))])
def test_steps_happen_as_often_as_published_and_in_their_ranges(pipeline, blur):
    rng = np.random.default_rng(7)
    count = 2500
    plans = [draw_plan((150, 200), ViewSettings(pipeline), rng) for _ in range(count)]
    only = pipeline == "advanced"
    rates = {
        "flip": 0.5, "turn": 0.05 * only, "text": 0.1 * only, "emoji": 0.2 * only, "angle": 0.05 * only,
        "jitter": 0.8, "grey": 0.2, "blur": 0.5, "quality": 0.2 * only,
    }  # fmt: skip
    for name, rate in rates.items():
        happened = sum(_happened(name, getattr(plan, name)) for plan in plans)
        assert abs(happened - rate * count) <= 4 * np.sqrt(count * rate * (1 - rate)), name
    sigmas = [plan.blur for plan in plans if plan.blur is not None]
    assert stats.kstest(sigmas, stats.uniform(blur[0], blur[1] - blur[0]).cdf).pvalue > 1e-3
    ranges = {"brightness": (0.2, 1.8), "contrast": (0.2, 1.8), "saturation": (0.2, 1.8), "hue": (-0.2, 0.2)}
    jitters = [plan.jitter for plan in plans if plan.jitter]
    for name, (low, high) in ranges.items():
        factors = [dict(jitter)[name] for jitter in jitters]
        assert stats.kstest(factors, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    assert len({tuple(name for name, _ in jitter) for jitter in jitters}) == 24
    if only:
        assert {plan.turn for plan in plans} == {0, 90, 180, 270}
        qualities = {plan.quality for plan in plans if plan.quality is not None}
        assert (min(qualities), max(qualities)) == (0, 100)


def _happened(name, value):
    return bool(value) if name in ("flip", "turn", "jitter", "grey") else value is not None


# --- views -----------------------------------------------------------------------------------------------------------


def test_views_are_those_of_the_full_size_pillow_pipeline(photo):
    settings = ViewSettings("advanced", 64)
    rng = np.random.default_rng(11)
    plans = [draw_plan(photo.shape[:2], settings, rng) for _ in range(150)]
    texts = [overlays.draw_text(rng) for _ in range(5)]
    box = (10, 25, 120, 160)
    plans += [
        ViewPlan(box, flip, turn, text=text)
        for text, turn in zip(texts, (0, 90, 180, 270, 0), strict=True)
        for flip in (False, True)
    ]
    errors = []
    for plan in plans:
        expected = np.asarray(plain_view(pillow(photo), plan, settings)).astype(int)
        answer = render_view(photo, plan, settings)
        if plan.quality is None and plan.turn not in (90, 270) and not plan.angle:
            assert error(answer, expected).mean() < 3, plan
        errors.append((answer - expected).mean((0, 1)))
    assert np.abs(np.mean(errors, 0)).max() < 0.5  # levels
    assert np.percentile(np.abs(errors), 99) < 4


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("size_hw", [(1, 1), (9, 9), (3, 40), (90, 61)])
def test_any_photo_gives_a_view_and_stays_as_it_is(pipeline, size_hw):
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (*size_hw, 3), np.uint8)
    before = photo.copy()
    photo.setflags(write=False)
    for _ in range(60):
        view = make_view(photo, ViewSettings(pipeline, 32), rng)
        assert view.shape == (32, 32, 3)
        assert view.dtype == np.uint8
        assert view.flags.c_contiguous
        assert not np.shares_memory(view, photo)
    np.testing.assert_array_equal(photo, before)


def test_same_generator_same_view(photo):
    first, again, other = (make_view(photo, ViewSettings("advanced", 48), np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="`pipeline` must be one of simclr, blur, advanced, got 'strong'"):
        ViewSettings("strong")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ViewSettings(size=0)


def test_settings_narrow_what_is_drawn():
    settings = ViewSettings("blur", 32, min_area=0.5, jitter=0.25, blur=(0.2, 0.4))
    plans = [draw_plan((200, 200), settings, np.random.default_rng(i)) for i in range(300)]
    assert min(plan.box[2] * plan.box[3] for plan in plans) >= 0.49 * 200 * 200
    assert all(0.2 <= plan.blur <= 0.4 for plan in plans if plan.blur is not None)
    factors = {name: [dict(plan.jitter)[name] for plan in plans if plan.jitter] for name in ("brightness", "hue")}
    assert 0.8 <= min(factors["brightness"]) < 0.82
    assert 1.18 < max(factors["brightness"]) <= 1.2
    assert -0.05 <= min(factors["hue"]) < max(factors["hue"]) <= 0.05
    for wrong in ({"min_area": 0}, {"jitter": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ViewSettings(**wrong)
