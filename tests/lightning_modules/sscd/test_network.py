"""Any trunk behind one head; published files of every layout and format give the same descriptors."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_modules.sscd.network import DescriptorNetwork, GeM
from lightning_modules.sscd.published import classy_key, recognise, torchvision_key
from lightning_modules.weights import load_weights


@pytest.fixture(scope="module")
def network() -> DescriptorNetwork:
    torch.manual_seed(0)
    network = DescriptorNetwork("resnet18", dims=32).eval()
    for name, value in network.named_buffers():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return network


@pytest.mark.parametrize("backbone", ["resnet18", "resnet10t", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_any_trunk_gives_descriptors_of_length_one(backbone: str) -> None:
    described = DescriptorNetwork(backbone, dims=24).eval()(torch.rand(2, 3, 224, 224))
    assert described.shape == (2, 24)
    torch.testing.assert_close(described.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("size_hw", [(64, 64), (50, 97), (17, 33)])
def test_any_size_is_taken(network: DescriptorNetwork, size_hw: tuple[int, int]) -> None:
    assert torch.isfinite(network(torch.rand(1, 3, *size_hw))).all()


def test_an_unknown_trunk_names_close_ones() -> None:
    with pytest.raises(ValueError, match="resnet50"):
        DescriptorNetwork("resnet5O")


def test_gem_lies_between_mean_and_maximum() -> None:
    features = torch.rand(2, 5, 7, 3)
    mean, top = features.mean(dim=(2, 3)), features.amax(dim=(2, 3))
    torch.testing.assert_close(GeM(1.0)(features), mean)
    assert ((GeM(3.0)(features) > mean) & (GeM(3.0)(features) < top)).all()
    torch.testing.assert_close(GeM(200.0)(features), top, rtol=0.05, atol=0)


class Published(nn.Module):
    """The published structure: a backbone that ends in the projection, or a projection of its own."""

    def __init__(self, network: DescriptorNetwork) -> None:
        super().__init__()
        self.backbone = network.backbone

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.backbone(image))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("layout", ["torchvision", "classy", "torchscript", "lightning"])
def test_every_published_format_gives_the_same_descriptors(
    network: DescriptorNetwork, layout: str, tmp_path: Path
) -> None:
    path, state = tmp_path / "published.pt", network.state_dict()
    if layout == "torchscript":
        torch.jit.trace(Published(network), torch.rand(1, 3, 64, 64)).save(path)
    else:
        if layout == "classy":
            state = {classy_key(key, deep=False): value for key, value in state.items()}
        if layout == "lightning":
            state = {"state_dict": {f"model.{key}": value for key, value in state.items()}}
        torch.save(state, path)
    other = DescriptorNetwork("resnet18", dims=32).eval()
    load_weights(other, path, key_map=lambda key: torchvision_key(key, deep=False))
    images = torch.rand(2, 3, 70, 90)
    assert torch.equal(other(images), network(images))


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "resnext101_32x4d", "resnext101_32x8d"])
def test_a_file_tells_its_architecture(backbone: str) -> None:
    with torch.device("meta"):
        state = DescriptorNetwork(backbone, dims=40).state_dict()
    assert recognise(state) == {"backbone": backbone, "dims": 40}
    deep = backbone != "resnet18"
    assert recognise({classy_key(key, deep): value for key, value in state.items()}) == {
        "backbone": backbone,
        "dims": 40,
    }


def test_a_file_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="no published architecture"):
        recognise({"backbone.layer1.0.conv1.weight": torch.zeros(1)})
