"""Each toy generator leaves a trace of its own in the spectrum, and nothing else: colours and sharpness stay."""

import cv2
import numpy as np
import pytest

from datamodules.images.procedural import draw_scene
from datamodules.images.randomness import sample_rng
from datamodules.transforms.spectrum_crops import compress
from datamodules.transforms.toy_generators import TOY_GENERATORS, generate

SIDE = 120  # a multiple of every period
COUNT = 48
PERIODS = {"nearest": 5, "bilinear": 4, "transposed": 4, "shuffle": 3, "grid8": 8}


def scenes(seed: int) -> list[np.ndarray]:
    return [draw_scene(sample_rng(seed, 0, index), (SIDE, SIDE)) for index in range(COUNT)]


@pytest.fixture(scope="module")
def real() -> list[np.ndarray]:
    return scenes(0)


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[np.ndarray]]:
    others = scenes(1)
    return {name: [generate(scene, name) for scene in others] for name in TOY_GENERATORS}


def log_spectrum(image: np.ndarray, row: int = 0) -> np.ndarray:
    """Log magnitude of luma, along x where it does not change along y."""
    luma = image.astype(float) @ [0.299, 0.587, 0.114]
    return np.log(np.abs(np.fft.fft2(luma - luma.mean(), norm="ortho")) + 0.1)[row]


def excess(images: list[np.ndarray], period: int) -> float:
    """How far the clearest multiple of a frequency along x stands out from its neighbours, on average."""
    mean = np.mean([log_spectrum(image) for image in images], axis=0)
    beside = np.array([-4, -3, -2, 2, 3, 4])
    multiples = [SIDE // period * k for k in range(1, period // 2 + 1)]
    return max(float(mean[f] - mean[(f + beside) % SIDE].mean()) for f in multiples)


def auroc(negative: list[float], positive: list[float]) -> float:
    return float(np.greater.outer(np.array(positive), np.array(negative)).mean())


@pytest.mark.parametrize("name", list(TOY_GENERATORS))
def test_its_period_stands_out_and_others_do_not(name: str, real: list[np.ndarray], drawn: dict[str, list]) -> None:
    peaks = {other: excess(drawn[name], period) for other, period in PERIODS.items()}
    assert peaks[name] > 1
    strangers = [peaks[other] for other, period in PERIODS.items() if period % PERIODS[name] and PERIODS[name] % period]
    assert all(peak < 0.6 for peak in strangers)
    assert excess(real, PERIODS[name]) < 0.5


@pytest.mark.parametrize("name", list(TOY_GENERATORS))
def test_a_part_of_the_trace_survives_jpeg(name: str, real: list[np.ndarray], drawn: dict[str, list]) -> None:
    period = PERIODS[name]
    packed, plain = ([compress(image, "jpeg", 65) for image in images] for images in (drawn[name], real))
    assert excess(packed, period) > excess(plain, period) + 0.5


@pytest.mark.parametrize("name", list(TOY_GENERATORS))
def test_simple_statistics_do_not_tell(name: str, drawn: dict[str, list]) -> None:
    """On the scenes it was made from, so that chance of content plays no part."""
    own = scenes(1)
    statistics = {
        "mean": lambda image: image.mean(),
        "std": lambda image: image.std(),
        "red": lambda image: image[..., 0].mean() - image[..., 2].mean(),
        "darkest": lambda image: np.percentile(image, 2),
    }
    for what, statistic in statistics.items():
        assert 0.4 < auroc([statistic(i) for i in own], [statistic(i) for i in drawn[name]]) < 0.6, what


@pytest.mark.parametrize("name", list(TOY_GENERATORS))
def test_there_is_as_much_fine_detail_as_before(name: str, drawn: dict[str, list]) -> None:
    def detail(image: np.ndarray) -> float:
        values = image.astype(np.float32)
        return float(np.sqrt(((values - cv2.GaussianBlur(values, (0, 0), 3.0)) ** 2).mean()))

    ratios = [detail(picture) / detail(scene) for scene, picture in zip(scenes(1), drawn[name], strict=True)]
    assert abs(float(np.median(ratios)) - 1) < 0.08


@pytest.mark.parametrize("size_hw", [(120, 120), (61, 97), (16, 17)])
def test_any_size_and_the_same_each_time(size_hw: tuple[int, int]) -> None:
    scene = draw_scene(np.random.default_rng(0), size_hw)
    for name in TOY_GENERATORS:
        picture = generate(scene, name)
        assert picture.shape == scene.shape
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, generate(scene, name))
        assert abs(picture.astype(float).mean() - scene.mean()) < 2.5
