import cv2
import numpy as np
import pytest
import torch

from lightning_modules.syncseal.network import SyncNetwork
from lightning_modules.syncseal.torchscript import (
    ScriptedNetwork,
    decoded_corners,
    homography_coefficients,
    scripted,
    usable_quads,
)
from lightning_modules.weights import read_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
SIZE = 32
# The corners of the frame, on its own grid of SIZE pixels.
LAST = (SIZE - 1 - SIZE / 2) / (SIZE / 2)
IDENTITY = (-1.0, -1.0, LAST, -1.0, LAST, LAST, -1.0, LAST)
FLIP = (LAST, -1.0, -1.0, -1.0, -1.0, LAST, LAST, LAST)
CROSSED = (-1.0, -1.0, LAST, LAST, LAST, -1.0, -1.0, LAST)
DENTED = (-1.0, -1.0, LAST, -1.0, -0.5, -0.5, -1.0, LAST)
BAD = {
    "a point": (0.0,) * 8,
    "a line": (-1.0, -1.0, -0.5, -0.5, 0.0, 0.0, 0.5, 0.5),
    "crossed": CROSSED,
    "dented": DENTED,
    "no numbers": (float("nan"),) * 8,
    "infinite": (float("inf"), *IDENTITY[1:]),
    "far away": (1e9, *IDENTITY[1:]),
}


def tiny(**changes):
    torch.manual_seed(0)
    options = {
        "embedder_channels": (8, 16), "embedder_blocks": 1, "detector_depths": (1, 1), "detector_dims": (8, 12),
        "size": SIZE,
    }  # fmt: skip
    network = SyncNetwork(**options | changes).eval()
    torch.nn.init.normal_(network.embedder.unet.outc.weight, std=2.0)
    return network


@pytest.fixture(scope="module")
def network():
    return tiny()


