"""SyncSeal: how was a picture moved since it was marked?"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.base import RANDOM, ProvenanceModule, Schedule
from lightning_modules.exporting import ExportProgram
from lightning_modules.functional.image_quality import image_mse
from lightning_modules.functional.sample_draws import SampleDraws
from lightning_modules.functional.sync_reliability import Reliability, finite
from lightning_modules.weights import load_weights, usable

from .augmentation.attack import Attacked, attack
from .augmentation.settings import GeometricSettings, ValueSettings
from .detector import OUTPUTS
from .discriminator import PatchDiscriminator
from .embedder import EmbedderVariant
from .evaluation import Ladder, NetworkSynchroniser, SetUpOutputs, evaluate_setups, setup_labels
from .exporting import ExportPart, export_program
from .inference import SyncPredictor, SyncSettings, fingerprint, predict_batch
from .jnd import Border
from .losses import (
    LOG_SCALES,
    CornerLoss,
    GeneratorLoss,
    LossWeights,
    adversarial_loss,
    corner_loss,
    generator_loss,
    hinge_loss,
    presence_loss,
    targets_of,
)
from .network import SyncNetwork
from .players import drop_gradients, frozen, keep_sound_gradients, scheduled_adamw, zero_of
from .published import is_published, load_published, network_arguments, read_published
from .refinement import Detection, detect_quads
from .schedules import ScalingSchedule, ScalingShape, discriminator_factor
from .validation import SyncOutputs, evaluate


class SyncSealModule(ProvenanceModule):
    """Trains an embedder and a detector against attacks, and a discriminator against the embedder.

    Defaults are those of the published training. Weight decay is on all parameters, as there.

    Args:
        size: Side of what the networks see.
        embedder: ``gelu_group`` or ``relu_batch``: activation and norm.
        embedder_channels: Of each level of the U-Net.
        embedder_blocks: Residual blocks at its coarsest level.
        detector_depths: Blocks of each stage of the ConvNeXt.
        detector_dims: Channels of each stage.
        attenuation: Of the pattern where the eye would see it, or ``none``.
        jnd_border: ``zero`` as published, or ``reflect``.
        scaling_w: Strength of the pattern.
        scaling_i: Of the picture.
        scaling_schedule: How the strength falls by epochs.
        scaling_min: Where it ends.
        scaling_epochs: Length of the fall.
        scaling_start_epoch: Where it begins.
        geometric: Geometric attacks of the training.
        values: Changes of values of the training.
        corner_loss: ``mae`` or ``mse`` as published, ``smooth_l1``, or ``laplace``, which learns a
            scale for each corner.
        sync_weight: Of the corner loss.
        disc_weight: Of the adversarial loss; 0 for no discriminator.
        disc_start: Epoch from which the discriminator takes part.
        disc_layers: Of the discriminator.
        disc_inputs: 1 for luminance, 3 for colours.
        pixel_weight: Of the mean squared error of marked pictures.
        presence_weight: Of the presence logit's cross entropy.
        unmarked_share: Share of the batch that is also shown without a mark, for the presence logit; the reference
            shows none, which leaves the logit without meaning.
        finetune_detector_start: Epoch from which the detector is trained alone; null for never.
        clip_norm: Limit of the gradient's norm of embedder and detector.
        lr: Learning rate of both players.
        weight_decay: Of both.
        schedule: Course of the learning rate, per step.
        warmup_steps: Steps of linear rise.
        min_lr: Where cosine and one_cycle end.
        ema_decay: Decay of the average of the weights that is validated and saved; 0 for none.
        transforms: What validation and test attack marked pictures with.
        setups: Ladder of set-ups that a test makes in place of ``transforms``: ``published`` (21 × 21) or ``wibe``.
        compat: Whether those are made and decoded in the published arithmetic.
        refinements: How often evaluation and predict straighten a picture and look again.
        orientations: 1, or 8 to look at all flips and quarter turns.
        predict: What predict does with pictures.
        export_part: What is exported: ``embedder``, ``detector``, or ``published``: both, called as the published file.
        weights: File to start from: ours, a published checkpoint or TorchScript file; ``random`` to evaluate the
            networks as they are initialised.
    """

    def __init__(
        self,
        size: int = 256,
        embedder: EmbedderVariant = "gelu_group",
        embedder_channels: tuple[int, ...] = (16, 32, 64, 128),
        embedder_blocks: int = 8,
        detector_depths: tuple[int, ...] = (3, 3, 9, 3),
        detector_dims: tuple[int, ...] = (96, 192, 384, 768),
        attenuation: Literal["jnd_1_1", "jnd_3_3", "jnd_1_3", "jnd_3_1", "none"] = "jnd_1_1",
        jnd_border: Border = "zero",
        scaling_w: float = 0.2,
        scaling_i: float = 1.0,
        scaling_schedule: ScalingShape = "constant",
        scaling_min: float = 0.0,
        scaling_epochs: int = 0,
        scaling_start_epoch: int = 0,
        geometric: GeometricSettings | None = None,
        values: ValueSettings | None = None,
        corner_loss: CornerLoss = "mae",
        sync_weight: float = 1.0,
        disc_weight: float = 0.1,
        disc_start: int = 25,
        disc_layers: int = 2,
        disc_inputs: Literal[1, 3] = 1,
        pixel_weight: float = 0.0,
        presence_weight: float = 0.0,
        unmarked_share: float = 0.0,
        finetune_detector_start: int | None = None,
        clip_norm: float = 1000.0,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        min_lr: float = 0.0,
        ema_decay: float = 0.0,
        transforms: tuple[str, ...] = ("identity", "hflip", "rotate_10", "rotate_30", "crop_0.6", "perspective_0.3"),
        setups: Ladder | None = None,
        compat: bool = False,
        refinements: int = 0,
        orientations: Literal[1, 8] = 1,
        predict: SyncSettings | None = None,
        export_part: ExportPart = "detector",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= unmarked_share <= 1:
            raise ValueError(f"`unmarked_share` must be in [0, 1], got {unmarked_share}")
        if sync_weight <= 0:
            raise ValueError(f"`sync_weight` must be above 0, got {sync_weight}: nothing else teaches corners")
        self.geometric = _settings(GeometricSettings, geometric)
        self.values = _settings(ValueSettings, values)
        self.prediction = _settings(SyncSettings, predict)
        self.transforms = tuple(transforms)
        self.loss_weights = LossWeights(sync_weight, disc_weight, pixel_weight, presence_weight)
        self.scaling = ScalingSchedule(scaling_w, scaling_min, scaling_epochs, scaling_start_epoch, scaling_schedule)
        self.reliability: Reliability | None = None
        settings = {"geometric": self.geometric, "values": self.values, "predict": self.prediction}
        self.save_hyperparameters(ignore=list(settings))
        # Plain mappings: a checkpoint holds no classes.
        self.save_hyperparameters({name: asdict(value) for name, value in settings.items()})
        self.automatic_optimization = False
        self.build()

    def build(self) -> None:
        """Build the networks, then load ``weights`` of either layout."""
        self.configure_models()
        self.configure_losses()
        path = self.hparams["weights"]
        if path is None or path == RANDOM:
            return
        if not is_published(path):
            self.restore_metadata(load_weights(self, path).metadata)
            return
        published = read_published(path)
        load_published(self.network, published, self.discriminator)
        stored = network_arguments(published)["scaling_w"]
        if stored != self.network.scaling_w:
            rank_zero_warn(f"{path} was trained with scaling_w {stored}, model.scaling_w is {self.network.scaling_w}")

    def configure_models(self) -> None:
        """Build embedder, detector and discriminator."""
        h: Any = self.hparams
        self.network = SyncNetwork(
            h.embedder,
            h.embedder_channels,
            h.embedder_blocks,
            h.detector_depths,
            h.detector_dims,
            OUTPUTS + (LOG_SCALES if h.corner_loss == "laplace" else 0),
            h.attenuation,
            h.jnd_border,
            self.scaling.at(0),
            h.scaling_i,
            h.size,
        )
        self.discriminator = PatchDiscriminator(h.disc_layers, h.disc_inputs) if h.disc_weight > 0 else None

    def configure_losses(self) -> None:
        """Nothing to hold: losses are functions."""

    @property
    def looks(self) -> tuple[int, int]:
        """Refinements and orientations of a detection."""
        return self.hparams["refinements"], self.hparams["orientations"]

    @property
    def setup_labels(self) -> list[str]:
        """Names of the set-ups that a test makes."""
        ladder: Ladder | None = self.hparams["setups"]
        return [] if ladder is None else setup_labels(ladder)

    @property
    def reliability_score(self) -> Literal["presence", "spread"]:
        """What tells marked pictures from others."""
        return "presence" if self._presence_means_something() else "spread"

    def forward(self, image: Tensor) -> Tensor:
        """Return the detector's answer (B, 9 or more) to RGB images (B, 3, H, W) in [0, 1] of any size."""
        return self.network.detect(image)

    def detect(self, images: Tensor) -> Detection:
        """Return where the corners of images (B, 3, H, W) in [0, 1] were, by as many looks as are set."""
        by_presence = self._presence_means_something()
        return detect_quads(self.network.detect, images, self.network.size, *self.looks, by_presence)

    def on_fit_start(self) -> None:
        """Refuse half precision that training cannot do."""
        # Checkpoints are to hold the state after a step, which this warns of.
        warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization")
        if str(self.trainer.precision).startswith("16"):
            raise ValueError(f"trainer.precision {self.trainer.precision} overflows in the attenuation: use bf16-mixed")

    def on_train_start(self) -> None:
        """Drop a reliability where training begins: it is of other weights from here on."""
        if self.trainer.global_step == 0:
            self.reliability = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set what changes with the epoch."""
        super().on_train_batch_start(batch, batch_idx)
        self.network.scaling_w = self.scaling.at(self.current_epoch)
        if self.network.embedder.training == self._finetuning():  # frozen batch norms too
            self.network.embedder.train(not self._finetuning())

    def accumulation_obstacle(self) -> str | None:
        """Name the two players."""
        return "both players step after every batch: take a larger data.batch_size or more processes"

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Take one step of both players from one forward pass."""
        images: Tensor = batch["image"]
        optimizers = self.optimizers()
        players = optimizers if isinstance(optimizers, list) else [optimizers]
        losses, hinge = self.losses_of(images, batch["index"])
        # No parameter is in both losses, so that one backward pass gives each player its own gradient, and a reducer of
        # gradients over processes sees one pass as it expects.
        total = losses.total if hinge is None else losses.total + hinge
        for player in players:
            player.zero_grad()
        # Before the backward pass, where a run ends whose loss is not a number: its parts tell which one it was.
        self.log("train/loss", losses.total.detach(), prog_bar=True, batch_size=len(images))
        shown = {f"train/loss_{name}": value for name, value in losses.terms.items()}
        if hinge is not None:
            shown["train/loss_hinge"] = hinge.detach()
        shown["train/scaling_w"] = torch.tensor(self.network.scaling_w)
        self.log_dict(shown, batch_size=len(images))
        self.manual_backward(total + zero_of(self._idle(hinge)) if self.trainer.world_size > 1 else total)
        self._step(players, losses.total, hinge)

    def losses_of(self, images: Tensor, index: Tensor) -> tuple[GeneratorLoss, Tensor | None]:
        """Return the losses of embedder with detector, and of the discriminator where it takes part."""
        h: Any = self.hparams
        finetuning = self._finetuning()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not finetuning):
            marked = self.network.mark(images).marked
        unmarked = images[: round(h.unmarked_share * len(images))] if h.presence_weight > 0 else images[:0]
        attacked = self.attack(marked, unmarked, index)
        answer = self.network.detect(attacked.images)
        found, clean = answer[: len(images)], answer[len(images) :]
        target = targets_of(attacked.quads_px[: len(images)], images.shape[-2:], self.network.size)
        terms = {"corners": corner_loss(found[:, 1:], target.to(found), h.corner_loss)}
        if h.presence_weight > 0:
            terms["presence"] = presence_loss(found[:, 0], clean[:, 0])
        hinge = None
        if not finetuning and h.pixel_weight > 0:
            terms["pixels"] = image_mse(marked, images).mean()
        if not finetuning and self.discriminator is not None:
            factor = discriminator_factor(self.current_epoch, h.disc_start)
            hinge = factor * hinge_loss(self.discriminator(images), self.discriminator(marked.detach()))
            with frozen(self.discriminator):
                terms["discriminator"] = adversarial_loss(self.discriminator(marked))
            return generator_loss(terms, self.loss_weights, factor), hinge
        return generator_loss(terms, self.loss_weights), None

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> SyncOutputs:
        """Return what the callbacks read."""
        return evaluate(self.network.embed, self.detect, batch["image"], batch["index"], self.transforms)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> SyncOutputs | SetUpOutputs:
        """Return what the callbacks read: as in validation, or by set-ups where ``setups`` names them."""
        h: Any = self.hparams
        if h.setups is None:
            return self.validation_step(batch, batch_idx)
        synchroniser = NetworkSynchroniser(self.network, self.detect, h.compat)
        return evaluate_setups(synchroniser, batch["image"], batch["index"], h.setups, h.compat)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return ``records`` and ``images`` of a batch of images of any sizes."""
        return predict_batch(cast(SyncPredictor, self), batch, self.prediction)

    def prediction_fingerprint(self) -> str:
        """Return a hash of all that decides a record, so that a folder never mixes those of two models."""
        return fingerprint(self, self.prediction)

    def export_program(self) -> ExportProgram:
        """Return the chosen part with all that `sealmark export` puts around it."""
        return export_program(self.network, self.hparams["export_part"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW for embedder and detector, then one for the discriminator where there is one."""
        h: Any = self.hparams
        total = int(self.trainer.estimated_stepping_batches) if h.schedule != "constant" else 0
        settings = (h.lr, h.weight_decay, h.schedule, h.warmup_steps, h.min_lr, total)
        players = [player for player in (self.network, self.discriminator) if player is not None]
        return [scheduled_adamw(player, *settings) for player in players]  # type: ignore[return-value]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the strength in use and the reliability with the weights."""
        reliability = None if self.reliability is None else self.reliability.state()
        checkpoint["calibration"] = {"scaling_w": self.network.scaling_w, "reliability": reliability}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take both back, or that there was no reliability."""
        super().on_load_checkpoint(checkpoint)
        self.reliability = None
        self.restore_metadata(checkpoint)

    def restore_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Take the reliability that came with weights, and the strength where a schedule had changed it."""
        stored = metadata.get("calibration")
        if stored is None:
            return
        with usable("the calibration that came with the weights"):
            if self.scaling.shape != "constant":
                self.network.scaling_w = finite(stored["scaling_w"])
            if stored["reliability"] is not None:
                self.reliability = Reliability.from_state(stored["reliability"])

    def attack(self, marked: Tensor, unmarked: Tensor, index: Tensor) -> Attacked:
        """Return both attacked, marked ones first; draws depend on the epoch and a picture's index alone.

        Args:
            marked: (B, 3, H, W).
            unmarked: Some of the same pictures without a mark (U, 3, H, W).
            index: Of the B pictures.
        """
        draws = SampleDraws(self.sample_draws(index, streams=2).keys[: len(marked) + len(unmarked)])
        return attack(torch.cat([marked, unmarked]), self.geometric, self.values, draws)

    def _step(self, players: Sequence[LightningOptimizer], loss: Tensor, hinge: Tensor | None) -> None:
        """Clip and step, discriminator first. What is not a number moves nothing, on no process."""
        finite = torch.stack([loss.isfinite(), loss.isfinite() if hinge is None else hinge.isfinite()]).float()
        sound, sound_hinge = (self.sum_over_ranks(finite) == self.trainer.world_size).tolist()
        if self._finetuning():
            drop_gradients(self.network.embedder.parameters())
        limit: float = self.hparams["clip_norm"]
        norm = keep_sound_gradients(self.network, self.discriminator, sound, sound_hinge and hinge is not None, limit)
        self.log("train/gradient_norm", norm)
        # Lightning counts the steps of its wrappers: one a batch, whatever the number of players.
        for rival in players[1:]:
            rival.optimizer.step()
        players[0].step()
        schedulers = self.lr_schedulers()
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            cast(LambdaLR, scheduler).step()

    def _idle(self, hinge: Tensor | None) -> list[nn.Module]:
        """Return networks that the losses leave out."""
        idle: list[nn.Module] = [self.network.embedder] if self._finetuning() else []
        return idle if hinge is not None or self.discriminator is None else [*idle, self.discriminator]

    def _finetuning(self) -> bool:
        start: int | None = self.hparams["finetune_detector_start"]
        return start is not None and self.current_epoch >= start

    def _presence_means_something(self) -> bool:
        return bool(self.hparams["presence_weight"] > 0 and self.hparams["unmarked_share"] > 0)


def _settings(kind: type[Any], given: Any) -> Any:
    """Return settings as they are, from the mapping that a checkpoint keeps, or the defaults."""
    if given is None:
        return kind()
    return kind(**given) if isinstance(given, Mapping) else given
