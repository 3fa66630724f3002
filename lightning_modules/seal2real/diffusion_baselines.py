"""What the forger is compared with: diffusion sampling that makes drawn seals real, one crop at a time."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.base import ProvenanceModule
from lightning_modules.functional.pixels import to_picture

from .alignment import TokenAlignment, align_in_place, align_tokens, token_weights
from .backbone import Precision
from .editing import AttentionEdit, EditSettings, Window, edit_latents, edit_step, editing
from .forger_network import allowed_around
from .forger_prior import FrozenPrior, settings_of
from .inversion import InversionSettings, invert_latents, walk_back
from .realising import RealiseSettings, realise_batch
from .sampling import SamplerName, make_sampler, noise_model, sample_latents

RealiseMethod = Literal["img2img", "inpaint", "edit"]
PIPELINES = {"img2img": "StableDiffusionImg2ImgPipeline", "inpaint": "StableDiffusionInpaintPipeline"}
Kind = Literal["real", "fake", "edited"]
KINDS: tuple[Kind, ...] = ("real", "fake", "edited")


class _FrozenModule(ProvenanceModule):
    """A frozen diffusion model and two prompts that are loaded to predict with; nothing is trained."""

    prior: FrozenPrior | None = None

    def configure_models(self) -> None:
        """Nothing yet: the model is loaded where it is needed."""

    def configure_losses(self) -> None:
        """Nothing to train."""

    def setup(self, stage: str) -> None:
        """Load the model and the prompts."""
        h: Any = self.hparams
        if self.prior is None and stage == "predict":
            self.prior = FrozenPrior.load(h.backbone, h.prompts, h.backbone_precision)
            self.empty = self.prior.backbone.embed([""])

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> NoReturn:
        """Refuse."""
        raise ValueError(f"{type(self).__name__} has nothing to train: use `predict`")

    validation_step = test_step = training_step

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Refuse, before the first batch is read."""
        self.training_step({}, 0)

    def prediction_fingerprint(self) -> str:
        """Return a hash of all that decides a prediction, so that a folder never mixes those of two models."""
        prior = self.loaded()
        digest = hashlib.sha256(repr((type(self).__name__, sorted(self.hparams.items()), _run_seed())).encode())
        for prompt in (prior.real, prior.fake):
            digest.update(prompt.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def loaded(self) -> FrozenPrior:
        """Return the model and the prompts, on the module's device."""
        if self.prior is None:
            raise ValueError(f"{type(self).__name__} loads its model in setup(): predict with a trainer")
        self.empty = self.empty.to(self.device)
        return self.prior.to(self.device)


class DiffusionBaselineModule(_FrozenModule):
    """Makes the seals of documents real by sampling: what one pass of the forger is compared with.

    Around each seal a crop is cut out, changed, and put back within the dilated ink; labels stay as they are.

    Args:
        backbone: A local folder in diffusers layout, a hub id, or ``tiny`` for a miniature with random weights.
        prompts: File of the learned prompts; null takes "a real seal" and "a fake seal" as they are.
        backbone_precision: Of the frozen weights.
        method: ``img2img`` noises the crop and samples on under the real prompt (SDEdit). ``inpaint`` does so within
            the dilated ink, the rest of the latents being held. ``edit`` inverts the crop under the fake prompt and
            samples it again under the real one with the attention of the fake one (prompt-to-prompt).
        strength: Of ``img2img`` and ``inpaint``: how far towards pure noise a crop is taken.
        steps: Of a sampling from pure noise.
        guidance: Of sampling.
        inversion_guidance: Of inversion.
        cross_window: Noise levels from 0, clean, to 1 at which ``edit`` keeps the attention to tokens.
        self_window: Those at which it keeps the attention between places.
        inversion: Corrections of inversion.
        dilation: By how many pixels of a crop the mask is larger than the ink.
        realise: How crops are cut out and put back; its size must suit the backbone.
    """

    def __init__(
        self,
        backbone: str,
        prompts: str | None = None,
        backbone_precision: Precision = "float32",
        method: RealiseMethod = "img2img",
        strength: float = 0.35,
        steps: int = 50,
        guidance: float = 7.5,
        inversion_guidance: float = 3.0,
        cross_window: Window = (0.0, 1.0),
        self_window: Window = (0.0, 1.0),
        inversion: InversionSettings | None = None,
        dilation: int = 2,
        realise: RealiseSettings | None = None,
    ) -> None:
        super().__init__()
        if method not in ("img2img", "inpaint", "edit"):
            raise ValueError(f"`method` must be img2img, inpaint or edit, got {method!r}")
        if method != "edit" and not 0 < strength <= 1:
            raise ValueError(f"`strength` must be above 0 and at most 1, got {strength}")
        if method != "edit" and int(steps * strength) < 1:
            raise ValueError(f"{steps} steps of strength {strength} leave none to sample: raise one of them")
        if dilation < 0:
            raise ValueError(f"`dilation` must not be negative, got {dilation}")
        self.editing = EditSettings(guidance, (cross_window[0], cross_window[1]), (self_window[0], self_window[1]))
        self.inversion: InversionSettings = settings_of(InversionSettings, inversion)
        self.realisation: RealiseSettings = settings_of(RealiseSettings, realise)
        # Plain mappings: a checkpoint holds no classes.
        settings = {"inversion": self.inversion, "realise": self.realisation}
        self.save_hyperparameters(ignore=list(settings))
        self.save_hyperparameters({name: asdict(value) for name, value in settings.items()})
        self.build()

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return ``records`` and ``images`` of documents of any sizes, their seals made real."""
        return realise_batch(self.forge, batch, self.realisation, self.hparams["dilation"], self.device)

    @torch.no_grad()
    def forge(self, crops: Tensor, ink: Tensor, seeds: list[int]) -> Tensor:
        """Return crops (N, 3, S, S) in [0, 1] made real; each one's noise depends on its own seed alone.

        Args:
            crops: The crops.
            ink: Bool (N, 1, S, S).
            seeds: One for each crop.
        """
        unit, side = self.loaded().backbone.downscale, crops.shape[-1]
        beyond = -side % unit
        padded = F.pad(crops, (0, beyond, 0, beyond), mode="replicate")
        if self.hparams["method"] == "edit":
            made = self._edit(padded)
        else:
            allowed = F.pad(allowed_around(ink, self.hparams["dilation"]).float(), (0, beyond, 0, beyond))
            made = self._sample(padded, allowed, seeds)
        return made[..., :side, :side].float()

    def _sample(self, crops: Tensor, allowed: Tensor, seeds: list[int]) -> Tensor:
        """Return the crops after a stock pipeline."""
        h: Any = self.hparams
        prior = self.loaded()
        pipeline = prior.backbone.pipeline(PIPELINES[h.method])
        masks = {"mask_image": allowed} if h.method == "inpaint" else {}
        sides = {"height": crops.shape[-2], "width": crops.shape[-1]} if h.method == "inpaint" else {}
        made: Tensor = pipeline(
            image=crops,
            prompt_embeds=prior.real.expand(len(crops), -1, -1),
            negative_prompt_embeds=self.empty.expand(len(crops), -1, -1),
            strength=h.strength,
            num_inference_steps=h.steps,
            guidance_scale=h.guidance,
            generator=[_generator(seed) for seed in seeds],
            output_type="pt",
            **masks,
            **sides,
        ).images
        return made

    def _edit(self, crops: Tensor) -> Tensor:
        """Return the crops inverted under the fake prompt and sampled under the real one."""
        h: Any = self.hparams
        prior = self.loaded()
        backbone, model, kept = prior.backbone, noise_model(prior.backbone), prior.backbone.alphas_cumprod
        prompts = self.empty, prior.fake[None], prior.real[None]
        noisy = invert_latents(
            model, kept, backbone.encode(crops), prompts[:2], h.steps, h.inversion_guidance, self.inversion
        )
        edit = AttentionEdit(align_in_place(prior.real.shape[0]).to(noisy.device))
        with editing(backbone.unet, edit):
            latents = walk_back(
                lambda latents, time: edit_step(model, edit, latents, time, prompts, self.editing),
                kept, noisy, h.steps,
            )  # fmt: skip
        return backbone.decode(latents)


class PromptSamplingModule(_FrozenModule):
    """Draws what the prompts mean: pictures from one noise under each, and the fake prompt's edited towards the real.

    It draws as many as there are documents to predict, whose pixels it does not look at. Defaults are the reference's.

    Args:
        backbone: A local folder in diffusers layout, a hub id, or ``tiny`` for a miniature with random weights.
        prompts: File of the learned prompts; null takes "a real seal" and "a fake seal" as they are.
        backbone_precision: Of the frozen weights.
        phrases: In place of ``prompts``: the fake one and the real one in words, edited word by word.
        pictures: Which to draw: under the ``real`` prompt, under the ``fake`` one, and ``edited`` from fake to real.
        size: Side of a picture.
        sampler: Deterministic ``ddim``, or ``lms``, which the reference edits with.
        steps: Of sampling.
        guidance: Of sampling.
        cross_window: Noise levels from 0, clean, to 1 at which editing keeps the attention to tokens.
        self_window: Those at which it keeps the attention between places.
        weights_of_tokens: Positions and factors of the attention to them, in editing.
    """

    def __init__(
        self,
        backbone: str,
        prompts: str | None = None,
        backbone_precision: Precision = "float32",
        phrases: tuple[str, str] | None = None,
        pictures: tuple[Kind, ...] = KINDS,
        size: int = 256,
        sampler: SamplerName = "ddim",
        steps: int = 50,
        guidance: float = 7.5,
        cross_window: Window = (0.0, 1.0),
        self_window: Window = (0.0, 1.0),
        weights_of_tokens: tuple[tuple[int, float], ...] = (),
    ) -> None:
        super().__init__()
        if not pictures or not set(pictures) <= set(KINDS):
            raise ValueError(f"`pictures` must be some of {', '.join(KINDS)}, got {list(pictures)}")
        if phrases is not None and prompts is not None:
            raise ValueError("`phrases` stand in place of `prompts`: name one of them")
        if size < 8:
            raise ValueError(f"`size` must be at least 8, got {size}")
        self.editing = EditSettings(guidance, (cross_window[0], cross_window[1]), (self_window[0], self_window[1]))
        self.save_hyperparameters()
        self.build()

    def setup(self, stage: str) -> None:
        """Load the model and the prompts."""
        super().setup(stage)
        phrases = self.hparams["phrases"]
        if self.prior is not None and phrases is not None:
            fake, real = self.prior.backbone.embed(phrases)
            self.prior = FrozenPrior(self.prior.backbone, real, fake)
        unit = self.prior.backbone.downscale if self.prior else 1
        if self.hparams["size"] % unit:
            raise ValueError(f"model.size {self.hparams['size']} must be a multiple of {unit} for this backbone")

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return ``records`` and ``images``, one for each document of the batch."""
        numbers = [int(number) for number in batch["index"]]
        drawn = self.draw(numbers) if numbers else {}
        facts = {name: self.hparams[name] for name in ("size", "sampler", "steps", "guidance")}
        records = [
            {"path": str(path), "index": number} | facts for path, number in zip(batch["path"], numbers, strict=True)
        ]
        images = [{name: to_picture(pictures[i]) for name, pictures in drawn.items()} for i in range(len(numbers))]
        return {"records": records, "images": images}

    @torch.no_grad()
    def draw(self, numbers: list[int]) -> dict[str, Tensor]:
        """Return pictures (N, 3, S, S) in [0, 1] by kind; each one's noise depends on its number alone."""
        h: Any = self.hparams
        prior = self.loaded()
        backbone, model = prior.backbone, noise_model(prior.backbone)
        side = h.size // backbone.downscale
        shape = (int(backbone.vae.config.latent_channels), side, side)
        noise = torch.stack([torch.randn(shape, generator=_generator(number)) for number in numbers]).to(self.device)
        prompts = {"real": prior.real[None], "fake": prior.fake[None]}
        drawn = {}
        for kind in h.pictures:
            sampler = make_sampler(h.sampler, backbone.schedule, h.steps)
            if kind == "edited":
                weights = token_weights(len(prior.real), h.weights_of_tokens)
                edit = AttentionEdit(self.alignment().to(noise.device), weights.to(noise.device))
                all_prompts = (self.empty, prompts["fake"], prompts["real"])
                latents = edit_latents(model, backbone.unet, sampler, noise, all_prompts, edit, self.editing)
            else:
                latents = sample_latents(model, sampler, noise, prompts[kind], self.empty, h.guidance)
            drawn[kind] = backbone.decode(latents)
        return drawn

    def alignment(self) -> TokenAlignment:
        """Return which vectors of the real prompt take whose attention: learned ones have no words."""
        prior, phrases = self.loaded(), self.hparams["phrases"]
        if phrases is None:
            return align_in_place(len(prior.real))
        source, edited = prior.backbone.token_ids(phrases).tolist()
        return align_tokens(source, edited)


def _run_seed() -> int:
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def _generator(number: int) -> torch.Generator:
    """Return a generator of the run's seed and a number; on the CPU, so that every device draws the same."""
    seed = np.random.SeedSequence([_run_seed(), number]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))