@pytest.fixture(scope="module")
def path(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "syncmodel.jit.pt"
    torch.jit.save(scripted(network), path)
    return path


@pytest.fixture(scope="module")
def script(path):
    return torch.jit.load(path)


@pytest.mark.parametrize("size_hw", [(64, 48), (33, 1000), (1000, 33), (32, 32), (75, 90)])
@pytest.mark.parametrize("batch", [1, 5])
def test_a_file_answers_as_the_network_does(network, script, size_hw, batch):
    images = torch.rand(batch, 3, *size_hw)
    with torch.no_grad():
        wanted, found = network.embed(images), script.embed(images)
        assert set(found) == {"preds_w", "imgs_w"}
        torch.testing.assert_close(found["preds_w"], wanted.pattern, rtol=0, atol=1e-5)
        difference = (found["imgs_w"] - wanted.marked).abs() * 255
        assert difference.max() < 1.01
        assert (difference > 0.5).float().mean() < 1e-3
        detected = script.detect(images)
        torch.testing.assert_close(detected["preds"], network.detect(images), rtol=0, atol=1e-5)
    assert torch.equal(detected["preds_pts"], detected["preds"][:, 1:])
    assert detected["preds_pts"].shape == (batch, 8)
    straight = script.unwarp(images, torch.tensor([IDENTITY] * batch), size_hw)
    torch.testing.assert_close(straight, images, rtol=0, atol=1e-3)


def test_its_arguments_are_the_published_ones(script):
    images = torch.rand(1, 3, 40, 40)
    embedded = script.embed(images, mode="bilinear", align_corners=False, antialias=False)
    assert (embedded["imgs_w"] - script.embed(images, "bilinear", False, True)["imgs_w"]).abs().max() > 0
    assert script.detect(images, "bilinear", True, False)["preds"].shape == (1, 9)
    with pytest.raises(torch.jit.Error, match="align_corners option can only be set"):
        script.embed(images, "nearest")
    embedded, detected, rest = script(torch.rand(2, 3, 40, 50))
    assert embedded["imgs_w"].shape == (2, 3, 40, 50)
    assert rest["imgs_unwarped"].shape == (2, 3, 256, 256)
    assert torch.equal(detected["preds"], script.detect(embedded["imgs_w"])["preds"])
    assert script.unwarp(images, torch.tensor([IDENTITY])).shape == (1, 3, 256, 256)
    for points in (torch.zeros(2, 8), torch.zeros(1, 4, 2), torch.zeros(1, 9)):
        with pytest.raises(torch.jit.Error, match="pts_norm must be"):
            script.unwarp(images, points)


def test_unwarping_moves_each_corner_to_its_place(script):
    """A bright spot at a corner of what is seen comes to where the corners say that it was."""
    size = 96
    on_grid = np.array([[6, 4], [25, 7], [28, 24], [3, 27]])
    points = torch.tensor((on_grid - SIZE / 2) / (SIZE / 2)).float().reshape(1, 8)
    wanted = np.trunc(on_grid * (size - 1) / (SIZE - 1))
    corners = [(0, 0), (size - 1, 0), (size - 1, size - 1), (0, size - 1)]
    for (x, y), place in zip(corners, wanted, strict=True):
        image = torch.zeros(1, 3, size, size)
        image[:, :, max(0, y - 7) : y + 8, max(0, x - 7) : x + 8] = 1
        straight = script.unwarp(image, points, (size, size))[0, 0].numpy()
        rows, columns = np.nonzero(straight > 0.5)
        nearest = np.hypot(columns - place[0], rows - place[1]).min()
        assert nearest <= 1.5
    assert script.unwarp(torch.ones(1, 3, size, size), points, (size, size))[0, 0, 0, 0] == 0, "black outside"


@pytest.mark.parametrize("name", BAD)
def test_bad_corners_leave_their_picture_and_no_other(script, name):
    images = torch.rand(3, 3, 40, 52)
    points = torch.tensor([FLIP, BAD[name], FLIP])
    found = script.unwarp(images, points, (40, 52))
    assert torch.equal(found[1], images[1])
    torch.testing.assert_close(found[::2], images[::2].flip(-1), rtol=0, atol=1.0)
    assert torch.equal(found[:1], script.unwarp(images[:1], points[:1], (40, 52)))
    assert torch.isfinite(found).all()
    assert (found[0] - images[0]).abs().mean() > 0.1, "a flip is no bad corner"


def test_the_far_corner_is_a_whole_pixel_at_every_size():
    points = torch.tensor([IDENTITY])
    for side in range(33, 1200, 7):
        corners = decoded_corners(points, side, side + 1, SIZE).trunc()
        assert corners[0].tolist() == [[0, 0], [side, 0], [side, side - 1], [0, side - 1]]


def test_usable_corners_turn_one_way():
    frame = torch.tensor([[[0.0, 0], [51, 0], [51, 39], [0, 39]]])
    turned = torch.stack([frame[0].roll(k, 0) for k in range(4)] + [frame[0].flip(0)])
    assert usable_quads(turned, 40, 52).all()
    assert not usable_quads(frame[:, [0, 2, 1, 3]], 40, 52).any()


def test_homographies_are_opencvs():
    rng = np.random.default_rng(0)
    frame = np.array([[0, 0], [99, 0], [99, 79], [0, 79]], np.float32)
    quads = (frame + rng.uniform(-25, 25, (20, 4, 2))).astype(np.float32)
    found = homography_coefficients(torch.from_numpy(quads), torch.from_numpy(frame).expand(20, 4, 2))
    for quad, coefficients in zip(quads, found, strict=True):
        wanted = cv2.getPerspectiveTransform(quad, frame)
        np.testing.assert_allclose(coefficients.numpy(), wanted.flatten()[:8], rtol=1e-6, atol=1e-9)


def test_its_keys_are_those_of_checkpoints(network, path):
    tensors, _ = read_weights(path)
    assert set(tensors) == set(network.state_dict())
    assert all(torch.equal(tensors[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("changes", [{"attenuation": "none"}, {"embedder": "relu_batch", "scaling_i": 0.9}])
def test_other_networks_have_the_interface_too(changes):
    network, images = tiny(**changes), torch.rand(2, 3, 50, 41)
    with torch.no_grad():
        found, wanted = scripted(network).embed(images), network.embed(images)
    torch.testing.assert_close(found["preds_w"], wanted.pattern, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["imgs_w"], wanted.marked, rtol=0, atol=1.01 / 255)


def test_the_network_stays_as_it_was(network):
    training = tiny().train()
    scripted(training)
    assert training.training
    assert training.embedder.unet.outc.weight.requires_grad


def test_a_file_can_be_run_as_it_is(network, path, tmp_path):
    opaque, images = ScriptedNetwork(path, size=SIZE), torch.rand(2, 3, 50, 40)
    with torch.no_grad():
        torch.testing.assert_close(opaque.detect(images), network.detect(images), rtol=0, atol=1e-5)
        embedded = opaque.embed(images)
    assert embedded.marked.shape == (2, 3, 50, 40)
    assert torch.equal(opaque(images), opaque.detect(images))
    with pytest.raises(ValueError, match="leave `lowres_attenuation` off"):
        opaque.embed(images, lowres_attenuation=True)
    other = tmp_path / "other.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.rand(1)), other)
    with pytest.raises(ValueError, match="has no embed and no detect: it does not offer the published interface"):
        ScriptedNetwork(other)
    other.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no whole TorchScript file"):
        ScriptedNetwork(other)
    with pytest.raises(FileNotFoundError, match="no TorchScript file at"):
        ScriptedNetwork(tmp_path / "absent.pt")
