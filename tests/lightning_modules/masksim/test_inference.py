"""Records of images of any sizes: windows, scores, p-values, verdicts and pictures."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special
import torch

from datamodules.transforms.spectrum_crops import central_crop
from lightning_modules.functional.detection_calibration import Calibration
from lightning_modules.masksim.bank import DetectorBank, Trunk
from lightning_modules.masksim.heads import HeadBank
from lightning_modules.masksim.inference import (
    DetectionSettings,
    crop_boxes,
    likeliest_head,
    merged_p_value,
    mirrored_positions,
    predict_batch,
    take_window,
)

SIDE = 64
NAMES = ("one", "two", "three")
# Bins from the zero frequency (row, column) that the heads look for.
LINES = ((0, 20), (11, 0), (-13, 22))


def looking_for(names: tuple[str, ...], lines: tuple[tuple[int, int], ...]) -> DetectorBank:
    """Heads that look at one frequency each, of the window itself."""
    torch.manual_seed(0)
    heads = HeadBank(len(names), (SIDE, SIDE))
    with torch.no_grad():
        heads.mix.copy_(torch.eye(3))
        heads.running_mean.fill_(-1.6)  # half of what the log spectra of the noise below are
        heads.reference_patterns.normal_(0, 0.05)
        for head, (row, column) in enumerate(lines):
            for sign in (1, -1):
                heads.reference_patterns[head, 0, :, SIDE // 2 + sign * row, SIDE // 2 + sign * column] += 4
        heads.scale_log.fill_(3)
    return DetectorBank(names, [Trunk(SIDE, "identity")], heads)


@pytest.fixture(scope="module")
def bank() -> DetectorBank:
    return looking_for(NAMES, LINES)


@pytest.fixture(scope="module")
def calibration(bank: DetectorBank) -> Calibration:
    with torch.inference_mode():
        real = torch.stack([to_tensor(scene(seed, (SIDE, SIDE))) for seed in range(400)]).float() / 255
        return Calibration.fit(bank(real).numpy(), NAMES)


def scene(seed: int, size_hw: tuple[int, int], line: int | None = None) -> np.ndarray:
    """Noise, with a plane wave at the frequency of one of the heads."""
    values = np.random.default_rng(seed).normal(128, 12, (*size_hw, 3))
    if line is not None:
        y, x = np.mgrid[: size_hw[0], : size_hw[1]]
        row, column = LINES[line]
        values += 30 * np.cos(2 * np.pi * (row * y + column * x) / SIDE)[..., None]
    return values.clip(0, 255).astype(np.uint8)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def predict(bank, images, settings=None, calibration=None, device="cpu"):
    module = SimpleNamespace(scorer=lambda: bank, calibration=calibration, device=torch.device(device))
    batch = {
        "image": [to_tensor(image) for image in images],
        "path": [f"{place}.png" for place in range(len(images))],
        "index": torch.arange(len(images)) + 7,
    }
    return predict_batch(module, batch, settings or DetectionSettings(maps=False))


@pytest.mark.parametrize("size_hw", [(64, 64), (65, 80), (79, 200), (144, 145), (40, 300), (300, 63), (9, 7), (1, 1)])
def test_the_window_is_the_one_that_evaluation_data_take(size_hw):
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)
    (box,) = crop_boxes(*size_hw, SIDE, DetectionSettings())
    np.testing.assert_array_equal(take_window(to_tensor(image), box).permute(1, 2, 0), central_crop(image, SIDE))


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_positions_beyond_the_edge_are_mirrored(length):
    wanted = np.pad(np.arange(length), (0, 23 - length), mode="symmetric")
    np.testing.assert_array_equal(mirrored_positions(0, 23, length), wanted)
    np.testing.assert_array_equal(mirrored_positions(3, 23, length), wanted[3:])


@pytest.mark.parametrize("crops", ["five", "grid"])
@pytest.mark.parametrize("size_hw", [(64, 64), (100, 64), (128, 128), (135, 200), (270, 517), (30, 400), (1000, 1200)])
def test_windows_lie_in_the_image_on_its_grid_and_differ(crops, size_hw):
    boxes = crop_boxes(*size_hw, SIDE, DetectionSettings(crops=crops, max_crops=1000))
    assert len(set(boxes)) == len(boxes)
    for left, top, right, bottom in boxes:
        assert (right - left, bottom - top) == (SIDE, SIDE)
        assert left % 8 == top % 8 == 0
        assert 0 <= left <= max(0, size_hw[1] - SIDE)
        assert 0 <= top <= max(0, size_hw[0] - SIDE)
    if crops == "grid":
        covered = np.zeros(size_hw, int)
        for left, top, right, bottom in boxes:
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1
        assert len(boxes) == max(1, size_hw[0] // SIDE) * max(1, size_hw[1] // SIDE)


def test_five_windows_are_the_centre_and_the_corners():
    assert crop_boxes(200, 300, SIDE, DetectionSettings(crops="five")) == [
        (112, 64, 176, 128),
        (0, 0, 64, 64),
        (232, 0, 296, 64),
        (0, 136, 64, 200),
        (232, 136, 296, 200),
    ]


def test_a_grid_of_too_many_windows_is_thinned_evenly():
    boxes = crop_boxes(3000, 4000, SIDE, DetectionSettings(crops="grid", max_crops=16))
    assert len(boxes) == 16
    assert max(bottom for *_, bottom in boxes) > 2900
    assert min(top for _, top, *_ in boxes) < 100


def test_records_hold_the_scores_of_the_central_window(bank, calibration):
    images = [scene(1, (64, 64)), scene(2, (150, 97), line=1), scene(3, (33, 90)), scene(4, (64, 64), line=2)]
    windows = torch.stack([to_tensor(central_crop(image, SIDE)) for image in images]).float() / 255
    wanted = bank(windows).numpy()
    records = predict(bank, images, calibration=calibration)["records"]
    for row, (record, image) in enumerate(zip(records, images, strict=True)):
        assert (record["path"], record["index"]) == (f"{row}.png", row + 7)
        assert (record["height"], record["width"]) == image.shape[:2]
        got = [record["generators"][name]["logit"] for name in NAMES]
        np.testing.assert_allclose(got, wanted[row], atol=1e-4)
        p_values = [record["generators"][name]["p_value"] for name in NAMES]
        np.testing.assert_allclose(p_values, calibration.p_values(wanted[row]), atol=1.01 / 401)
        json.dumps(record)
    assert [record["any"]["generator"] for record in records][1::2] == ["two", "three"]
    assert [record["verdict"] for record in records][1::2] == ["generated", "generated"]
    assert records[0]["verdict"] == calibration.verdict(records[0]["any"]["p_value"])
    assert "smaller than the window of 64 px" in records[2]["notes"][0]
    assert records[1]["notes"] == []


def test_peaks_are_found_at_the_line_that_drove_the_score(bank):
    records = predict(bank, [scene(5, (70, 90), line=line) for line in range(3)])["records"]
    for record, (row, column) in zip(records, LINES, strict=True):
        fx, fy = record["peaks"][0]["frequency_xy"]
        assert {(fx, fy), (-fx, -fy)} & {(round(column / SIDE, 5), round(row / SIDE, 5))}
        assert record["jpeg_grid_warning"] is None
        assert record["peaks"][0]["share"] > 0.02


def test_a_line_on_the_jpeg_grid_is_warned_of():
    image = scene(6, (SIDE, SIDE), line=0).astype(float)
    image += 60 * np.cos(2 * np.pi * 16 * np.arange(SIDE) / SIDE)[:, None, None]
    looking = looking_for(("grid",), ((16, 0),))
    (record,) = predict(looking, [image.clip(0, 255).astype(np.uint8)])["records"]
    assert record["peaks"][0]["on_jpeg_grid"]
    assert record["peaks"][0]["period"] == 4.0
    assert "8-pixel grid of JPEG" in record["jpeg_grid_warning"]


def test_several_windows_give_mean_logits_and_twice_the_mean_p_value(bank, calibration):
    settings = DetectionSettings(crops="grid", max_crops=6, maps=False, batch=4)
    image = scene(8, (130, 220))
    image[:64, :64] = scene(9, (64, 64), line=0)
    (record,) = predict(bank, [image], settings, calibration)["records"]
    boxes = crop_boxes(130, 220, SIDE, settings)
    windows = torch.stack([take_window(to_tensor(image), box) for box in boxes]).float() / 255
    logits = bank(windows).numpy()
    assert len(record["crops"]) == len(boxes) == 6
    for place, name in enumerate(NAMES):
        assert record["generators"][name]["logit"] == pytest.approx(logits[:, place].mean(), abs=1e-4)
        wanted = min(1, 2 * calibration.p_values(logits)[:, place].mean())
        assert record["generators"][name]["p_value"] == pytest.approx(wanted, abs=2 / 401)
        for crop, box, row in zip(record["crops"], boxes, logits, strict=True):
            assert crop["box"] == list(box)
            assert crop["logits"][name] == pytest.approx(row[place], abs=1e-4)
    assert "p-values are twice the mean of the crops' p-values" in record["notes"]


def test_without_a_calibration_there_are_no_p_values_and_no_verdict(bank):
    (record,) = predict(bank, [scene(1, (64, 64))])["records"]
    assert record["verdict"] == "not calibrated"
    assert record["any"]["p_value"] is None
    assert all(row["p_value"] is None for row in record["generators"].values())
    assert "not calibrated" in record["notes"][0]
    assert record["any"]["score"] == max(row["probability"] for row in record["generators"].values())


def test_pictures_come_with_the_records_they_belong_to(bank, calibration):
    images = [scene(1, (64, 64)), scene(2, (150, 97), line=1)]
    outputs = predict(bank, images, DetectionSettings(crops="five"), calibration)
    assert [sorted(pictures) for pictures in outputs["images"]] == [["map"], ["crops", "map"]]
    for pictures in outputs["images"]:
        for picture in pictures.values():
            assert picture.dtype == np.uint8
            assert picture.shape[2] == 3
    plain = predict(bank, images, DetectionSettings(crops="five", maps=False), calibration)
    assert plain["images"] == [{}, {}]
    assert plain["records"] == outputs["records"], "peaks come without pictures too"


def test_order_batch_and_threads_change_nothing(bank, calibration):
    images = [scene(seed, (60 + 17 * seed % 90, 64 + 31 * seed % 120), line=seed % 3) for seed in range(9)]
    settings = DetectionSettings(crops="five", maps=False, batch=2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = predict(bank, images, settings, calibration)["records"]
    finally:
        torch.set_num_threads(threads)
    for record, image in zip(together, images, strict=True):
        (alone,) = predict(bank, [image], settings, calibration)["records"]
        for name in NAMES:
            assert record["generators"][name]["logit"] == pytest.approx(alone["generators"][name]["logit"], abs=1e-4)
        assert (record["width"], record["height"]) == image.shape[1::-1]


def test_an_empty_batch_has_no_records(bank):
    assert predict(bank, []) == {"records": [], "images": []}


def test_merged_p_values_keep_their_promise_under_any_dependence():
    rng = np.random.default_rng(0)
    trials, crops = 20000, 5
    for shared in (0.0, 0.7, 1.0):
        common, own = rng.normal(size=(trials, 1)), rng.normal(size=(trials, crops))
        scores = shared * common + np.sqrt(1 - shared**2) * own
        p = 0.5 * scipy.special.erfc(scores / np.sqrt(2))
        merged = np.array([merged_p_value(row[:, None])[0] for row in p])
        for level in (0.01, 0.05, 0.1):
            assert (merged <= level).mean() <= level + 3 * np.sqrt(level / trials)
    assert merged_p_value(np.array([[0.3, 0.02]])).tolist() == [0.3, 0.02], "one crop is what was calibrated"


def test_the_likeliest_head_is_the_one_that_real_pictures_reach_least():
    real = np.stack([np.linspace(-1, 1, 99), np.linspace(9, 11, 99)], axis=1)
    calibration = Calibration.fit(real, ("quiet", "loud"))
    logits = np.array([[5.0, 9.5]])
    assert likeliest_head(logits, calibration) == 0
    assert likeliest_head(logits, None) == 1
    assert likeliest_head(np.array([[5.0, 12.0]]), calibration) == 1, "equal p-values: the higher logit"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"crops": "nine"}, "`crops` must be centre, five or grid, got 'nine'"),
        ({"max_crops": 0}, "`max_crops` must be at least 1, got 0"),
        ({"batch": 0}, "`batch` must be at least 1"),
        ({"peaks": -1}, "`peaks` must not be negative"),
    ],
)
def test_wrong_settings_are_one_line(wrong, said):
    with pytest.raises(ValueError, match=said):
        DetectionSettings(**wrong)
