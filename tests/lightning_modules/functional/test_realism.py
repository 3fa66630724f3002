"""The colour rule against ink of known strength; distances against SciPy; counts that miss nothing."""

import numpy as np
import pytest
import scipy.linalg
import torch

from lightning_modules.functional.realism import (
    changed_pixels,
    find_ink,
    frechet_distance,
    ink_color,
    masked_quantile,
    mean_change,
    paper_tone,
)

RED, BLUE, BLACK = (0.2, 1.5, 1.3), (1.4, 0.9, 0.2), (1.6, 1.6, 1.5)
PAPER = torch.tensor([0.95, 0.94, 0.9])[:, None, None]


def page(density, strength, seed=0):
    """A page with toner stripes and a disc of ink of some strength, and the disc."""
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    ink = ((rows - 24) ** 2 + (columns - 24) ** 2) < 15**2
    toner = (rows % 12 < 2).float() * 2.0
    generator = torch.Generator().manual_seed(seed)
    noise = 0.01 * torch.randn(3, 48, 48, generator=generator)
    total = torch.tensor(density)[:, None, None] * ink * strength + toner
    return (PAPER * torch.exp(-total) + noise).clamp(0, 1)[None], ink[None, None]


@pytest.mark.parametrize("density", [RED, BLUE], ids=["red", "blue"])
def test_colored_ink_is_found_at_half_its_strength_and_toner_is_not(density):
    flat, ink = page(density, 1.0)
    color = ink_color(flat, ink)
    assert not color.grey.item()
    found = find_ink(flat, ink, color)
    clear = (torch.arange(48) % 12 >= 2)[:, None].expand(48, 48)  # rows without toner
    assert (found == ink)[0, 0][clear].float().mean() > 0.999
    assert not found[0, 0][~clear & ~ink[0, 0]].any(), "toner is no ink"
    for strength, share in ((0.4, 0.0), (0.62, 1.0), (1.4, 1.0)):
        worn, _ = page(density, strength, seed=1)
        seen = find_ink(worn, ink, color)[0, 0][clear & ink[0, 0]].float().mean()
        assert seen.item() == pytest.approx(share, abs=0.02), strength


def test_black_ink_is_told_by_its_darkness():
    flat, ink = page(BLACK, 1.0)
    color = ink_color(flat, ink)
    assert color.grey.item()
    found = find_ink(flat, ink, color)
    assert found[ink].all()
    faint, _ = page(BLACK, 0.3)
    rows = (torch.arange(48) % 12 >= 2)[:, None].expand(48, 48) & ink[0, 0]
    assert not find_ink(faint, ink, color)[0, 0][rows].any()


def test_the_tone_of_the_page_does_not_matter():
    flat, ink = page(RED, 1.0)
    color = ink_color(flat, ink)
    dim = flat * torch.tensor([0.8, 0.75, 0.6])[None, :, None, None]
    assert torch.equal(find_ink(dim, ink, color), find_ink(flat, ink, color))
    assert paper_tone(flat, ink)[0].numpy() == pytest.approx(PAPER.flatten().numpy(), abs=0.02)


def test_without_ink_nothing_is_found():
    flat, _ = page(RED, 1.0)
    empty = torch.zeros(1, 1, 48, 48, dtype=torch.bool)
    assert not find_ink(flat, empty, ink_color(flat, empty)).any()


def test_one_changed_bit_outside_is_counted():
    before = torch.rand(2, 3, 8, 8)
    after = before.clone()
    allowed = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    allowed[:, :, 2:5, 2:5] = True
    after[0, 1, 3, 3] += 0.5
    assert changed_pixels(before, after, allowed).tolist() == [0, 0]
    after[1, 2, 7, 7] = np.nextafter(after[1, 2, 7, 7].item(), 2, dtype=np.float32).item()
    after[1, :, 0, 0] += 0.1
    assert changed_pixels(before, after, allowed).tolist() == [0, 2]
    assert mean_change(before, after, allowed)[0].item() == pytest.approx(0.5 / 3 / 9, rel=1e-5)
    assert torch.isnan(mean_change(before, after, torch.zeros_like(allowed))).all()


def test_quantiles_of_chosen_pixels():
    rng = np.random.default_rng(0)
    values, where = rng.normal(size=(3, 2, 5, 7)), rng.random((3, 1, 5, 7)) < 0.5
    where[2] = False
    got = masked_quantile(torch.from_numpy(values), torch.from_numpy(where), 0.75, when_empty=-1)
    for sample in range(2):
        for channel in range(2):
            chosen = np.sort(values[sample, channel][where[sample, 0]])
            assert got[sample, channel].item() == chosen[round((len(chosen) - 1) * 0.75)]
    assert got[2].tolist() == [-1, -1]


def test_frechet_distance_is_that_of_repeated_samples():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(40, 5)), 1.5 * rng.normal(size=(30, 5)) + 0.3
    weights_a, weights_b = rng.integers(0, 3, (2, 40)).astype(float), rng.integers(0, 3, (2, 30)).astype(float)
    got = frechet_distance(first, second, weights_a, weights_b)
    for row in range(2):
        a = np.repeat(first, weights_a[row].astype(int), axis=0)
        b = np.repeat(second, weights_b[row].astype(int), axis=0)
        cov_a, cov_b = np.cov(a.T), np.cov(b.T)
        wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b))
        assert got[row] == pytest.approx(wanted.real, abs=1e-8)


def test_frechet_distance_to_no_samples_is_nan():
    features = np.random.default_rng(0).normal(size=(6, 3))
    weights, none = np.ones((1, 6)), np.zeros((1, 6))
    rows = np.concatenate([weights, none, weights]), np.concatenate([weights, weights, none])
    got = frechet_distance(features, features + 1, *rows)
    assert got[0] == pytest.approx(3)
    assert np.isnan(got[1:]).all()
    assert np.isnan(frechet_distance(features, features, none, none)).all()
