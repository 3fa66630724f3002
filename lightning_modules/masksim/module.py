"""MaskSim: was a picture generated, and by which generator?"""

import hashlib
import itertools
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ExponentialLR

from lightning_modules.base import RANDOM, ProvenanceModule
from lightning_modules.exporting import ExportProgram
from lightning_modules.functional.detection_calibration import Calibration
from lightning_modules.functional.pixels import to_unit
from lightning_modules.weights import load_weights, usable

from .bank import Color, DetectorBank, Trunk
from .denoiser import DEPTH, WIDTH, DnCNN, full_precision
from .exporting import export_program
from .heads import HeadBank
from .inference import DetectionSettings, predict_batch
from .losses import (
    LossName,
    class_counts,
    loss_sums,
    sample_losses,
    sample_weights,
    samples_of_heads,
    targets_of_heads,
    training_similarity,
)
from .network import MaskSimNetwork, Preprocess
from .published import files_of_heads, find_detectors, holds_published, load_bank, load_denoiser


class DetectionOutputs(TypedDict):
    """What ``validation_step`` and ``test_step`` return, for callbacks to read."""

    index: Tensor
    """Stable position in the data set, int64 (B,)."""
    logit: Tensor
    """Of each view and head, float32 (B, V, G)."""
    label: Tensor
    """1 for generated, float32 (B,)."""
    generator: list[str]
    """Names, `real` for real ones."""


