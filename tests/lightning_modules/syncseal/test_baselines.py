"""Baselines as modules: they evaluate without weights, refuse to be trained, and read a watermark's grid."""

import numpy as np
import pytest
import torch

from lightning_modules.syncseal.baselines import SyncBaselineModule, WamGrid, message_of_pixels, truncated, wam_messages


class PaintedMessages(torch.nn.Module):
    """Stands for the watermark: a message is a level of blue, read back from it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images

    @torch.jit.export
    def embed(self, images: torch.Tensor, messages: torch.Tensor) -> torch.Tensor:
        halves = messages[:, 0] * 2.0 + messages[:, 31]
        marked = images.clone()
        marked[:, 2] = (0.2 + 0.2 * halves)[:, None, None]
        return marked

    @torch.jit.export
    def detect(self, images: torch.Tensor) -> torch.Tensor:
        level = ((images[:, 2:] - 0.2) / 0.2).round()
        carries = ((images[:, 2:] - 0.2 - 0.2 * level).abs() < 0.02) & (level >= 0) & (level < 4)
        high, low = (level >= 2).float(), (level % 2 == 1).float()
        bits = torch.cat([high.repeat(1, 16, 1, 1), low.repeat(1, 16, 1, 1)], dim=1)
        return torch.cat([carries.float() * 20 - 10, bits * 2 - 1], dim=1)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    path = tmp_path_factory.mktemp("wam") / "painted.pt"
    torch.jit.script(PaintedMessages()).save(path)
    return str(path)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_the_grid_finds_a_crop_at_the_top_left(painted):
    grid = WamGrid(painted)
    images = torch.full((1, 3, 256, 256), 0.05)
    marked = grid.embed(images)
    assert torch.equal(grid.find(marked, images)[0], torch.tensor([[0, 0], [255, 0], [255, 255], [0, 255]]).double())
    crop = marked[:, :, :205, :205]
    attacked = torch.nn.functional.interpolate(crop, (256, 256), mode="nearest")
    corner = grid.find(attacked, images)[0, 2]
    assert torch.allclose(corner, torch.tensor([204.0, 204.0]).double(), atol=12)
    assert corner.max() < 220
    assert torch.equal(grid.find(images, images)[0, 2], torch.tensor([255.0, 255.0]).double())


def test_pixels_go_to_the_nearest_message():
    answer = torch.full((33, 1, 4), -1.0)
    answer[0] = torch.tensor([[5.0, 5.0, -5.0, 5.0]])
    answer[1:, 0, 1] = wam_messages()[2] * 2 - 1
    answer[1:7, 0, 1] *= -1  # six bits wrong are still taken
    answer[1:8, 0, 3] = 1.0  # seven are not
    assert message_of_pixels(answer).tolist() == [[0, 2, -1, -1]]


def test_levels_are_cut_off():
    image = torch.tensor([100 / 255, 100.9 / 255, 1.0]).reshape(3, 1, 1)
    assert truncated(image).tolist() == [[[100, 100, 255]]]


def test_modules_say_what_they_evaluate_and_refuse_to_train():
    module = SyncBaselineModule("identity", setups="wibe")
    assert len(module.setup_labels) == 24
    outputs = module.test_step({"image": torch.rand(1, 3, 32, 32), "index": torch.tensor([3])}, 0)
    assert outputs["setups"] == module.setup_labels
    assert np.isfinite(outputs["corner_error_px"].numpy()).all()
    with pytest.raises(ValueError, match="nothing to train"):
        module.configure_optimizers()
    with pytest.raises(FileNotFoundError, match=r"model\.wam must name the TorchScript file"):
        SyncBaselineModule("wam")
