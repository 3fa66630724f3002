"""Stage 2 of Seal2Real: a network that makes drawn seals look real."""

import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, TypedDict, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.base import RANDOM, ProvenanceModule, Schedule, make_optimizer
from lightning_modules.functional.pixels import to_unit
from lightning_modules.functional.sample_draws import SampleDraws
from lightning_modules.weights import load_weights

from .backbone import Precision
from .fake_branch import FakeBranch
from .forger_losses import ContentSettings, PriorSettings, content_terms
from .forger_network import ForgerKind, ForgerNetwork, allowed_around, draw_grain
from .forger_prior import FrozenPrior, settings_of, spread_timesteps
from .perceptual import PerceptualDistance
from .realising import RealiseSettings, realise_batch

FAKE_PREFIX = "fake."


class ForgerOutputs(TypedDict):
    """What ``validation_step`` and ``test_step`` return, for callbacks to read."""

    index: Tensor
    """Stable position in the data set, int64 (B,)."""
    image: Tensor
    """The drawn picture in [0, 1], (B, 3, S, S)."""
    realised: Tensor
    """What the forger makes of it, alike."""
    real: Tensor
    """A real picture, of something else, alike."""
    ink: Tensor
    """Where the drawn seal has ink, bool (B, 1, S, S)."""
    allowed: Tensor
    """Where the forger may change pixels, alike."""
    prior_realised: Tensor
    """Mean denoising error of the forged picture under the real prompt, (B,)."""
    prior_synthetic: Tensor
    """Of the drawn one."""
    prior_real: Tensor
    """Of the real one: where the forged one should end, not below."""


