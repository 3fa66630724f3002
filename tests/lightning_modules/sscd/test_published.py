"""Published files of every layout and container load strictly, tell their architecture, and run nothing."""

import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.sscd.network import DescriptorNetwork
from lightning_modules.sscd.published import classy_key, has_deep_blocks, key_map_into, recognise, torchvision_key
from lightning_modules.weights import load_weights, save_weights

LAYOUTS = ("torchvision", "classy")


class Holder(nn.Module):
    """A module that has a network, as a LightningModule has it."""

    def __init__(self, network: DescriptorNetwork) -> None:
        super().__init__()
        self.network = network


def filled(backbone: str = "resnet18", dims: int | None = 8) -> DescriptorNetwork:
    network = DescriptorNetwork(backbone, dims).eval()
    generator = torch.Generator().manual_seed(0)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return network


@pytest.fixture(scope="module")
def network() -> DescriptorNetwork:
    return filled()


def in_layout(state: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    if layout == "torchvision":
        return dict(state)
    return {classy_key(key, has_deep_blocks(state)): value for key, value in state.items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("within", ["network", "module"])
def test_files_load_into_a_network_and_into_a_module_that_has_one(
    network: DescriptorNetwork, layout: str, within: str, tmp_path: Path
) -> None:
    state = in_layout(network.state_dict(), layout)
    torch.save({f"module.model.{key}": value for key, value in state.items()}, tmp_path / "published.pt")
    fresh = DescriptorNetwork("resnet18", dims=8)
    target = fresh if within == "network" else Holder(fresh)
    report = load_weights(target, tmp_path / "published.pt", key_map=key_map_into(target))
    assert report.loaded == len(state)
    assert same(fresh, network)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_converted_files_are_safetensors_that_need_no_renaming(
    network: DescriptorNetwork, layout: str, tmp_path: Path
) -> None:
    torch.save(in_layout(network.state_dict(), layout), tmp_path / "published.pt")
    first, second = DescriptorNetwork("resnet18", dims=8), DescriptorNetwork("resnet18", dims=8)
    load_weights(first, tmp_path / "published.pt", key_map=key_map_into(first))
    save_weights(first, tmp_path / "ours.safetensors", {})
    load_weights(second, tmp_path / "ours.safetensors")
    assert same(second, network)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoints_of_the_reference_load_with_their_arguments(
    network: DescriptorNetwork, layout: str, tmp_path: Path
) -> None:
    state = {f"model.{key}": value for key, value in in_layout(network.state_dict(), layout).items()}
    arguments = {"args": Namespace(backbone="TV_RESNET18", dims=8, pool_param=3.0, nested=Namespace(a=[1])), "steps": 3}
    content = {"state_dict": state, "hyper_parameters": arguments, "epoch": 99, "pytorch-lightning_version": "1.5.10"}
    torch.save(content, tmp_path / "last.ckpt")
    fresh = DescriptorNetwork("resnet18", dims=8)
    report = load_weights(fresh, tmp_path / "last.ckpt", key_map=key_map_into(fresh))
    assert same(fresh, network)
    assert report.metadata["hyper_parameters"]["args"].pool_param == 3.0


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_code_among_the_arguments_is_refused_by_name(network: DescriptorNetwork, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    content = {"state_dict": network.state_dict(), "hyper_parameters": {"args": Namespace(bomb=Bomb(marker))}}
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"would execute .*system"):
        load_weights(DescriptorNetwork("resnet18", dims=8), tmp_path / "last.ckpt", key_map=key_map_into(network))
    assert not marker.exists()


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "resnext101_32x4d", "resnext101_32x8d"])
@pytest.mark.parametrize("dims", [40, None])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wrapper", ["", "model.", "network."])
def test_shapes_tell_the_architecture(backbone: str, dims: int | None, layout: str, wrapper: str) -> None:
    with torch.device("meta"):
        state = in_layout(DescriptorNetwork(backbone, dims).state_dict(), layout)
    wrapped = {wrapper + key: value for key, value in state.items()}
    assert recognise(wrapped) == {"backbone": backbone, "dims": dims}
    deep = has_deep_blocks(wrapped)
    assert deep == (backbone != "resnet18")
    if layout == "classy":
        assert [classy_key(torchvision_key(key, deep), deep) for key in state] == list(state)


def test_weights_of_another_architecture_are_refused_with_what_differs(
    network: DescriptorNetwork, tmp_path: Path
) -> None:
    torch.save(in_layout(network.state_dict(), "classy"), tmp_path / "published.pt")
    other = DescriptorNetwork("resnet50", dims=8)
    with pytest.raises(ValueError, match=r"does not fit DescriptorNetwork.*missing: backbone\.layer1\.0\.") as error:
        load_weights(other, tmp_path / "published.pt", key_map=key_map_into(other))
    assert "\n" not in str(error.value)
