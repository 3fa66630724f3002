"""The perceptual hash is PDQ's: by its formulas, by hashes that PDQ's own program gave, by what it withstands."""

import io
import math

import cv2
import numpy as np
import pytest
import scipy.fft
import timm
import torch
from lightning.pytorch import LightningDataModule, Trainer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.sscd.baselines import (
    PerceptualHashModule,
    as_descriptor,
    as_hex,
    hash_bits,
    luminance_grid,
    quality_percent,
    smoothing,
)
from lightning_modules.sscd.network import DescriptorNetwork


def blocks(size_hw: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """A picture of coloured rectangles, the same on every machine."""
    rng = np.random.default_rng(seed)
    height, width = size_hw
    picture = np.full((height, width, 3), 128, np.uint8)
    for _ in range(40):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        tall, wide = int(rng.integers(1, height)), int(rng.integers(1, width))
        picture[top : top + tall // 3, left : left + wide // 3] = rng.integers(0, 256, 3)
    return picture


def as_image(picture: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)


def bits_of(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return hash_bits(luminance_grid(as_image(picture)[None].float() / 255))[0].numpy()


def differing(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    return int((bits_of(one) != bits_of(other)).sum())


# Of `blocks` at these sizes, by PDQ's own program (pdqhash 0.2.8, which bundles it).
RECORDED = {
    (96, 64): "fa35af85f078550ed15a9fcbea7226232275aa6722da3732551e96e599824c91",
    (301, 200): "f2bd2f85e078550e545a974fea70b62322b5da6722da3732551eb4e589866c91",
    (128, 640): "f23d8f83707a5506527a8bcfea74b6232275db6720da9732451eb6e589826c91",
    (1000, 777): "783d8f857078558e545a93cfea70b6232275db6722cab732551e96e589c26c91",
    (40, 30): "f2bd0f8be1781506c45a0fcbc272262166b5ca6e6cda3572d51c97e599864db1",
}


@pytest.mark.parametrize(("size_hw", "recorded"), RECORDED.items(), ids=str)
def test_hashes_are_those_of_pdq(size_hw: tuple[int, int], recorded: str) -> None:
    assert as_hex(torch.from_numpy(bits_of(blocks(size_hw)))) == recorded


@pytest.mark.parametrize("length", [1, 5, 64, 100, 128, 129, 777])
def test_smoothing_is_two_box_filters_and_a_sample_a_cell(length: int) -> None:
    line = np.random.default_rng(length).random(length)
    window = math.ceil(length / 128)
    before, after = (window - 1) // 2, window // 2
    filtered = line
    for _ in range(2):
        filtered = np.array([filtered[max(0, i - before) : i + after + 1].mean() for i in range(length)])
    wanted = filtered[[int((cell + 0.5) * length / 64) for cell in range(64)]]
    np.testing.assert_allclose(smoothing(length).numpy() @ line, wanted, rtol=0, atol=1e-12)


def test_bits_are_the_low_frequencies_above_their_median() -> None:
    grid = np.random.default_rng(1).random((3, 64, 64))
    coefficients = scipy.fft.dctn(grid, axes=(1, 2))[:, 1:17, 1:17].reshape(3, 256)
    wanted = coefficients > np.sort(coefficients, axis=1)[:, 127:128]
    np.testing.assert_array_equal(hash_bits(torch.from_numpy(grid)).numpy(), wanted)
    assert wanted.sum(axis=1).tolist() == [128] * 3


def test_the_inner_product_counts_the_bits_that_differ() -> None:
    bits = torch.rand(5, 256, generator=torch.Generator().manual_seed(0)) > 0.4
    rows = as_descriptor(bits)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    apart = (bits[:, None] != bits[None]).sum(dim=2)
    torch.testing.assert_close(rows @ rows.T, 1 - apart / 128)


def as_jpeg(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    packed = io.BytesIO()
    Image.fromarray(picture).save(packed, "JPEG", quality=50)
    return np.array(Image.open(packed))


def scaled(picture: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(picture, size_hw[::-1], interpolation=cv2.INTER_AREA), np.uint8)


@pytest.mark.parametrize("size_hw", [(240, 320), (480, 640)])
def test_light_edits_change_few_bits_and_another_picture_half(size_hw: tuple[int, int]) -> None:
    pictures = [cv2.GaussianBlur(blocks(size_hw, seed), (0, 0), 1.5) for seed in range(12)]
    for picture in pictures:
        # PDQ takes up to 31 bits for the same picture.
        assert differing(picture, as_jpeg(picture)) <= 8
        assert differing(picture, (picture * 0.6).astype(np.uint8)) <= 8
        assert differing(picture, scaled(picture, (size_hw[0] * 3 // 5, size_hw[1] * 3 // 5))) <= 31
        assert differing(picture, scaled(picture, (256, 256))) <= 31
    others = [differing(one, other) for i, one in enumerate(pictures) for other in pictures[:i]]
    assert 118 < np.mean(others) < 138
    assert min(others) > 90


def test_quality_is_the_sum_of_steps_of_grey() -> None:
    assert quality_percent(torch.full((1, 64, 64), 0.5)).tolist() == [0]
    # One edge of 64 pixels and 28.8 percent: 64 times 28, over 90.
    edge = torch.zeros(1, 64, 64)
    edge[:, :, 32:] = 0.288
    assert quality_percent(torch.cat([edge, edge.mT])).tolist() == [19, 19]
    assert quality_percent(torch.from_numpy(np.indices((64, 64)).sum(0) % 2)[None].double()).tolist() == [100]


def batch_of(pictures: list[NDArray[np.uint8]], stacked: bool = False) -> dict[str, object]:
    images = [as_image(picture) for picture in pictures]
    return {
        "image": torch.stack(images) if stacked else images,
        "index": torch.arange(len(images)),
        "path": [f"{number}.png" for number in range(len(images))],
    }


def test_stacked_or_of_many_sizes_bytes_or_floats_the_descriptors_are_the_same() -> None:
    module, pictures = PerceptualHashModule(), [blocks((96, 64), seed) for seed in range(3)]
    stacked, listed = batch_of(pictures, stacked=True), batch_of([*pictures, blocks((50, 70))])
    found = module.test_step(stacked, 0)
    assert torch.equal(found["index"], stacked["index"])
    predicted = module.predict_step(listed, 0)
    assert torch.equal(predicted["descriptors"][:3], found["descriptor"])
    assert found["descriptor"].dtype == torch.float32
    assert torch.equal(module(torch.stack(listed["image"][:3]).float() / 255), found["descriptor"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.validation_step(stacked, 0)["descriptor"], found["descriptor"])
    assert predicted["records"][0] == {"path": "0.png", "index": 0, "hash": RECORDED[96, 64], "quality": 100}
    assert len(predicted["records"]) == len(predicted["descriptors"]) == 4
    assert predicted["images"] == []


def test_an_empty_batch_gives_no_descriptors() -> None:
    predicted = PerceptualHashModule().predict_step(batch_of([]), 0)
    assert predicted["records"] == []
    assert predicted["descriptors"].shape == (0, 256)


class TwoPictures(LightningDataModule):
    """Just enough for the trainer."""

    def train_dataloader(self) -> DataLoader[dict[str, object]]:
        return DataLoader([batch_of([blocks((40, 40)), blocks((40, 40), 1)], stacked=True)], batch_size=None)

    val_dataloader = test_dataloader = train_dataloader


def test_it_can_be_tested_but_not_fitted() -> None:
    module = PerceptualHashModule()
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(**options).test(module, TwoPictures(), verbose=False)
    with pytest.raises(ValueError, match="nothing to train"):
        module.configure_optimizers()
    with pytest.raises(ValueError, match="nothing to train: use `test` or `predict`"):
        Trainer(**options, max_epochs=1).fit(module, TwoPictures())


# --- ImageNet features: the network itself, without a projection ----------------------------------------------------


@pytest.mark.parametrize(("backbone", "channels"), [("resnet18", 512), ("convnext_atto", 320)])
def test_without_projection_descriptors_are_the_pooled_features(backbone: str, channels: int) -> None:
    network = DescriptorNetwork(backbone, dims=None, pool_exponent=1.0).eval()
    assert network.dims == channels
    assert not [key for key in network.state_dict() if ".fc." in key]
    pooled = []
    network.backbone.avgpool.register_forward_hook(lambda _module, _inputs, output: pooled.append(output))
    described = network(torch.rand(2, 3, 64, 96))
    assert described.shape == (2, channels)
    torch.testing.assert_close(described, pooled[0] / pooled[0].norm(dim=1, keepdim=True))


def test_with_a_projection_there_are_as_many_numbers_as_asked() -> None:
    assert DescriptorNetwork("resnet18", dims=20).dims == 20
    assert DescriptorNetwork("convnext_atto", dims=20).dims == 20


def test_pretrained_weights_keep_the_published_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    create, made = timm.create_model, []

    def create_filled(name: str, pretrained: bool, **options: object) -> torch.nn.Module:
        assert pretrained
        made.append(create(name, **options))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", create_filled)
    network = DescriptorNetwork("resnet18", dims=8, pretrained=True).eval()
    assert list(network.state_dict()) == list(DescriptorNetwork("resnet18", dims=8).state_dict())
    image = torch.rand(1, 3, 64, 64)
    pooled = []
    network.backbone.avgpool.register_forward_hook(lambda _module, inputs, _output: pooled.append(inputs[0]))
    network.describe(image)
    torch.testing.assert_close(pooled[0], made[-1].eval().forward_features(image))


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "resnext101_32x4d", "resnext101_32x8d"])
def test_trunks_of_both_libraries_have_the_same_keys(backbone: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(backbone, num_classes=0).state_dict()
        ours = DescriptorNetwork(backbone, dims=None).backbone.state_dict()
    assert {key: value.shape for key, value in theirs.items()} == {key: value.shape for key, value in ours.items()}


def test_pretrained_weights_that_cannot_be_had_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise FileNotFoundError("the hub does not answer")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(ValueError, match=r"no pretrained weights for the backbone 'resnet18'.*`pretrained: false`"):
        DescriptorNetwork("resnet18", dims=None, pretrained=True)


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_transformers_take_images_of_any_size(backbone: str) -> None:
    network = DescriptorNetwork(backbone, dims=8).eval()
    described = network(torch.rand(1, 3, 97, 130))
    torch.testing.assert_close(described.norm(dim=1), torch.ones(1))
