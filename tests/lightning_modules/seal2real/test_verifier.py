"""The verifier: correlations by brute force, and that displaced parts can be learned."""

import numpy as np
import pytest
import torch

from lightning_modules.seal2real.verifier import SealVerifierModule
from lightning_modules.seal2real.verifier_network import VerifierNetwork, correlations


def test_correlations_are_inner_products_with_displaced_cells():
    first, second = torch.randn(2, 3, 5, 6), torch.randn(2, 3, 5, 6)
    found = correlations(first, second, 1)
    assert found.shape == (2, 9, 5, 6)
    for place, (down, across) in enumerate((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)):
        for row, column in ((0, 0), (2, 3), (4, 5)):
            other_row, other_column = row + down, column + across
            inside = 0 <= other_row < 5 and 0 <= other_column < 6
            wanted = (first[:, :, row, column] * second[:, :, other_row, other_column]).sum(1) if inside else 0
            assert torch.allclose(found[:, place, row, column], torch.as_tensor(wanted).float(), atol=1e-6)


def pairs(count, seed):
    """Bars on paper; in half of the specimens the lower bars lie elsewhere, and all lie a little beside."""
    rng = np.random.default_rng(seed)
    image, reference = np.ones((count, 3, 48, 48), np.float32), np.zeros((count, 1, 48, 48), np.float32)
    authentic = np.arange(count) % 2 == 0
    for place in range(count):
        shift = int(rng.integers(-1, 2))
        for row in range(6, 42, 9):
            column = int(rng.integers(8, 24))
            image[place, 1:, row : row + 3, column : column + 12] = 0.2
            moved = shift + (0 if authentic[place] or row < 20 else int(rng.choice([-6, 6])))
            reference[place, 0, row : row + 3, column + moved : column + moved + 12] = 1
    return {
        "image": torch.from_numpy(image + rng.normal(0, 0.02, image.shape).astype(np.float32)),
        "reference": torch.from_numpy(reference),
        "authentic": torch.from_numpy(authentic),
        "index": torch.arange(count),
        "kind": ["square"] * count,
    }


def test_displaced_parts_are_learned(monkeypatch):
    torch.manual_seed(0)
    module = SealVerifierModule(width=8)
    monkeypatch.setattr(module, "log", lambda *words, **options: None)
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    for step in range(45):
        loss = module.training_step(pairs(16, step), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()
    with torch.no_grad():
        outputs = module.test_step(pairs(64, 1000), 0)
    right = ((outputs["logit"] > 0) == outputs["authentic"]).float().mean()
    assert right > 0.85
    assert outputs["kind"] == ["square"] * 64


def test_any_size_is_taken_and_gradients_reach_both_towers():
    network = VerifierNetwork(width=4)
    network(torch.rand(2, 3, 40, 56), torch.rand(2, 1, 40, 56)).sum().backward()
    for tower in (network.questioned, network.specimen):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())


def test_a_checkpoint_gives_the_same_answers(tmp_path):
    from lightning_modules.weights import save_weights

    module = SealVerifierModule(width=4).eval()
    save_weights(module, tmp_path / "verifier.safetensors", {})
    again = SealVerifierModule(width=4, weights=str(tmp_path / "verifier.safetensors")).eval()
    batch = pairs(3, 0)
    assert torch.equal(module(batch["image"], batch["reference"]), again(batch["image"], batch["reference"]))


def test_pairs_of_unequal_sizes_are_refused():
    with pytest.raises(RuntimeError):
        VerifierNetwork(width=4)(torch.rand(1, 3, 40, 40), torch.rand(1, 1, 48, 48))
