"""Tokens are aligned in order, and weights stay where they were put."""

import pytest
import torch

from lightning_modules.seal2real.alignment import align_in_place, align_tokens, token_weights


def test_a_replaced_word_takes_the_place_of_the_old_one() -> None:
    found = align_tokens([9, 1, 2, 3, 0], [9, 1, 7, 3, 0])
    assert found.share.tolist() == [1] * 5
    assert found.source.tolist() == [0, 1, 2, 3, 4]


def test_an_inserted_word_is_aligned_with_nothing_and_moves_the_rest() -> None:
    found = align_tokens([9, 1, 2, 3, 0, 0], [9, 1, 7, 2, 3, 0])
    assert found.share.tolist() == [1, 1, 0, 1, 1, 1]
    assert found.source.tolist() == [0, 1, 0, 2, 3, 4]


def test_a_longer_replacement_is_aligned_with_nothing() -> None:
    found = align_tokens([9, 1, 0, 0], [9, 5, 6, 0])
    assert found.share.tolist()[0] == 1
    assert found.share.tolist()[1:3] == [0, 0]


def test_in_place_is_the_alignment_of_a_prompt_with_itself() -> None:
    own, found = align_in_place(6), align_tokens([4, 5, 6, 7, 8, 9], [4, 5, 6, 7, 8, 9])
    assert torch.equal(own.share, found.share)
    assert torch.equal(own.source, found.source)


def test_prompts_of_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="padded to one length, got 2 and 3"):
        align_tokens([1, 2], [1, 2, 3])


def test_weights_outside_of_the_prompt_are_ignored() -> None:
    assert token_weights(4, [(0, 2.0), (3, 0.5), (4, 9.0), (-1, 9.0)]).tolist() == [2.0, 1.0, 1.0, 0.5]
