"""SSCD: descriptors by which edited copies of a picture are found again."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.base import RANDOM, ProvenanceModule, make_optimizer
from lightning_modules.exporting import ExportProgram
from lightning_modules.functional.passes import equal_together, side_by_side
from lightning_modules.functional.pixels import to_unit
from lightning_modules.functional.resizing import resize, resized_hw

from .embedding import embed
from .exporting import ExportInput, export_program
from .lars import LARS
from .losses import copy_loss
from .mixing import draw_mixture, mix, mixed_sources
from .network import DescriptorNetwork
from .published import key_map_into

IMAGES_OF_BASE_LR = 256


class DescriptorOutputs(TypedDict):
    """What ``validation_step`` and ``test_step`` return, for callbacks to read."""

    index: Tensor
    """Stable position in the data set, int64 (B,)."""
    descriptor: Tensor
    """Length one, float32 (B, D)."""


class SSCDModule(ProvenanceModule):
    """Learns descriptors from two views of each picture of a batch; all other pictures are the negatives.

    Defaults are the reference's, whose recipes need a batch of 4096 pictures.

    Args:
        backbone: ``resnet18``, ``resnet50``, ``resnext101_32x4d``, ``resnext101_32x8d`` or any timm model.
        dims: Numbers a descriptor; null takes the pooled features, without a projection.
        pool_exponent: Of GeM pooling.
        pretrained: Whether a timm trunk starts from timm's weights, where they can be had.
        temperature: Divides similarities in InfoNCE.
        entropy_weight: Of the term that spreads descriptors. 30 trains with the reference's network, batch and
            optimiser; elsewhere begin at 10 and watch ``train/positive_sim``: where it falls, repulsion has won.
        mixup: Whether views are mixed (5 % of them), and positives are views that share a picture.
        micro_batch: Views at a time in the network, none of whose activations are kept: the loss and its gradient are
            those of the whole batch, the memory that of one part, at the price of a second forward pass. Batch norm
            sees a part at a time. Null takes all at once.
        lr: Peak learning rate; per 256 pictures of the global batch where ``scale_lr``.
        scale_lr: Whether ``lr`` is multiplied by pictures of a step over all processes / 256.
        weight_decay: Decay of weights; LARS takes it into its scaling.
        optimizer: Which optimiser.
        lars_exclude_norm: Whether LARS leaves norms and biases to plain momentum; the reference adapts them too.
        momentum: Of LARS.
        schedule: Course of the learning rate, per step.
        warmup_share: Share of the steps with linear rise; the reference's is 5 of 100 epochs. From 0 at the first step.
        min_lr: Where cosine and one_cycle end, as a share of the peak.
        ema_decay: Decay of the average of the weights that is validated and saved; 0 for none.
        channels_last: Memory layout of the network.
        resize: How images to predict are resized: ``short_288`` (the published default), ``skew_320``, ``long_800``.
        export_input: What an exported file takes: an ``image`` in [0, 1], or one ``normalised`` by ImageNet's mean and
            deviation, as the published TorchScript files do.
        weights: File to start from: ours, a checkpoint, or one of the three published formats; ``random`` to evaluate
            the network as it is initialised.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        dims: int | None = 512,
        pool_exponent: float = 3.0,
        pretrained: bool = False,
        temperature: float = 0.05,
        entropy_weight: float = 30.0,
        mixup: bool = False,
        micro_batch: int | None = None,
        lr: float = 0.3,
        scale_lr: bool = True,
        weight_decay: float = 1e-6,
        optimizer: Literal["lars", "sgd", "adam", "adamw"] = "lars",
        lars_exclude_norm: bool = False,
        momentum: float = 0.9,
        schedule: Literal["constant", "cosine"] = "cosine",
        warmup_share: float = 0.05,
        min_lr: float = 0.0,
        ema_decay: float = 0.0,
        channels_last: bool = True,
        resize: str = "short_288",
        export_input: ExportInput = "image",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= warmup_share < 1:
            raise ValueError(f"`warmup_share` must be in [0, 1), got {warmup_share}")
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"`micro_batch` must be at least 1 or null, got {micro_batch}")
        resized_hw(1, 1, resize)  # says what is wrong with it
        self.save_hyperparameters()
        self.build()

    @property
    def weights_key_map(self) -> Callable[[str], str]:  # type: ignore[override]
        """Places the keys of both published layouts where this module has them."""
        return key_map_into(self)

    def configure_models(self) -> None:
        """Build the network."""
        h: Any = self.hparams
        self.network = DescriptorNetwork(
            h.backbone, h.dims, h.pool_exponent, h.pretrained and h.weights in (None, RANDOM)
        )
        if h.channels_last:
            self.network.to(memory_format=torch.channels_last)

    def configure_losses(self) -> None:
        """Nothing to hold: the loss is a function."""

    def forward(self, image: Tensor) -> Tensor:
        """Return descriptors (B, D) of length one of RGB images (B, 3, H, W) in [0, 1] of any size."""
        descriptors: Tensor = self.network(self._laid_out(image))
        return descriptors

    def accumulation_obstacle(self) -> str | None:
        """Name the negatives, which are all other pictures of the batch."""
        return (
            "each picture is told from all others of its batch: take a larger data.batch_size, with model.micro_batch "
            "where memory is short, or more processes"
        )

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of two views of each picture against those of all processes."""
        h: Any = self.hparams
        # All first views, then all second ones, as the reference orders them: mixing pairs the ends.
        views = batch["views"].transpose(0, 1).flatten(0, 1)
        sources = batch["index"].repeat(batch["views"].shape[1])
        if h.mixup:
            # Seeded for this batch by the base class, so that a resumed run mixes alike.
            mixture = draw_mixture(len(views), views.shape[-2:], np.random.default_rng(torch.initial_seed()))
            views, shown = mix(views, mixture), mixed_sources(sources, mixture.share)
        else:
            shown = sources[:, None]
        rows = embed(self.network, self._laid_out(views), h.micro_batch)
        columns, column_sources = self._gathered(rows), self._gathered(shown)
        loss = copy_loss(
            rows,
            columns,
            shown,
            column_sources,
            first_column=self.global_rank * len(rows),
            temperature=h.temperature,
            entropy_weight=h.entropy_weight,
            per_row=h.mixup,
        )
        size = len(batch["index"])
        self.log("train/loss", loss.total, prog_bar=True, batch_size=size)
        for name in ("infonce", "entropy", "positive_sim", "negative_sim", "nearest_negative_sim"):
            self.log(f"train/{name}", getattr(loss, name), batch_size=size)
        return loss.total

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> DescriptorOutputs:
        """Return what the callbacks read."""
        return {"index": batch["index"], "descriptor": self.describe(batch["image"])}

    test_step = validation_step

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return ``records`` and ``descriptors`` of a batch of images of any sizes."""
        records = [
            {"path": str(path), "index": int(index)} for path, index in zip(batch["path"], batch["index"], strict=True)
        ]
        return {"records": records, "images": [], "descriptors": self._describe_each(batch["image"])}

    def describe(self, images: Tensor) -> Tensor:
        """Return descriptors (B, D), float32, of images (B, 3, H, W), uint8 or in [0, 1]."""
        return self.forward(to_unit(images.to(self.device))).float()

    def _describe_each(self, images: Sequence[Tensor]) -> Tensor:
        """Return descriptors (B, D), float32, of images of any sizes, resized as ``resize`` says."""
        mode = self.hparams["resize"]
        found = torch.empty(len(images), self.network.dims, device=self.device)

        def run(part: list[int]) -> None:
            with torch.inference_mode():
                found[part] = self.describe(torch.stack([resize(images[position], mode) for position in part]))

        sizes = {position: resized_hw(image.shape[-2], image.shape[-1], mode) for position, image in enumerate(images)}
        step = 1 if self.device.type == "cpu" else len(images)  # one by one keeps all cores busy to the end
        side_by_side(run, equal_together(sizes, step), self.device)
        return found

    def export_program(self) -> ExportProgram:
        """Return the network with all that `sealmark export` puts around it."""
        h: Any = self.hparams
        return export_program(self.network, h.backbone, h.resize, h.export_input)

    def prediction_fingerprint(self) -> str:
        """Return a hash of all that decides a descriptor, so that a folder never mixes those of two models."""
        digest = hashlib.sha256(repr((self.hparams["resize"], self.hparams["pool_exponent"])).encode())
        for key, value in self.state_dict().items():
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser, with a schedule that steps once per optimiser step."""
        h: Any = self.hparams
        optimizer = self._optimizer(h.lr * (self._images_of_step() / IMAGES_OF_BASE_LR if h.scale_lr else 1.0))
        total = int(self.trainer.estimated_stepping_batches) if h.schedule != "constant" or h.warmup_share else 0
        warmup = round(h.warmup_share * total)

        def factor(step: int) -> float:
            return learning_rate_factor(step, total, warmup, h.schedule == "cosine", h.min_lr)

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }

    def _optimizer(self, lr: float) -> Optimizer:
        h: Any = self.hparams
        if h.optimizer != "lars":
            return make_optimizer(self, h.optimizer, lr, h.weight_decay)
        parameters = [p for p in self.parameters() if p.requires_grad]
        if not h.lars_exclude_norm:
            return LARS(parameters, lr, h.momentum, h.weight_decay)
        groups = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "adapt": False},
        ]
        return LARS(groups, lr, h.momentum, h.weight_decay)

    def _images_of_step(self) -> int:
        batch_size = getattr(getattr(self.trainer, "datamodule", None), "batch_size", None)
        if batch_size is None:
            raise ValueError(
                "model.scale_lr needs a datamodule that has a batch_size: use one or set scale_lr to false"
            )
        return int(batch_size) * self.trainer.world_size  # batches are never accumulated here

    def _gathered(self, values: Tensor) -> Tensor:
        """Return the values of all processes, rank after rank, with gradients where there are any."""
        if self._trainer is None or self.trainer.world_size == 1:
            return values
        gathered = self.all_gather(values, sync_grads=values.requires_grad)
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1)

    def _laid_out(self, image: Tensor) -> Tensor:
        if self.hparams["channels_last"]:
            return image.contiguous(memory_format=torch.channels_last)
        return image


def learning_rate_factor(step: int, total: int, warmup: int, cosine: bool, floor: float = 0.0) -> float:
    """Return the learning rate at a step as a share of its peak: linear from 0, then constant or a cosine.

    As in the reference the peak is reached at the last step of the warm-up and kept at the next.
    """
    if step < warmup:
        return step / max(1, warmup - 1)
    if not cosine:
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return float(floor + (1 - floor) * 0.5 * (1 + np.cos(np.pi * progress)))
