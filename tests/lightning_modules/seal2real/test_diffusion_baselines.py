"""Baselines change seals and nothing else, the same whatever else is in the batch, and say what they cannot do."""

import pytest
import torch

from lightning_modules.seal2real.backbone import DiffusionBackbone
from lightning_modules.seal2real.diffusion_baselines import DiffusionBaselineModule, PromptSamplingModule
from lightning_modules.seal2real.forger_network import allowed_around
from lightning_modules.seal2real.forger_prior import FrozenPrior
from lightning_modules.seal2real.inversion import InversionSettings
from lightning_modules.seal2real.prompt_files import PromptPair, write_prompts
from lightning_modules.seal2real.realising import RealiseSettings

METHODS = ("img2img", "inpaint", "edit")
FEW = {"backbone": "tiny", "steps": 4}


@pytest.fixture(scope="module")
def prior():
    return FrozenPrior.load("tiny", None)


def ready(module, prior):
    """A module as its setup leaves it, without loading the model once more."""
    module.prior, module.empty = prior, prior.backbone.embed([""])
    return module


def baseline(prior, method, size=64, **settings):
    return ready(DiffusionBaselineModule(**(FEW | settings), method=method, realise=RealiseSettings(size=size)), prior)


def documents(sides=((96, 80), (72, 120)), seed=0):
    """Pages with one or two red squares for seals."""
    rng = torch.Generator().manual_seed(seed)
    batch = {"image": [], "ink": [], "boxes": [], "index": [], "path": []}
    for number, (height, width) in enumerate(sides):
        image = torch.randint(200, 256, (3, height, width), generator=rng, dtype=torch.uint8)
        ink = torch.zeros(1, height, width, dtype=torch.uint8)
        boxes = [(10, 12, 42, 44), (width - 30, height - 30, width - 6, height - 6)][: number + 1]
        for x0, y0, x1, y1 in boxes:
            ink[:, y0:y1, x0:x1] = 1
        image[1:] = torch.where(ink > 0, 60, image[1:])
        for key, value in (("image", image), ("ink", ink), ("boxes", torch.tensor(boxes)), ("index", number)):
            batch[key].append(value)
        batch["path"].append(f"page{number}")
    return batch


def crops_of(count=3, side=64):
    rng = torch.Generator().manual_seed(7)
    ink = torch.zeros(count, 1, side, side, dtype=torch.bool)
    ink[..., 16:40, 16:40] = True
    return torch.rand(count, 3, side, side, generator=rng), ink, list(range(11, 11 + count))


