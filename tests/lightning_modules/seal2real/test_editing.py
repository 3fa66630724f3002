"""Editing changes attention where it is told to, and leaves the U-Net as it was."""

import pytest
import torch

from lightning_modules.seal2real.alignment import TokenAlignment, align_in_place, token_weights
from lightning_modules.seal2real.backbone import DiffusionBackbone
from lightning_modules.seal2real.editing import (
    AttentionEdit,
    EditingProcessor,
    EditSettings,
    edit_latents,
    edited_attention,
    editing,
)
from lightning_modules.seal2real.sampling import make_sampler, noise_model, sample_latents

NEVER = EditSettings(5.0, cross_window=(2.0, 2.0), self_window=(2.0, 2.0))


@pytest.fixture(scope="module")
def backbone():
    return DiffusionBackbone.tiny()


@pytest.fixture(scope="module")
def prompts(backbone):
    return backbone.embed(["", "a fake seal", "a red stamp on a scanned page"]).split(1)


def noise_of(count):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(5))


def edited(backbone, noise, prompts, edit, settings):
    sampler = make_sampler("lms", backbone.schedule, 3)
    with torch.no_grad():
        return edit_latents(noise_model(backbone), backbone.unet, sampler, noise, prompts, edit, settings)


def test_probabilities_are_taken_token_by_token():
    torch.manual_seed(0)
    own, source = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    alignment = TokenAlignment(torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([2, 0, 0, 0]))
    found = edited_attention(own, source, alignment, torch.tensor([1.0, 1.0, 3.0, 2.0]))
    wanted = torch.stack([source[..., 2], own[..., 1], 3 * source[..., 0], 2 * own[..., 3]], dim=-1)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(edited_attention(own, source, None, None), source)
    assert torch.equal(edited_attention(own, None, alignment, None), own)


def test_outside_of_its_windows_an_edit_is_plain_sampling_under_the_edited_prompt(backbone, prompts):
    found = edited(backbone, noise_of(2), prompts, AttentionEdit(align_in_place(77)), NEVER)
    sampler = make_sampler("lms", backbone.schedule, 3)
    with torch.no_grad():
        wanted = sample_latents(noise_model(backbone), sampler, noise_of(2), prompts[2], prompts[0], 5.0)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_both_windows_and_weights_change_the_picture(backbone, prompts):
    aligned = AttentionEdit(align_in_place(77))
    plain = edited(backbone, noise_of(1), prompts, aligned, NEVER)
    for settings in (
        EditSettings(5.0, cross_window=(0.0, 1.0), self_window=(2.0, 2.0)),
        EditSettings(5.0, cross_window=(2.0, 2.0), self_window=(0.0, 1.0)),
    ):
        assert (edited(backbone, noise_of(1), prompts, aligned, settings) - plain).abs().max() > 1e-3
    weighted = AttentionEdit(align_in_place(77), token_weights(77, [(1, 5.0)]))
    assert (edited(backbone, noise_of(1), prompts, weighted, NEVER) - plain).abs().max() > 1e-3
    # Without an edited prompt weights act on the source's own attention.
    source = prompts[:2]
    difference = edited(backbone, noise_of(1), source, weighted, NEVER) - edited(
        backbone, noise_of(1), source, AttentionEdit(), NEVER
    )
    assert difference.abs().max() > 1e-3


def test_a_prompt_edited_into_itself_is_that_prompt(backbone, prompts):
    empty, source, _ = prompts
    found = edited(backbone, noise_of(1), (empty, source, source), AttentionEdit(align_in_place(77)), EditSettings(5.0))
    wanted = edited(backbone, noise_of(1), (empty, source), AttentionEdit(), EditSettings(5.0))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_pictures_of_a_batch_do_not_see_each_other(backbone, prompts):
    edit, noise = AttentionEdit(align_in_place(77)), noise_of(3)
    together = edited(backbone, noise, prompts, edit, EditSettings(5.0))
    alone = torch.cat([edited(backbone, each[None], prompts, edit, EditSettings(5.0)) for each in noise])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_unet_is_as_before_even_after_an_error(backbone):
    before = backbone.unet.attn_processors

    def fail_inside():
        with editing(backbone.unet, AttentionEdit()):
            assert all(isinstance(each, EditingProcessor) for each in backbone.unet.attn_processors.values())
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert backbone.unet.attn_processors == before


def test_windows_the_wrong_way_round_are_refused():
    with pytest.raises(ValueError, match="`self_window` must be two levels, the lower first"):
        EditSettings(self_window=(0.8, 0.2))
