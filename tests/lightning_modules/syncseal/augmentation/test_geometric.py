import math
from collections import Counter
from random import Random

import pytest
import scipy.stats
import torch

from lightning_modules.functional.geometry import frame_corners_px, is_usable_quad, normalise_corners
from lightning_modules.functional.sample_draws import SampleDraws
from lightning_modules.syncseal.augmentation.geometric import MOVES, draw_geometry
from lightning_modules.syncseal.augmentation.replay import RecordedDraws, replay_geometry
from lightning_modules.syncseal.augmentation.settings import GEOMETRIC_NAMES, GeometricSettings

COUNT = 20_000
PUBLISHED = GeometricSettings(keep_convex=False)
# Spec 9 and the manifest of the goldens: 20,000 draws of the reference.
SHARES = {
    "identity+identity": 0.2, "crop+identity": 0.2,
    **{f"{first}+{then}": 0.1 for first in ("identity", "crop") for then in ("hflip", "rotate", "perspective")},
}  # fmt: skip
TARGET_STD = [0.825, 0.543, 0.825, 0.540, 0.820, 0.543, 0.825, 0.538]
TARGET_MEAN = [-0.402, -0.718, 0.391, -0.720, 0.390, 0.711, -0.398, 0.712]


def draws(count=COUNT, seed=0):
    return SampleDraws.of_samples(seed, 0, torch.arange(count))


def test_frequencies_and_targets_are_the_published_ones():
    quads, names = draw_geometry(COUNT, 256, 256, PUBLISHED, draws())
    counts = Counter(names)
    assert set(counts) == set(SHARES)
    for name, share in SHARES.items():
        assert abs(counts[name] / COUNT - share) < 4 * math.sqrt(share * (1 - share) / COUNT), name
    targets = normalise_corners(quads)
    identity = normalise_corners(frame_corners_px(256, 256))
    error = (targets - identity).abs().mean(1)
    assert abs(float(error.mean()) - 0.5188) < 4 * float(error.std()) * math.sqrt(2 / COUNT)
    allowed = 4 * targets.std(0) * math.sqrt(2 / COUNT)
    assert ((targets.mean(0) - torch.tensor(TARGET_MEAN)).abs() < allowed + 5e-4).all()
    assert ((targets.std(0) - torch.tensor(TARGET_STD)).abs() < allowed + 5e-4).all()


def test_batched_draws_have_the_distribution_of_the_published_procedure():
    """Each coordinate of crops, rotations and perspectives, against draws made one by one."""
    for move in ("crop", "rotate", "perspective"):
        settings = GeometricSettings({move: 1}, stages=1, keep_convex=False)
        ours, _ = draw_geometry(1500, 64, 64, settings, draws(1500))
        rng = Random(0)
        theirs = torch.stack([replay_geometry([move], 64, 64, settings, rng) for _ in range(1500)])
        for corner in range(4):
            for axis in range(2):
                test = scipy.stats.ks_2samp(ours[:, corner, axis].numpy(), theirs[:, corner, axis].numpy())
                assert test.pvalue > 1e-4, (move, corner, axis)


def test_the_paper_s_variant_crops_again():
    _, names = draw_geometry(4000, 64, 64, GeometricSettings(recrop_in_later_stages=True), draws(4000))
    counts = Counter(name.split("+")[1] for name in names)
    assert abs(counts["crop"] / 4000 - 1 / 6) < 4 * math.sqrt(5 / 36 / 4000)
    assert abs(counts["identity"] / 4000 - 2 / 6) < 4 * math.sqrt(8 / 36 / 4000)


def test_one_stage_follows_the_weights():
    _, names = draw_geometry(4000, 64, 64, GeometricSettings({"crop": 1, "vflip": 3}, stages=1), draws(4000))
    assert abs(names.count("crop") / 4000 - 0.25) < 4 * math.sqrt(0.1875 / 4000)


def test_default_perspectives_stay_convex():
    quads, names = draw_geometry(4000, 64, 64, GeometricSettings(), draws(4000))
    folded, _ = draw_geometry(4000, 64, 64, PUBLISHED, draws(4000))
    assert is_usable_quad(quads).all()
    bad = ~is_usable_quad(folded)
    assert bad.any()
    assert torch.equal(quads[~bad], folded[~bad])
    assert {names[row].split("+")[1] for row in bad.nonzero()[:, 0].tolist()} == {"perspective"}


@pytest.mark.parametrize("stages", [1, 3])
def test_a_sample_s_quad_does_not_depend_on_its_batch(stages):
    settings = GeometricSettings(dict.fromkeys(GEOMETRIC_NAMES, 1.0), stages=stages)
    index = torch.arange(60)
    quads, names = draw_geometry(60, 48, 64, settings, SampleDraws.of_samples(1, 2, index))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled, other_names = draw_geometry(60, 48, 64, settings, SampleDraws.of_samples(1, 2, order))
    assert torch.equal(shuffled, quads[order])
    assert other_names == [names[row] for row in order.tolist()]
    for row in (0, 17):
        alone, name = draw_geometry(1, 48, 64, settings, SampleDraws.of_samples(1, 2, index[row : row + 1]))
        assert torch.equal(alone[0], quads[row])
        assert name == [names[row]]


@pytest.mark.parametrize("move", sorted(set(GEOMETRIC_NAMES) - {"identity"}))
def test_every_move_moves_and_keeps_quads_usable(move):
    quads, names = draw_geometry(300, 48, 64, GeometricSettings({move: 1}, stages=1), draws(300))
    assert set(names) == {move}
    assert is_usable_quad(quads).all()
    moved = (quads - frame_corners_px(48, 64)).abs().amax((1, 2))
    assert (moved > 1e-3).all()
    assert set(MOVES) == set(GEOMETRIC_NAMES)


def test_inner_rotations_show_nothing_outside_and_padding_shows_all():
    settings = {name: GeometricSettings({name: 1}, stages=1) for name in ("rotate_inner", "pad")}
    inner, _ = draw_geometry(500, 48, 64, settings["rotate_inner"], draws(500))
    padded, _ = draw_geometry(500, 48, 64, settings["pad"], draws(500))
    last = torch.tensor([63.0, 47.0], dtype=torch.float64)
    assert ((inner >= -1e-6) & (inner <= last + 1e-6)).all()
    assert (padded[:, 0] <= 0).all()
    assert (padded[:, 2] >= last).all()


def test_records_that_do_not_fit_are_named():
    settings = GeometricSettings()
    with pytest.raises(ValueError, match="choice"):
        replay_geometry(["rotate"], 64, 64, settings, RecordedDraws([["uniform", -45, 45, 3.0]]))
    with pytest.raises(ValueError, match="uniform"):
        replay_geometry(["perspective"], 64, 64, settings, RecordedDraws([["uniform", 0, 1, 0.5]]))
    with pytest.raises(ValueError, match="ended"):
        replay_geometry(["crop"], 64, 64, settings, RecordedDraws([]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"shear": 1}}, "geometric.weights has shear"),
        ({"weights": {"crop": 1}}, "without crop"),
        ({"crop_area": (0.5, 0.1)}, "geometric.crop_area must be two numbers in order"),
        ({"stages": 0}, "geometric.stages must be 1 or more, got 0"),
        ({"fills": {"white": 1}}, "geometric.fills has white"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        GeometricSettings(**change)