@pytest.mark.parametrize("method", METHODS)
def test_seals_change_and_the_rest_stays_bit_for_bit(prior, method):
    batch = documents()
    answer = baseline(prior, method).predict_step(batch, 0)
    for record, pictures, image, ink in zip(
        answer["records"], answer["images"], batch["image"], batch["ink"], strict=True
    ):
        assert record["changed_outside"] == 0
        assert record["mean_change_levels"] > 1
        made = torch.from_numpy(pictures["realised"]).permute(2, 0, 1)
        # A crop is made smaller or larger, its dilation with it: by less than four times here.
        outside = ~allowed_around(ink[None], 8)[0]
        assert made.shape == image.shape
        assert torch.equal(made[:, outside[0]], image[:, outside[0]])
    assert [record["seals"] for record in answer["records"]] == [1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_a_crop_does_not_depend_on_its_batch(prior, method):
    crops, ink, seeds = crops_of()
    module = baseline(prior, method)
    together = module.forge(crops, ink, seeds)
    alone = torch.cat([module.forge(crops[i : i + 1], ink[i : i + 1], seeds[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert together.min() >= 0
    assert together.max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_crops_of_any_side_come_back_at_their_size(prior, method):
    crops, ink, seeds = crops_of(1, side=53)
    assert baseline(prior, method).forge(crops, ink, seeds).shape == crops.shape


def test_noise_is_of_the_seed_and_strength_is_felt(prior):
    crops, ink, seeds = crops_of(1)
    weak = baseline(prior, "img2img", strength=0.25, steps=8).forge(crops, ink, seeds)
    again = baseline(prior, "img2img", strength=0.25, steps=8).forge(crops, ink, seeds)
    other = baseline(prior, "img2img", strength=0.25, steps=8).forge(crops, ink, [99])
    assert torch.equal(weak, again)
    assert (weak - other).abs().max() > 1e-3
    # What no noise is added to is the autoencoder's own answer.
    plain = prior.backbone.decode(prior.backbone.encode(crops))
    strong = baseline(prior, "img2img", strength=1.0, steps=8).forge(crops, ink, seeds)
    assert (weak - plain).abs().mean() < (strong - plain).abs().mean()


def test_an_edit_into_the_same_prompt_leads_back_to_the_crop():
    backbone = DiffusionBackbone.tiny(seed=1)
    # Random weights answer too steeply to be inverted: their norms blow up latents as small as these.
    for parameter in backbone.unet.conv_out.parameters():
        parameter.mul_(0.01)
    same = FrozenPrior(backbone, *backbone.embed(["a fake seal", "a fake seal"]))
    crops, ink, seeds = crops_of(1)
    plain = backbone.decode(backbone.encode(crops))

    def error(iterations):
        corrected = InversionSettings(refine_iterations=iterations, refine_skip=0.0, stop_below=1e-4)
        guidance = {"guidance": 1.0, "inversion_guidance": 1.0}
        module = DiffusionBaselineModule("tiny", method="edit", steps=6, inversion=corrected, **guidance)
        return float((ready(module, same).forge(crops, ink, seeds) - plain).abs().mean())

    assert error(20) < min(0.01, error(0) / 5)


def test_prompts_of_stage_one_are_used(prior, tmp_path):
    file = write_prompts(tmp_path / "prompts.safetensors", PromptPair(prior.real + 0.5, prior.fake, {}))
    module = DiffusionBaselineModule(**FEW, prompts=str(file))
    module.setup("predict")
    crops, ink, seeds = crops_of(1)
    phrases = baseline(prior, "img2img").forge(crops, ink, seeds)
    assert (module.forge(crops, ink, seeds) - phrases).abs().max() > 1e-3
    assert module.prediction_fingerprint() != baseline(prior, "img2img").prediction_fingerprint()
    assert not list(module.parameters()), "a checkpoint would hold the frozen model"


def test_an_empty_batch_is_answered(prior):
    empty = {key: [] for key in documents()}
    assert baseline(prior, "inpaint").predict_step(empty, 0) == {"records": [], "images": []}
    assert ready(PromptSamplingModule("tiny", size=64), prior).predict_step(empty, 0)["records"] == []


def test_sampled_pictures_depend_on_their_number_alone(prior):
    module = ready(PromptSamplingModule("tiny", size=64, steps=3, weights_of_tokens=((2, 3.0),)), prior)
    both, second = module.draw([4, 5]), module.draw([5])
    assert list(both) == ["real", "fake", "edited"]
    for kind, pictures in both.items():
        assert pictures.shape == (2, 3, 64, 64)
        torch.testing.assert_close(pictures[1:], second[kind], rtol=1e-4, atol=1e-4)
    assert (both["real"] - both["fake"]).abs().max() > 1e-3
    assert (both["edited"] - both["real"]).abs().max() > 1e-3
    answer = module.predict_step({"index": [4, 5], "path": ["a", "b"]}, 0)
    assert answer["records"][1] == {
        "path": "b", "index": 5, "size": 64, "sampler": "ddim", "steps": 3, "guidance": 7.5,
    }  # fmt: skip
    assert answer["images"][0]["edited"].shape == (64, 64, 3)


def test_phrases_are_aligned_word_by_word(prior):
    module = PromptSamplingModule("tiny", size=64, steps=2, phrases=("a fake seal", "a real red seal"))
    module.setup("predict")
    found = module.alignment()
    ids = prior.backbone.token_ids(["a fake seal", "a real red seal"]).tolist()
    # Start, "a"; what was put in has no source; "seal" comes from one place before.
    seal = prior.backbone.token_ids(["seal"])[0, 1].item()
    there, here = ids[0].index(seal), ids[1].index(seal)
    assert found.share[:2].tolist() == [1, 1]
    assert found.share[2:here].sum() == 0
    assert (float(found.share[here]), int(found.source[here])) == (1.0, there)
    torch.testing.assert_close(module.prior.fake, prior.fake)
    assert module.draw([1])["edited"].shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match="`phrases` stand in place of `prompts`"):
        PromptSamplingModule("tiny", prompts="file.safetensors", phrases=("a", "b"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"method": "paint"}, "`method` must be img2img, inpaint or edit, got 'paint'"),
        ({"strength": 0.0}, "`strength` must be above 0 and at most 1, got 0.0"),
        ({"strength": 0.2, "steps": 4}, "4 steps of strength 0.2 leave none to sample"),
        ({"dilation": -1}, "`dilation` must not be negative, got -1"),
        ({"cross_window": (1.0, 0.0)}, "`cross_window` must be two levels, the lower first"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        DiffusionBaselineModule("tiny", **settings)


def test_what_cannot_be_done_is_said_in_one_line(tmp_path):
    module = DiffusionBaselineModule("tiny")
    with pytest.raises(ValueError, match="DiffusionBaselineModule has nothing to train: use `predict`"):
        module.configure_optimizers()
    with pytest.raises(ValueError, match="loads its model in setup"):
        module.loaded()
    with pytest.raises(ValueError, match="`pictures` must be some of real, fake, edited"):
        PromptSamplingModule("tiny", pictures=())
    with pytest.raises(ValueError, match=r"model\.size 60 must be a multiple of 8"):
        PromptSamplingModule("tiny", size=60).setup("predict")
    with pytest.raises(FileNotFoundError, match="no prompts at"):
        DiffusionBaselineModule("tiny", prompts=str(tmp_path / "none.safetensors")).setup("predict")
    narrow = DiffusionBackbone.tiny().prompt_dim + 1
    file = write_prompts(tmp_path / "wide.safetensors", PromptPair(torch.zeros(77, narrow), torch.zeros(77, narrow)))
    with pytest.raises(ValueError, match=f"takes vectors of {narrow - 1}"):
        PromptSamplingModule("tiny", prompts=str(file)).setup("predict")
