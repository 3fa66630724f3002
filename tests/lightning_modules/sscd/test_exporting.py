"""Exported files answer as the network does, and one is called as the published files are."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.export import write_checked
from experiments.export_formats import FORMATS, METADATA_KEY, ExportFormat
from lightning_modules.functional.normalization import IMAGENET_MEAN, IMAGENET_STD
from lightning_modules.sscd.exporting import ExportInput, export_program
from lightning_modules.sscd.network import DescriptorNetwork
from lightning_modules.sscd.published import classy_key, key_map_into
from lightning_modules.weights import load_weights, read_weights


@pytest.fixture(scope="module")
def network() -> DescriptorNetwork:
    torch.manual_seed(0)
    network = DescriptorNetwork("resnet18", dims=32).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)  # zeros would hide the residual branches
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    return network.requires_grad_(False)


def written(network: DescriptorNetwork, format: ExportFormat, export_input: ExportInput, path: Path) -> Path:
    program = export_program(network, "resnet18", "short_288", export_input)
    write_checked(program, program.metadata, format, path)
    return path


@pytest.mark.parametrize(
    "format", ["torchscript", pytest.param("onnx", marks=pytest.mark.slow), pytest.param("pt2", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("export_input", ["image", "normalised"])
def test_files_of_every_format_answer_as_the_network(
    network: DescriptorNetwork, format: ExportFormat, export_input: ExportInput, tmp_path: Path
) -> None:
    answer = FORMATS[format][1](written(network, format, export_input, tmp_path / f"copies.{format}"))
    for size in ((1, 3, 64, 64), (3, 3, 70, 133), (2, 3, 33, 40)):
        image = torch.rand(size, generator=torch.Generator().manual_seed(1))
        given = image
        if export_input == "normalised":
            given = (image - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
        torch.testing.assert_close(answer(given), network(image), rtol=0, atol=1e-5)


def test_the_published_convention_has_the_published_keys_and_loads_as_a_published_file(
    network: DescriptorNetwork, tmp_path: Path
) -> None:
    path = written(network, "torchscript", "normalised", tmp_path / "ours.torchscript.pt")
    tensors, _ = read_weights(path)
    assert list(tensors) == list(network.state_dict())
    again = DescriptorNetwork("resnet18", dims=32).eval()
    load_weights(again, path, key_map=key_map_into(again))
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(again(image), network(image))
    assert classy_key("backbone.fc.weight", deep=False) == "embeddings.1.weight"


def test_the_file_says_how_it_is_called(network: DescriptorNetwork, tmp_path: Path) -> None:
    path = written(network, "torchscript", "normalised", tmp_path / "ours.pt")
    extra = {METADATA_KEY: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.load(path, _extra_files=extra)
    told = json.loads(extra[METADATA_KEY])
    assert (told["method"], told["backbone"], told["dims"], told["resize"]) == ("sscd", "resnet18", 32, "short_288")
    assert "0.485" in told["input"]
    assert "0.485" not in export_program(network, "resnet18", "short_288").metadata["input"]


def test_the_exported_network_is_a_copy_in_eval_mode(network: DescriptorNetwork) -> None:
    training = DescriptorNetwork("resnet18", dims=8).to(memory_format=torch.channels_last).train()
    program = export_program(training, "resnet18", "skew_320")
    assert not program.network.training
    assert not any(parameter.requires_grad for parameter in program.network.parameters())
    assert training.training
    assert all(parameter.requires_grad for parameter in training.parameters())


def test_an_unknown_convention_is_refused(network: DescriptorNetwork) -> None:
    with pytest.raises(ValueError, match="`export_input` must be image or normalised, got 'normalized'"):
        export_program(network, "resnet18", "short_288", "normalized")  # type: ignore[arg-type]
