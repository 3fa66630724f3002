import math

import pytest
import torch

from lightning_modules.masksim.losses import (
    class_counts,
    loss_sums,
    sample_losses,
    sample_weights,
    samples_of_heads,
    targets_of_heads,
    training_similarity,
)

GENERATED = torch.tensor([False, False, False, True, True, True])
HEAD = torch.tensor([-1, -1, -1, 0, 1, -1])  # the last is of a generator without a head


@pytest.mark.parametrize("others", [False, True])
def test_heads_learn_from_real_ones_and_their_own(others):
    selected = samples_of_heads(GENERATED, HEAD, 2, others)
    positive = targets_of_heads(GENERATED, HEAD, 2)
    assert positive.T.tolist() == [[False] * 3 + [True, False, False], [False] * 4 + [True, False]]
    if others:
        assert selected.all()
    else:
        assert selected.T.tolist() == [[True] * 4 + [False, False], [True] * 3 + [False, True, False]]


@pytest.mark.parametrize("balanced", [False, True])
def test_weights_make_means(balanced):
    positive = torch.tensor([[1, 0], [0, 0], [0, 0], [0, 0]]).bool()
    selected = torch.tensor([[1, 0], [1, 1], [1, 1], [1, 0]]).bool()
    weights = sample_weights(positive, selected, class_counts(positive, selected), balanced)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(2).double())
    first = [1 / 2, 1 / 6, 1 / 6, 1 / 6] if balanced else [1 / 4] * 4
    torch.testing.assert_close(weights.T, torch.tensor([first, [0, 1 / 2, 1 / 2, 0]]).double(), check_dtype=False)


def test_a_head_that_sees_nothing_has_no_weights():
    none = torch.zeros(3, 1, dtype=torch.bool)
    for balanced in (False, True):
        assert not sample_weights(none, none, class_counts(none, none), balanced).any()


def test_negatives_are_pushed_to_zero_from_both_sides_in_the_published_loss():
    similarity = torch.tensor([[-0.5], [0.5], [-0.5]], requires_grad=True)
    positive = torch.tensor([[False], [False], [True]])
    assert training_similarity(similarity, positive, "sealmark") is similarity
    seen = training_similarity(similarity, positive, "reference")
    assert seen.flatten().tolist() == [0.5, 0.5, -0.5]
    sample_losses(seen, positive, "reference").sum().backward()
    assert similarity.grad.sign().flatten().tolist() == [-1.0, 1.0, -1.0]


def test_saturated_samples():
    logit = torch.tensor([[200.0], [-200.0]], requires_grad=True)
    positive = torch.tensor([[False], [True]])
    published = sample_losses(logit, positive, "reference")
    assert published.flatten().tolist() == [100.0, 100.0]
    published.sum().backward()
    assert not logit.grad.any()
    logit.grad = None
    ours = sample_losses(logit, positive, "sealmark")
    assert ours.flatten().tolist() == [200.0, 200.0]
    ours.sum().backward()
    assert logit.grad.flatten().tolist() == [1.0, -1.0]
    moderate = torch.tensor([[0.3]])
    expected = -math.log(1 / (1 + math.exp(-0.3)))
    for loss in ("reference", "sealmark"):
        assert float(sample_losses(moderate, torch.tensor([[True]]), loss)) == pytest.approx(expected, rel=1e-6)


def test_validation_sums_by_sample_and_by_batch():
    losses = torch.tensor([[1.0], [3.0], [10.0]])
    positive, selected = torch.tensor([[False], [False], [True]]), torch.ones(3, 1, dtype=torch.bool)
    assert loss_sums(losses, positive, selected, by_batch=False).squeeze(-1).tolist() == [[4.0, 10.0], [2.0, 1.0]]
    assert loss_sums(losses, positive, selected, by_batch=True).squeeze(-1).tolist() == [[2.0, 10.0], [1.0, 1.0]]
    none = loss_sums(losses, positive, ~selected, by_batch=True)
    assert not none.any()


def test_a_score_that_is_no_number_has_such_a_loss_and_no_other_sample_has():
    logit = torch.tensor([[-200.0], [torch.nan], [0.3], [torch.inf]], requires_grad=True)
    positive = torch.tensor([[True], [True], [False], [True]])
    found = sample_losses(logit, positive, "reference")
    sound = torch.tensor([0, 2, 3])
    expected = torch.nn.functional.binary_cross_entropy(
        logit[sound].sigmoid(), positive[sound].float(), reduction="none"
    )
    assert torch.equal(found[sound], expected)
    assert found[1].isnan().all()
    assert torch.equal(
        torch.autograd.grad(found[sound].sum(), logit)[0][sound], torch.autograd.grad(expected.sum(), logit)[0][sound]
    )
