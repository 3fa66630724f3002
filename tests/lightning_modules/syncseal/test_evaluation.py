"""Set-ups: labels, errors of answers that are known, shared moves equal to single ones, batches equal to one by one."""

import pytest
import torch

from datamodules.images.procedural import draw_scene
from datamodules.images.randomness import sample_rng
from lightning_modules.functional.geometry import corner_error_px, frame_corners_px
from lightning_modules.syncseal import evaluation
from lightning_modules.syncseal.augmentation.setups import named_attack
from lightning_modules.syncseal.baselines import Identity, Sift
from lightning_modules.syncseal.evaluation import (
    LADDERS,
    NetworkSynchroniser,
    changed_by,
    evaluate_setups,
    moved_by,
    setup_labels,
)
from lightning_modules.syncseal.network import SyncNetwork
from lightning_modules.syncseal.refinement import detect_quads


def scenes(count=2, size=(48, 48)):
    drawn = [torch.from_numpy(draw_scene(sample_rng(5, 0, number), size)) for number in range(count)]
    return torch.stack(drawn).permute(0, 3, 1, 2).float() / 255


@pytest.fixture
def few(monkeypatch):
    """A ladder of a few published set-ups, which takes no time."""
    ladder = (
        ("identity_0", ("Identity_0", "JPEG_20")),
        ("rotate_20", ("Identity_0", "Brightness_0.5", "GaussianBlur_9")),
        ("crop_0.5", ("Identity_0", "JPEG_40")),
    )
    monkeypatch.setitem(LADDERS, "published", ladder)
    return [(move, change) for move, changes in ladder for change in changes]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = SyncNetwork(
        embedder_channels=(8, 16),
        embedder_blocks=1,
        detector_depths=(1, 1, 1, 1),
        detector_dims=(8, 8, 16, 16),
        size=32,
    ).eval()
    return NetworkSynchroniser(made, lambda images: detect_quads(made.detect, images, made.size))


def test_ladders_have_all_their_set_ups_once():
    published = setup_labels("published")
    assert len(published) == len(set(published)) == 441
    assert published[440] == "perspective_0.5|0.5|(JPEG_Brightness)_(80_2.0)|(80_2.0)"
    assert len(set(setup_labels("wibe"))) == len(setup_labels("wibe")) == 24


def test_identity_errs_by_how_far_corners_moved(few):
    images, index = scenes(), torch.tensor([4, 9])
    outputs = evaluate_setups(Identity(), images, index, "published")
    torch.testing.assert_close(outputs["corner_error_px"], outputs["identity_error_px"])
    corners, centre = frame_corners_px(48, 48), 23.5
    turn = torch.deg2rad(torch.tensor(20.0, dtype=torch.float64))
    matrix = torch.stack([torch.stack([turn.cos(), -turn.sin()]), torch.stack([turn.sin(), turn.cos()])])
    wanted = corner_error_px((corners - centre) @ matrix.T + centre, corners)
    assert outputs["corner_error_px"][:, :2].abs().max() == 0
    torch.testing.assert_close(outputs["corner_error_px"][:, 2:5], wanted.expand(2, 3), rtol=1e-5, atol=1e-5)
    assert outputs["psnr"].isinf().all()


def test_shared_moves_and_batches_change_no_answer(few, network):
    images, index = scenes(), torch.tensor([4, 9])
    together = evaluate_setups(network, images, index, "published")
    for place in (0, 1):
        alone = evaluate_setups(network, images[place : place + 1], index[place : place + 1], "published")
        for name in ("corner_error_px", "identity_error_px"):
            torch.testing.assert_close(alone[name][0], together[name][place], rtol=1e-4, atol=1e-3)


def test_lightnings_inference_mode_changes_nothing(few, network):
    images, index = scenes(1), torch.tensor([4])
    outside = evaluate_setups(network, images, index, "published")["corner_error_px"]
    with torch.inference_mode():
        inside = evaluate_setups(network, images.clone(), index, "published")["corner_error_px"]
    torch.testing.assert_close(inside, outside)


def test_every_set_up_is_what_the_named_attack_makes(few, network):
    images, index = scenes(1), torch.tensor([4])
    outputs = evaluate_setups(network, images, index, "published")
    marked = network.embed(images)
    for column, (move, change) in enumerate(few):
        number = [name for name, _ in LADDERS["published"]].index(move)
        draws = evaluation.sample_draws(index, evaluation.MOVE_STREAM + 10 * number)
        attacked = named_attack(marked, f"{move}+{change}", draws)
        error = corner_error_px(network.find(attacked.images, images), attacked.quads_px)
        torch.testing.assert_close(
            outputs["corner_error_px"][0, column].float(), error[0].float(), rtol=1e-4, atol=1e-3
        )


def test_matching_finds_what_identity_does_not(few):
    images, index = scenes(1, (128, 160)), torch.tensor([0])
    outputs = evaluate_setups(Sift(), images, index, "published")
    assert float(outputs["corner_error_px"][0, 2]) < 2
    assert float(outputs["identity_error_px"][0, 2]) > 20
    # The published arithmetic takes y by the width: wrong on pictures that are not square.
    assert float(evaluate_setups(Sift(compat=True), images, index, "published")["corner_error_px"][0, 0]) > 5


def test_wibe_resizes_keep_corners_and_crops_keep_shares():
    images = scenes(1, (40, 60))
    draws = evaluation.sample_draws(torch.tensor([0]), 1)
    assert changed_by("Resize_0.5", images, draws).shape[-2:] == (20, 30)
    assert changed_by("ResizeX_0.5", images, draws).shape[-2:] == (40, 30)
    noisy = changed_by("Noise_0.05", torch.full((1, 3, 64, 64), 0.5), draws)
    assert float(noisy.std()) == pytest.approx(0.05, rel=0.05)
    _, quads = moved_by("center_crop_0.5", images, draws)
    width, height = quads[0, 2] - quads[0, 0]
    assert float(width * height) == pytest.approx(0.5 * 59 * 39)
    outputs = evaluate_setups(Identity(), images, torch.tensor([0]), "wibe")
    assert outputs["corner_error_px"].shape == (1, 24)
    assert outputs["corner_error_px"][0, :15].max() == 0


def test_a_network_answers_in_the_frame_of_the_original():
    class Exact:
        """Says that every picture shows the left half."""

        size = 32

        def detect(self, images):
            corners = torch.tensor([[0.0, 0.0], [15.5, 0.0], [15.5, 31.0], [0.0, 31.0]])
            numbers = ((corners - 16) / 16).flatten()
            return torch.cat([torch.zeros(1), numbers]).repeat(len(images), 1)

    exact = Exact()
    synchroniser = NetworkSynchroniser(exact, lambda images: detect_quads(exact.detect, images, 32))
    found = synchroniser.find(torch.rand(1, 3, 20, 90), torch.rand(1, 3, 41, 81))
    torch.testing.assert_close(found[0], torch.tensor([[0.0, 0.0], [40.0, 0.0], [40.0, 40.0], [0.0, 40.0]]))