class ForgerModule(ProvenanceModule):
    """Trains a forger against a frozen diffusion model with the two prompts of stage 1.

    The paper's second stage was not published: network, losses and numbers are ours. The frozen model is loaded where
    it is needed, not for predict, and is in no checkpoint.

    Args:
        backbone: A local diffusers folder, a hub id, or ``tiny``.
        prompts: The file that stage 1 wrote; null takes two phrases as they are, for trials.
        backbone_precision: Of the frozen weights.
        gradient_checkpointing: Trade a second pass for memory wherever gradients pass through the frozen model.
        network: ``small`` is our own U-Net, ``smp`` one of segmentation_models_pytorch.
        channels: Of the levels of the small one.
        encoder: Of the one of smp.
        encoder_weights: Start of that encoder; ignored where ``weights`` are given.
        noise_scales: Grain of each noise channel in pixels.
        limit: Largest change of a pixel.
        dilation: By how many pixels of a crop the allowed mask is larger than the ink.
        prior: How the real prior pulls.
        content: What holds a forged picture to the drawn one.
        eval_draws: Noise levels that the logged prior values are means over.
        stop_at_real: End training when the forged pictures' prior value has come down to that of real ones: what is
            easier to explain than real seals is blurred.
        clip_norm: Limit of the gradient's norm; null for none.
        lr: Peak learning rate.
        weight_decay: Decay of weights.
        optimizer: Which optimiser.
        schedule: Course of the learning rate, per step.
        warmup_steps: Steps of linear rise.
        min_lr: Where cosine and one_cycle end.
        ema_decay: Decay of the average of the weights that is validated and saved; 0 for none.
        realise: How predict treats whole documents.
        weights: File to start from; ``random`` to realise with an untrained forger, which changes nothing.
    """

    def __init__(
        self,
        backbone: str = "tiny",
        prompts: str | None = None,
        backbone_precision: Precision = "float32",
        gradient_checkpointing: bool = False,
        network: ForgerKind = "small",
        channels: tuple[int, ...] = (16, 32, 64),
        encoder: str = "resnet18",
        encoder_weights: Literal["imagenet"] | None = None,
        noise_scales: tuple[int, ...] = (1, 4, 16),
        limit: float = 1.0,
        dilation: int = 2,
        prior: PriorSettings | None = None,
        content: ContentSettings | None = None,
        eval_draws: int = 4,
        stop_at_real: bool = False,
        clip_norm: float | None = 1.0,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        optimizer: Literal["adam", "adamw", "sgd"] = "adamw",
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        min_lr: float = 0.0,
        ema_decay: float = 0.0,
        realise: RealiseSettings | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if dilation < 0:
            raise ValueError(f"`dilation` must not be negative, got {dilation}")
        if eval_draws < 1:
            raise ValueError(f"`eval_draws` must be at least 1, got {eval_draws}")
        self.prior: PriorSettings = settings_of(PriorSettings, prior)
        self.content: ContentSettings = settings_of(ContentSettings, content)
        self.realisation: RealiseSettings = settings_of(RealiseSettings, realise)
        if self.prior.weight == 0 and not self.content.held:
            raise ValueError("model.prior.weight and all of model.content are 0: there is nothing to learn from")
        settings = {"prior": self.prior, "content": self.content, "realise": self.realisation}
        self.save_hyperparameters(ignore=list(settings))
        # Plain mappings: a checkpoint holds no classes.
        self.save_hyperparameters({name: asdict(value) for name, value in settings.items()})
        # Two optimisers, which Lightning does not step by itself.
        self.automatic_optimization = self.prior.kind != "vsd"
        self.frozen: FrozenPrior | None = None
        self.fake: FakeBranch | None = None
        # Prior values of pictures that no step changes, by stage and index.
        self._known: dict[tuple[str, int], tuple[float, float]] = {}
        self._prior_sums = torch.zeros(3)
        self.build()

    def build(self) -> None:
        """Build the forger, then load ``weights`` if given; what they hold of a fake branch is left."""
        self.configure_models()
        self.configure_losses()
        path = self.hparams["weights"]
        if path is not None and path != RANDOM:
            report = load_weights(self, path, strict=False)
            left = [key for key in report.unexpected if not key.startswith(FAKE_PREFIX)]
            misfits = report.missing + report.mismatched + left
            if misfits:
                raise ValueError(
                    f"{path} is not of this forger ({', '.join(misfits[:3])}): check model.network, model.channels, "
                    f"model.encoder and model.noise_scales"
                )

    def configure_models(self) -> None:
        """Build the forger."""
        h: Any = self.hparams
        start = None if h.weights else h.encoder_weights
        self.network = ForgerNetwork(h.network, h.channels, h.encoder, start, h.noise_scales, h.limit)

    def configure_losses(self) -> None:
        """Build the perceptual distance where it is asked for; the others are functions."""
        self.perceptual = PerceptualDistance() if self.content.lpips > 0 else None

    def setup(self, stage: str) -> None:
        """Load the frozen model, which all stages but predict need, and the fake branch for training."""
        h: Any = self.hparams
        self._known = {}
        if stage == "predict":
            return
        if stage == "fit":
            # Checkpoints are to hold the state after a step, which this warns of.
            warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization")
            if str(self.trainer.precision).startswith("16"):
                raise ValueError(f"trainer.precision {self.trainer.precision} loses small gradients: use bf16-mixed")
        if self.frozen is None:
            self.frozen = FrozenPrior.load(h.backbone, h.prompts, h.backbone_precision)
            self.frozen.check(self.prior)
            self.frozen.backbone.set_gradient_checkpointing(h.gradient_checkpointing)
        if stage == "fit" and self.prior.kind == "vsd" and self.fake is None:
            self.fake = FakeBranch(self.frozen.backbone, self.frozen.fake, self.prior.lora_rank)

    def configure_callbacks(self) -> list[Callback]:
        """Make the fake branch before an average of weights is made, which comes before `setup`."""
        if self._trainer is not None and self.trainer.state.fn == "fit" and self.prior.kind == "vsd":
            self.setup("fit")
        return super().configure_callbacks()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the forger's optimiser, and the fake branch's where there is one."""
        h: Any = self.hparams
        if self.fake is None:
            return super().configure_optimizers()
        forger = make_optimizer(self.network, h.optimizer, h.lr, h.weight_decay)
        branch = make_optimizer(self.fake, "adamw", self.prior.lora_lr, 0.0)
        # Both follow one course of factors.
        return [self.scheduled(each) for each in (forger, branch)]

    def forward(self, image: Tensor, ink: Tensor, noise: Tensor | SampleDraws) -> Tensor:
        """Return forged pictures (B, 3, H, W) of drawn ones in [0, 1] with their ink (B, 1, H, W)."""
        allowed = self.allowed(ink)
        if isinstance(noise, SampleDraws):
            size_hw = (image.shape[-2], image.shape[-1])
            noise = draw_grain(len(image), size_hw, self.network.noise_scales, noise, image.device)
        forged: Tensor = self.network(image, ink > 0, allowed, noise)
        return forged

    def allowed(self, ink: Tensor) -> Tensor:
        """Return where pixels may change, bool (B, 1, H, W)."""
        return allowed_around(ink, self.hparams["dilation"])

    def accumulation_obstacle(self) -> str | None:
        """Name the second optimiser of ``vsd``."""
        reason = "with model.prior.kind vsd both optimisers step after every batch: take a larger data.batch_size"
        return reason if self.prior.kind == "vsd" else None

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor | None:
        """Return the loss, or take the step of both optimisers where there are two."""
        image, ink = to_unit(batch["image"]), batch["ink"] > 0
        loss, fake_loss, terms = self.losses_of(image, ink, batch["index"])
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(image))
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()}, batch_size=len(image))
        if fake_loss is None:
            return loss
        self._step_both(loss, fake_loss)
        return None

    def losses_of(self, image: Tensor, ink: Tensor, index: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Return the forger's loss, the fake branch's where there is one, and what the first is made of.

        Args:
            image: Drawn pictures (B, 3, S, S) in [0, 1].
            ink: Their ink, bool (B, 1, S, S).
            index: Their places in the data set, on which all draws depend.
        """
        frozen = self._prior_here()
        draws = self.sample_draws(index)
        forged = self.forward(image, ink, draws)
        terms = content_terms(forged, image, ink, self.content)
        if self.perceptual is not None:
            terms["lpips"] = self.content.lpips * self.perceptual(forged, image)
        fake_loss = None
        if self.prior.weight > 0:
            low, high = self.prior.t_range
            timesteps = draws.integer(low, high - 1).to(image.device)
            noise = draws.noise(frozen.latent_shape(image), image.device)
            pull = frozen.pull(forged, self.allowed(ink), noise, timesteps, self.prior, self.fake)
            terms["prior"], fake_loss = self.prior.weight * pull.loss, pull.fake_loss
            if fake_loss is not None:
                return torch.stack(list(terms.values())).sum(), fake_loss, terms | {"fake": fake_loss}
        return torch.stack(list(terms.values())).sum(), None, terms

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> ForgerOutputs:
        """Log the prior values and return what the callbacks read."""
        return self._evaluation_step(batch, "val")

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> ForgerOutputs:
        """Log the prior values and return what the callbacks read."""
        return self._evaluation_step(batch, "test")

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the validation before."""
        self._prior_sums = torch.zeros(3)

    def on_validation_epoch_end(self) -> None:
        """End training where forged pictures are explained as well as real ones."""
        forged, real, count = self.sum_over_ranks(self._prior_sums.to(self.device)).tolist()
        if not self.hparams["stop_at_real"] or not count or self.trainer.sanity_checking or forged > real:
            return
        rank_zero_info(
            f"prior value {forged / count:.4f} of forged pictures has reached {real / count:.4f} of real ones"
        )
        self.trainer.should_stop = True

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return ``records`` and ``images`` of documents of any sizes, their seals made real."""
        return realise_batch(self._forge, batch, self.realisation, self.hparams["dilation"], self.device)

    def prediction_fingerprint(self) -> str:
        """Return a hash of all that decides a prediction, so that a folder never mixes those of two models."""
        digest = hashlib.sha256(repr((self.realisation, self.hparams["dilation"], _mixed(0))).encode())
        for key, value in self.network.state_dict().items():
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by ``clip_norm`` where the trainer has no limit of its own."""
        limit = gradient_clip_val if gradient_clip_val is not None else self.hparams["clip_norm"]
        self.clip_gradients(optimizer, gradient_clip_val=limit, gradient_clip_algorithm=gradient_clip_algorithm)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave a fake branch in the checkpoint where nothing trains it."""
        super().on_load_checkpoint(checkpoint)
        if self.fake is None:
            state = checkpoint["state_dict"]
            for key in [key for key in state if key.startswith(FAKE_PREFIX)]:
                del state[key]

    def _evaluation_step(self, batch: Mapping[str, Any], stage: str) -> ForgerOutputs:
        frozen = self._prior_here()
        image, real, ink, index = to_unit(batch["image"]), to_unit(batch["real"]), batch["ink"] > 0, batch["index"]
        grain = torch.cat([self._grain(image[:1], int(number)) for number in index])
        realised = self.forward(image, ink, grain)
        timesteps = spread_timesteps(self.prior.t_range, self.hparams["eval_draws"]).to(image.device)
        shape = (len(timesteps), *frozen.latent_shape(image))
        noise = torch.stack([_seeded(shape, int(number)) for number in index]).to(image.device)
        forged = frozen.errors(realised, noise, timesteps)
        drawn, genuine = self._constant_errors(stage, index, image, real, noise, timesteps)
        if stage == "val":
            self._prior_sums += torch.tensor([float(forged.sum()), float(genuine.sum()), len(index)])
        values = {"prior_realised": forged, "prior_synthetic": drawn, "prior_real": genuine}
        logged = {f"{stage}/{name}": value.mean() for name, value in values.items()}
        self.log_dict(logged, sync_dist=True, batch_size=len(index))
        return {
            "index": index,
            "image": image,
            "realised": realised,
            "real": real,
            "ink": ink,
            "allowed": self.allowed(ink),
            "prior_realised": forged,
            "prior_synthetic": drawn,
            "prior_real": genuine,
        }

    def _constant_errors(
        self, stage: str, index: Tensor, image: Tensor, real: Tensor, noise: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the prior values of drawn and real pictures, computed when first seen."""
        keys = [(stage, int(number)) for number in index]
        if any(key not in self._known for key in keys):
            frozen = self._prior_here()
            pairs = zip(
                frozen.errors(image, noise, timesteps).tolist(),
                frozen.errors(real, noise, timesteps).tolist(),
                strict=True,
            )
            self._known |= dict(zip(keys, pairs, strict=True))
        both = torch.tensor([self._known[key] for key in keys], device=image.device)
        return both[:, 0], both[:, 1]

    def _forge(self, crops: Tensor, ink: Tensor, seeds: list[int]) -> Tensor:
        """Return forged crops; each crop's noise depends on its own seed alone."""
        noise = torch.cat([self._grain(crops[:1], seed) for seed in seeds])
        return self.forward(crops, ink, noise)

    def _grain(self, like: Tensor, number: int) -> Tensor:
        """Return the noise (1, N, H, W) of one picture, the same on every device."""
        generator = torch.Generator().manual_seed(_mixed(number))
        size_hw = (like.shape[-2], like.shape[-1])
        return draw_grain(1, size_hw, self.network.noise_scales, generator, like.device)

    def _prior_here(self) -> FrozenPrior:
        if self.frozen is None:
            raise ValueError("the frozen model of a forger is loaded by setup(): train and test it with a trainer")
        return self.frozen.to(self.device)

    def _step_both(self, loss: Tensor, fake_loss: Tensor) -> None:
        """Step forger and fake branch from one backward pass: no parameter is in both losses."""
        optimizers = cast(list[LightningOptimizer], self.optimizers())
        for each in optimizers:
            each.zero_grad()
        self.manual_backward(loss + fake_loss)
        if self.hparams["clip_norm"] is not None:
            for part in (self.network, self.fake):
                nn.utils.clip_grad_norm_(cast(nn.Module, part).parameters(), self.hparams["clip_norm"])
        forger, branch = optimizers
        # Lightning counts the steps of its wrappers: one a batch, whatever the number of optimisers.
        branch.optimizer.step()
        forger.step()
        for scheduler in cast(list[LambdaLR], self.lr_schedulers()):
            scheduler.step()


def _mixed(number: int) -> int:
    """Return a seed of the run's seed and a number."""
    seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
    return (seed * 1_000_003 + number) % (1 << 62)


def _seeded(shape: tuple[int, ...], number: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))
