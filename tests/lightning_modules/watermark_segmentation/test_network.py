import threading
import time
import warnings

import pytest
import torch

from lightning_modules.functional.normalization import IMAGENET_MEAN, IMAGENET_STD
from lightning_modules.watermark_segmentation import network as network_module
from lightning_modules.watermark_segmentation.network import WatermarkNetwork

SMALL = {"encoder": "resnet18", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return WatermarkNetwork(**SMALL).eval()


def random_images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(shape[-1]))


def test_normalisation_is_inside(small):
    images = random_images(2, 3, 64, 96)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        torch.testing.assert_close(small(images), small.model((images - mean) / std))


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (33, 64), (64, 95)])
def test_any_size_is_padded_by_repeating_the_border(small, size):
    images = random_images(1, 3, *size)
    height, width = (-(-side // 32) * 32 for side in size)
    padded = torch.nn.functional.pad(images, (0, width - size[1], 0, height - size[0]), mode="replicate")
    with torch.inference_mode():
        logits, whole = small(images), small(padded)
    assert logits.shape == (1, 1, *size)
    torch.testing.assert_close(logits, whole[..., : size[0], : size[1]])


def test_training_crops_as_evaluation_does(small):
    images = random_images(2, 3, 33, 50)
    frozen = WatermarkNetwork(**SMALL)
    frozen.load_state_dict(small.state_dict())
    frozen.train()
    frozen.model.eval()
    torch.testing.assert_close(frozen(images), small(images))


def test_the_state_dict_has_the_released_layout(small):
    roots = {key.split(".")[0] for key in small.state_dict()}
    assert roots == {"mean", "std", "model"}
    assert small.mean.shape == small.std.shape == (1, 3, 1, 1)


def test_every_trainable_parameter_gets_a_gradient_from_a_shallow_encoder():
    net = WatermarkNetwork(**SMALL)
    net(random_images(2, 3, 64, 64)).sum().backward()
    missed = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert missed == []
    assert net.training
    assert sum(p.requires_grad for p in net.parameters()) > 40


def test_heads_are_in_the_unit_range_and_leave_the_mask_first():
    net = WatermarkNetwork(**SMALL, alpha_head=True, color_head=True).eval()
    images = random_images(2, 3, 40, 40)
    with torch.inference_mode():
        heads, logits = net.forward_heads(images), net(images)
    assert {name: value.shape[1] for name, value in heads.items()} == {"mask_logits": 1, "alpha": 1, "color": 3}
    assert torch.equal(heads["mask_logits"], logits)
    for name in ("alpha", "color"):
        assert 0 <= heads[name].min() <= heads[name].max() <= 1


def test_only_the_heads_that_are_on_are_returned(small):
    assert list(small.forward_heads(random_images(1, 3, 32, 32))) == ["mask_logits"]
    net = WatermarkNetwork(**SMALL, color_head=True)
    assert list(net.forward_heads(random_images(2, 3, 32, 32))) == ["mask_logits", "color"]


@pytest.mark.parametrize("how", ["trace", "script", "export"])
def test_graphs_take_other_sizes_than_they_were_made_with(small, how):
    example = random_images(2, 3, 77, 101)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "trace":
            graph = torch.jit.trace(small, example)
        elif how == "script":
            graph = torch.jit.script(small)
        else:
            batch = torch.export.Dim("batch", min=1, max=64)
            sides = {2: torch.export.Dim("height", min=33, max=4096), 3: torch.export.Dim("width", min=33, max=4096)}
            program = torch.export.export(small, (example,), dynamic_shapes=({0: batch} | sides,))
            graph = program.module()
    with torch.inference_mode():
        for size in ((1, 3, 64, 64), (3, 3, 35, 130), (1, 3, 96, 33)):
            images = random_images(*size)
            torch.testing.assert_close(graph(images), small(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"architecture": "Unett"}, "'Unett' is not one of smp's: .*Unet, "),
        ({"encoder": "resnet81"}, "'resnet81' is not known to smp; close names: .*resnet18"),
        ({"encoder": "tu-convnext_tinny"}, "'tu-convnext_tinny' is not a timm model; close names: .*tu-convnext_tiny"),
    ],
)
def test_unknown_names_are_answered_with_close_ones(options, says):
    with pytest.raises(ValueError, match=says) as error:
        WatermarkNetwork(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoder", ["resnet18", "tu-mobilenetv3_small_050"])
def test_unreachable_pretrained_weights_warn_once_and_quickly(monkeypatch, tmp_path, encoder):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    # Port 9 discards: nothing of the network is needed to be refused.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.warns(UserWarning, match=rf"no `imagenet` weights for the encoder '{encoder}'.*random") as caught:
        WatermarkNetwork(encoder=encoder, encoder_weights="imagenet")
    assert len(caught) == 1
    # Twice the build itself, which takes seconds on a busy machine, and a refused probe; no retries of the client.
    assert time.monotonic() - began < 20


def test_a_hub_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(network_module, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(network_module.urllib.request, "urlopen", lambda *_, **__: threading.Event().wait())
    began = time.monotonic()
    assert not network_module._hub_answers()
    assert time.monotonic() - began < 5


def test_offline_mode_is_not_probed_and_is_put_back(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(network_module.urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked the hub"))
    assert not network_module._hub_answers()
    with network_module._hub_offline():
        pass
    assert network_module.hub.HF_HUB_OFFLINE is True