class MaskSimModule(ProvenanceModule):
    """Learns a head for each generator, from real pictures and that generator's.

    Defaults are the reference's; it trains a network for each generator, here all heads share one trunk.

    Args:
        generators: Names of the heads, in the order of the logits.
        img_size: Side of the window.
        preprocess: What the spectrum is taken of: the residual of a denoiser, of a learnt 3 × 3 filter, a cross
            difference, or the window itself.
        denoiser_weights: File to start the denoiser from: the published one, or one that `DenoiserModule` trained.
        denoiser_depth: Convolutions of the denoiser; the spectrum is two pixels smaller for each.
        denoiser_width: Its features.
        freeze_denoiser: Whether preprocessing stays as it is, with its batch norm.
        shared_trunk: Whether all heads have one preprocessing in common; else each has its own, as published.
        num_masks: Masks a head; the most similar counts.
        kernel_size: Odd side of the mean filter that smooths masks.
        tied: Whether mirrored frequencies share their mask and reference.
        relative_floor: Added to magnitudes before the logarithm, as a share of their median: it bounds gradients.
            0 for the reference's 1e-10.
        color: What windows are turned into: YCbCr, or RGB as detectors of January 2024 take it.
        truncate_color: Whether YCbCr is cut down to 8 bits, as published detectors have learnt it.
        loss: ``reference``: of probabilities, negatives by the size of their similarity, a plain mean.
            ``sealmark``: of logits, with equal shares of real and generated samples for each head.
        other_generators: What pictures of other generators are to a head: not there, or negatives like real ones.
        lr: Learning rate.
        denoiser_lr: Learning rate of the denoiser.
        lr_gamma: Factor on both after each epoch; 1 for constant rates.
        weight_decay: Decay of all weights; the reference found none to converge best.
        optimizer: Which optimiser.
        ema_decay: Decay of the average of the weights that is validated and saved; 0 for none.
        half_denoiser: Whether the denoiser computes in float16 outside of training; for GPUs.
        crops: Where predict looks: the centre, five places, or a grid over the picture.
        max_crops: Of a grid.
        maps: Whether predict draws similarity maps.
        peaks: Peaks of the map that predict lists.
        weights: File to start from: ours, or published checkpoints: one, several, or a folder of them, found by the
            generator in their names. ``random`` to evaluate the network as it is initialised.
    """

    def __init__(
        self,
        generators: list[str],
        img_size: int = 512,
        preprocess: Preprocess = "dncnn",
        denoiser_weights: str | None = None,
        denoiser_depth: int = DEPTH,
        denoiser_width: int = WIDTH,
        freeze_denoiser: bool = False,
        shared_trunk: bool = True,
        num_masks: int = 1,
        kernel_size: int = 3,
        tied: bool = False,
        relative_floor: float = 0.0,
        color: Color = "ycbcr",
        truncate_color: bool = True,
        loss: LossName = "reference",
        other_generators: Literal["ignore", "negative"] = "ignore",
        lr: float = 1e-3,
        denoiser_lr: float = 1e-4,
        lr_gamma: float = 0.99,
        weight_decay: float = 0.0,
        optimizer: Literal["adam", "adamw"] = "adam",
        ema_decay: float = 0.0,
        half_denoiser: bool = False,
        crops: Literal["centre", "five", "grid"] = "centre",
        max_crops: int = 16,
        maps: bool = True,
        peaks: int = 5,
        weights: str | list[str] | None = None,
    ) -> None:
        super().__init__()
        if not generators or len(set(generators)) != len(generators) or "real" in generators:
            raise ValueError(f"`generators` must be different names, none of them real, got {generators}")
        if relative_floor < 0:
            raise ValueError(f"`relative_floor` must not be negative, got {relative_floor}")
        if loss not in ("reference", "sealmark"):
            raise ValueError(f"`loss` must be reference or sealmark, got {loss!r}")
        if other_generators not in ("ignore", "negative"):
            raise ValueError(f"`other_generators` must be ignore or negative, got {other_generators!r}")
        self.detection = DetectionSettings(crops=crops, max_crops=max_crops, maps=maps, peaks=peaks)
        self.calibration: Calibration | None = None
        self.save_hyperparameters()
        self.build()

    def build(self) -> None:
        """Build the trunks and heads, then load ``weights``, or ``denoiser_weights`` where there are none."""
        self.configure_models()
        self.configure_losses()
        h: Any = self.hparams
        if h.weights is None or h.weights == RANDOM:
            for trunk in self._own_trunks() if h.denoiser_weights is not None else ():
                load_denoiser(_denoiser_of(trunk), h.denoiser_weights)
        elif holds_published(h.weights):
            stated = {name: h[name] for name in ("img_size", "preprocess", "num_masks", "kernel_size")}
            files = files_of_heads(self.generators, find_detectors(h.weights))
            load_bank(self._own_trunks(), self.heads, files, stated)
        else:
            self.restore_metadata(load_weights(self, h.weights).metadata)

    def configure_models(self) -> None:
        """Build the trunks and heads."""
        h: Any = self.hparams
        self.generators: tuple[str, ...] = tuple(h.generators)
        heads = len(self.generators)
        count = 1 if h.shared_trunk else heads
        settings = (h.color, h.truncate_color, h.relative_floor, h.denoiser_depth, h.denoiser_width)
        trunks = [Trunk(h.img_size, h.preprocess, *settings) for _ in range(count)]
        self.trunks = nn.ModuleList(trunks)
        self.trunk_of = [0] * heads if h.shared_trunk else list(range(heads))
        self.heads = HeadBank(heads, trunks[0].window_hw, 3, h.num_masks, h.kernel_size, h.tied)
        self.trunks.requires_grad_(not h.freeze_denoiser and h.preprocess != "cross_diff")
        self.trunks.train(not h.freeze_denoiser)  # fit leaves modes as they are
        self._scorer: tuple[Any, DetectorBank] | None = None

    def configure_losses(self) -> None:
        """Prepare the sums of the validation loss."""
        self._validation = torch.zeros(2, 2, len(self.generators), dtype=torch.float64)

    def train(self, mode: bool = True) -> "MaskSimModule":
        """Set the mode; frozen preprocessing keeps to its running statistics."""
        super().train(mode)
        self._scorer = None
        if self.hparams["freeze_denoiser"]:
            self.trunks.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, G) of RGB windows (B, 3, H, W) in [0, 1] of the window's side."""
        spectra = self._spectra({"image": image})
        return self.heads.logit(self.heads(spectra, self.trunk_of))

    def scorer(self) -> DetectorBank:
        """Return the bank that answers as this module does in eval mode; it is kept until weights change."""
        tensors = itertools.chain(self.trunks.parameters(), self.heads.parameters(), self.buffers())
        state = tuple((t.data_ptr(), t.device, 0 if t.is_inference() else t._version) for t in tensors)
        if self._scorer is None or self._scorer[0] != state:
            half = self.hparams["half_denoiser"]
            self._scorer = state, DetectorBank(self.generators, self._own_trunks(), self.heads, half)
        return self._scorer[1]

    def cache_spectrum(self, image: Tensor) -> Tensor:
        """Return half-plane log spectra (B, 3, h, w // 2 + 1) of windows, to train heads from; float16 will do."""
        spectra = self.scorer().log_spectrum(to_unit(image))
        if len(spectra) != 1:
            raise ValueError(f"{len(spectra)} trunks give different spectra, and a cache holds one: share the trunk")
        return spectra[0]

    def accumulation_obstacle(self) -> str | None:
        """Name the heads' norm and means, which are over the batch."""
        return (
            "each head's norm and loss are over those samples of the batch that it learns from: take a larger "
            "data.batch_size or more processes"
        )

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the sum of the heads' losses, each the mean over its samples of all processes."""
        h: Any = self.hparams
        if unknown := sorted({*batch["generator"]} - {"real", *self.generators}):
            raise ValueError(
                f"training pictures of {', '.join(unknown)} have no head: add it to model.generators "
                f"({', '.join(self.generators)}) or take it out of the data"
            )
        positive, selected = self._roles(batch)
        with full_precision(self.device.type):
            similarity = self.heads(self._spectra(batch), self.trunk_of, selected, self.sum_over_ranks)
            logit = self.heads.logit(training_similarity(similarity, positive, h.loss))
            counts = self.sum_over_ranks(class_counts(positive, selected)).to(logit.dtype)
            weights = sample_weights(positive, selected, counts, balanced=h.loss == "sealmark")
            # Processes average their gradients; the sum of their parts is the loss.
            loss = (sample_losses(logit, positive, h.loss) * weights).sum() * self._processes()
        shown = loss.detach() / len(self.generators)
        self.log("train/loss", shown, prog_bar=True, sync_dist=True, batch_size=len(positive))
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass in full precision, as the forward pass is."""
        with full_precision(self.device.type):
            super().backward(loss, *args, **kwargs)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> DetectionOutputs:
        """Return what the callbacks read; the first view counts for ``val/loss``."""
        outputs = self.test_step(batch, batch_idx)
        positive, selected = self._roles(batch)
        losses = sample_losses(outputs["logit"][:, 0], positive, self.hparams["loss"])
        self._validation += loss_sums(losses, positive, selected, by_batch=self.hparams["loss"] == "reference")
        return outputs

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> DetectionOutputs:
        """Return what the callbacks read."""
        values = batch["spectrum" if "spectrum" in batch else "image"]
        views = values if values.ndim == 5 else values[:, None]
        flat, bank = views.flatten(0, 1), self.scorer()
        logit = bank.score(self._cached(flat)[None]) if "spectrum" in batch else bank(to_unit(flat))
        return {
            "index": batch["index"],
            "logit": logit.float().unflatten(0, views.shape[:2]),
            "label": batch["label"],
            "generator": list(batch["generator"]),
        }

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return ``records`` and ``images`` of a batch of images of any sizes."""
        return predict_batch(self, batch, self.detection)

    def export_program(self) -> ExportProgram:
        """Return the bank with all that `sealmark export` puts around it."""
        return export_program(self)

    def on_validation_epoch_start(self) -> None:
        """Forget sums and maps; averaged weights are put in place without leaving a trace of it."""
        self._validation = torch.zeros_like(self._validation, device=self.device)
        self._scorer = None

    def on_test_epoch_start(self) -> None:
        """Make maps of the weights that are in place now."""
        self._scorer = None

    on_predict_epoch_start = on_test_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Log the mean of the two classes' losses, mean over the heads that have both."""
        sums, counts = self.sum_over_ranks(self._validation).unbind()
        negative, positive = (sums / counts).unbind()  # nan where there is nothing
        for name, values in (("", (negative + positive) / 2), ("_neg", negative), ("_pos", positive)):
            self.log(f"val/loss{name}", values.nanmean().float(), prog_bar=not name, sync_dist=True)

    def on_train_start(self) -> None:
        """Drop a calibration where training begins: it is of other weights from here on."""
        if self.trainer.global_step == 0:
            self.calibration = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the calibration with the weights."""
        if self.calibration is not None:
            checkpoint["calibration"] = self.calibration.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back the calibration, or that there was none."""
        super().on_load_checkpoint(checkpoint)
        self.calibration = None
        self.restore_metadata(checkpoint)

    def restore_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Take the calibration that came with weights."""
        if "calibration" in metadata:
            with usable("the calibration that came with the weights"):
                calibration = Calibration.from_state(metadata["calibration"])
            if calibration.generators != self.generators:
                raise ValueError(
                    f"the calibration is of {', '.join(calibration.generators)}, model.generators are "
                    f"{', '.join(self.generators)}: give the same in the same order, or calibrate again"
                )
            self.calibration = calibration

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam with a rate for the denoiser and one for the rest, and a schedule by epochs."""
        h: Any = self.hparams
        own = [p for p in self.trunks.parameters() if p.requires_grad and h.preprocess == "dncnn"]
        kept = {id(p) for p in own}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in kept]
        groups = [{"params": rest, "lr": h.lr}] + ([{"params": own, "lr": h.denoiser_lr}] if own else [])
        kinds: dict[str, type[Optimizer]] = {"adam": Adam, "adamw": AdamW}
        if h.optimizer not in kinds:
            raise ValueError(f"`optimizer` must be adam or adamw, got {h.optimizer!r}")
        optimizer = kinds[h.optimizer](groups, lr=h.lr, weight_decay=h.weight_decay)  # type: ignore[call-arg]
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": ExponentialLR(optimizer, h.lr_gamma), "interval": "epoch"},
        }

    def detector(self, generator: str) -> MaskSimNetwork:
        """Return one head with its trunk as a published detector, to be written by `published.write_detector`."""
        h: Any = self.hparams
        if h.relative_floor or h.color != "ycbcr" or not h.truncate_color:
            raise ValueError("a published detector has no relative_floor, and color ycbcr with truncate_color")
        head = self.generators.index(generator)
        sizes = (h.img_size, h.preprocess, h.num_masks, h.kernel_size, 3, False, h.denoiser_depth, h.denoiser_width)
        network = MaskSimNetwork(*sizes).to(self.heads.mix)
        self._own_trunks()[self.trunk_of[head]].write_detector(network)
        self.heads.write_detector(head, network)
        return network.eval()

    def prediction_fingerprint(self) -> str:
        """Return a hash of all that decides a record, so that a folder never mixes those of two models."""
        digest = hashlib.sha256(repr((self.generators, self.detection)).encode())
        if self.calibration is not None:
            digest.update(self.calibration.scores.tobytes())
        for key, value in self.state_dict().items():
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _roles(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return what samples are to the heads: generated by theirs, and learnt from, bool (B, G) each."""
        places = {name: place for place, name in enumerate(self.generators)}
        generated = batch["label"] > 0.5
        head = torch.tensor([places.get(name, -1) for name in batch["generator"]], device=generated.device)
        count, others = len(self.generators), self.hparams["other_generators"] == "negative"
        return targets_of_heads(generated, head, count), samples_of_heads(generated, head, count, others)

    def _own_trunks(self) -> list[Trunk]:
        return cast(list[Trunk], list(self.trunks))

    def _spectra(self, batch: Mapping[str, Any]) -> list[Tensor]:
        if "spectrum" in batch:
            return [self._cached(batch["spectrum"])]
        image = to_unit(batch["image"])
        return [trunk(image) for trunk in self.trunks]

    def _cached(self, spectrum: Tensor) -> Tensor:
        """Return cached spectra as the heads take them."""
        height, width = self.heads.size
        if len(self.trunks) > 1 or spectrum.shape[-2:] != (height, width // 2 + 1):
            raise ValueError(
                f"cached spectra of {tuple(spectrum.shape[-2:])} do not fit {len(self.trunks)} trunk(s) of "
                f"{(height, width // 2 + 1)}: make the cache with this model's arguments, one trunk for all heads"
            )
        return spectrum.to(self.heads.mix.dtype)

    def _processes(self) -> int:
        return 1 if self._trainer is None else int(self.trainer.world_size)


def _denoiser_of(trunk: Trunk) -> DnCNN:
    if not isinstance(trunk.preproc, DnCNN):
        raise ValueError("`denoiser_weights` need `preprocess: dncnn`: set it or leave the weights out")
    return trunk.preproc
