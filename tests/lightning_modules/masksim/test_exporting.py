"""Exported banks answer as the module does, in every format, with the calibration inside."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from datamodules.transforms.spectrum_crops import central_crop
from experiments.export import write_checked
from experiments.export_formats import FORMATS, ExportFormat
from lightning_modules.exporting import ExportProgram
from lightning_modules.functional.detection_calibration import Calibration
from lightning_modules.functional.spectrum import half_log_magnitude
from lightning_modules.masksim.bank import DetectorBank, Trunk
from lightning_modules.masksim.denoiser import DnCNN
from lightning_modules.masksim.exporting import CentralWindow, HalfPlaneLogMagnitude, export_program
from lightning_modules.masksim.heads import HeadBank

SIDE = 48
NAMES = ("one", "two", "three")


def trunk(seed: int, relative_floor: float = 0.05) -> Trunk:
    torch.manual_seed(seed)
    made = Trunk(SIDE, "dncnn", relative_floor=relative_floor, denoiser_depth=3, denoiser_width=6)
    assert isinstance(made.preproc, DnCNN)
    for layer in made.preproc.model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(layer.bias, 0.0, 2.0)
    return made


def bank_of(trunks: list[Trunk]) -> DetectorBank:
    torch.manual_seed(9)
    heads = HeadBank(len(NAMES), trunks[0].window_hw, num_masks=2)
    with torch.no_grad():
        for tensor in (heads.mask_activations, heads.reference_patterns, heads.norm_bias, heads.running_mean):
            tensor.normal_()
        heads.running_var.uniform_(0.5, 2)
        heads.scale_log.fill_(2)
        heads.offset.normal_()
    return DetectorBank(NAMES, trunks, heads)


@pytest.fixture(scope="module", params=["shared", "own", "reference floor"])
def bank(request: pytest.FixtureRequest) -> DetectorBank:
    if request.param == "own":  # the first and the last are equal and become one
        return bank_of([trunk(1), trunk(2), trunk(1)])
    return bank_of([trunk(1, 0.0 if request.param == "reference floor" else 0.05)])


@pytest.fixture(scope="module")
def calibration(bank: DetectorBank) -> Calibration:
    rng = np.random.default_rng(0)
    with torch.no_grad():
        logits = bank(torch.rand(64, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))).numpy()
    real = logits.mean(0) + rng.normal(0, 3 * logits.std(0), (200, 3))
    names = np.asarray(NAMES)[rng.integers(0, 2, 90)]  # none of the third: its probability is not scaled
    return Calibration.fit(real, NAMES, logits.mean(0) + 4 * logits.std(0) + rng.normal(0, 1, (90, 3)), names)


def program_of(bank: DetectorBank, calibration: Calibration | None) -> ExportProgram:
    return export_program(SimpleNamespace(scorer=lambda: bank, calibration=calibration))  # type: ignore[arg-type]


def photo(size_hw: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(sum(size_hw)).integers(0, 256, (*size_hw, 3), np.uint8)


def to_batch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("size_hw", [(48, 48), (49, 300), (57, 64), (143, 144), (40, 90), (7, 5), (2, 2)])
def test_the_window_is_the_one_that_evaluation_data_take(size_hw: tuple[int, int]) -> None:
    image = photo(size_hw)
    assert torch.equal(CentralWindow(SIDE)(to_batch(image)), to_batch(central_crop(image, SIDE)))


@pytest.mark.parametrize("size_hw", [(16, 16), (15, 15), (42, 33)])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_matrix_products_are_the_fourier_transform(size_hw: tuple[int, int], floor: float) -> None:
    image = torch.rand(2, 3, *size_hw, generator=torch.Generator().manual_seed(0))
    wanted = half_log_magnitude(image.double(), floor).float()
    torch.testing.assert_close(HalfPlaneLogMagnitude(size_hw, floor)(image), wanted, rtol=0, atol=1e-6)


def test_the_program_answers_as_bank_and_calibration(bank: DetectorBank, calibration: Calibration) -> None:
    program = program_of(bank, calibration)
    assert program.metadata["columns"] == ["logit", "probability", "p_value"]
    for size_hw in ((48, 48), (97, 200), (30, 61)):
        image = photo(size_hw)
        with torch.no_grad():
            scores = program.network(to_batch(image))[0].numpy()
            logits = bank(to_batch(central_crop(image, SIDE)))[0].numpy()
        assert scores.shape == (len(NAMES) + 1, 3)
        np.testing.assert_allclose(scores[:-1, 0], logits, atol=1e-4)
        np.testing.assert_allclose(scores[:-1, 1], calibration.probability(logits), atol=1e-4)
        # Of the program's own logits: a table has steps.
        np.testing.assert_array_equal(scores[:-1, 2], calibration.p_values(scores[:-1, 0]).astype(np.float32))
        assert scores[-1, 2] == np.float32(calibration.any_p_value(scores[:-1, 0]))
        np.testing.assert_array_equal(scores[-1, :2], scores[:-1, :2].max(axis=0))


def test_without_a_calibration_there_is_no_column_of_p_values(bank: DetectorBank) -> None:
    program = program_of(bank, None)
    assert program.metadata["columns"] == ["logit", "probability"]
    assert program.metadata["calibration_pictures"] == 0
    with torch.no_grad():
        scores = program.network(to_batch(photo((60, 60))))
    assert scores.shape == (1, len(NAMES) + 1, 2)
    torch.testing.assert_close(scores[..., 1], scores[..., 0].sigmoid())


@pytest.mark.parametrize(
    "format", ["torchscript", pytest.param("onnx", marks=pytest.mark.slow), pytest.param("pt2", marks=pytest.mark.slow)]
)
def test_files_of_every_format_answer_as_the_module(
    bank: DetectorBank, calibration: Calibration, format: ExportFormat, tmp_path: Path
) -> None:
    program = program_of(bank, calibration)
    path = tmp_path / f"bank.{format}"
    write_checked(program, program.metadata, format, path)
    answer = FORMATS[format][1](path)
    for size_hw in ((48, 48), (130, 77), (20, 31), (2, 9)):
        image = to_batch(photo(size_hw)).repeat(3, 1, 1, 1)
        with torch.no_grad():
            torch.testing.assert_close(answer(image), program.network(image), rtol=0, atol=1e-4)


def test_the_metadata_are_json_and_say_what_the_rows_are(bank: DetectorBank, calibration: Calibration) -> None:
    metadata = program_of(bank, calibration).metadata
    told = json.loads(json.dumps(metadata, allow_nan=False))
    assert told["rows"] == [*NAMES, "any"]
    assert told["calibration_pictures"] == 200
    assert told["thresholds"]["two"]["0.05"] == calibration.operating_point(1, 0.05).threshold
    assert told["window"] == SIDE
    few = Calibration.fit(calibration.scores[:20], NAMES)
    thresholds = program_of(bank, few).metadata["thresholds"]["one"]
    assert thresholds["0.01"] is None, "20 pictures cannot show one in a hundred"
    assert thresholds["0.1"] is not None


def test_the_exported_network_shares_nothing_with_the_bank(bank: DetectorBank) -> None:
    network = program_of(bank, None).network
    own = {tensor.data_ptr() for tensor in bank.state_dict().values()}
    assert not any(tensor.data_ptr() in own for tensor in network.state_dict().values())
    assert not network.training
