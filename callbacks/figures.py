"""Pictures of what a method does, as files and to every logger that takes images."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from PIL import Image

from callbacks.evaluation import Stage, check_outputs
from lightning_modules.functional.pixels import to_picture

Picture = NDArray[np.uint8]

GAP = 4
CAPTION = 18
MIN_SIDE = 128
IGNORED = 128
_OUTLINE = (255, 48, 48)
_TRUE_OUTLINE = (48, 255, 96)


class FigurePanels(Callback, ABC):
    """Saves one picture a stage and epoch: a row for each of the first samples that rank zero sees.

    A subclass names the outputs it needs and the titles of the columns, and implements `row`.

    Args:
        num_samples: Number of rows.
        every_n_epochs: Validation epochs between pictures; the test stage always has one.
        stages: Stages that make pictures.
        output_dir: Folder for the files; `figures` in the run's log folder where not given.
    """

    required_outputs: ClassVar[tuple[str, ...]] = ()
    titles: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        num_samples: int = 8,
        every_n_epochs: int = 1,
        stages: Sequence[Stage] = ("val", "test"),
        output_dir: str | None = None,
    ) -> None:
        if num_samples < 1 or every_n_epochs < 1:
            raise ValueError(
                f"`num_samples` and `every_n_epochs` of {type(self).__name__} must be at least 1, "
                f"got {num_samples} and {every_n_epochs}"
            )
        self.num_samples = num_samples
        self.every_n_epochs = every_n_epochs
        self.stages = tuple(stages)
        self.output_dir = output_dir
        self._rows: list[list[Picture]] = []

    @abstractmethod
    def row(self, pl_module: LightningModule, outputs: Mapping[str, Any], position: int) -> list[Picture]:
        """The pictures of one sample of a batch, one for each title, all of one size."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the rows of the epoch before."""
        self._rows = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the rows of the epoch before."""
        self._rows = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws rows until there are enough."""
        fitting = trainer.state.fn == TrainerFn.FITTING
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0 or not fitting
        if "val" in self.stages and due and not trainer.sanity_checking:
            self._collect("validation_step", trainer, pl_module, outputs)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws rows until there are enough."""
        if "test" in self.stages:
            self._collect("test_step", trainer, pl_module, outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves and sends the picture."""
        self._publish("val", trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves and sends the picture."""
        self._publish("test", trainer)

    def _collect(
        self,
        step: str,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
    ) -> None:
        missing = self.num_samples - len(self._rows)
        if not trainer.is_global_zero or missing <= 0 or outputs is None:
            return
        check_outputs(self, ("index", *self.required_outputs), outputs, pl_module, step)
        for position in range(min(missing, len(outputs["index"]))):
            self._rows.append(self.row(pl_module, outputs, position))

    def _publish(self, stage: Stage, trainer: Trainer) -> None:
        log_dir = trainer.log_dir  # talks to all ranks: never behind a rank test
        if not self._rows:
            return
        picture = panel(self._rows, self.titles)
        self._rows = []
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(
                    f"{stage}/panel", picture, global_step=trainer.global_step, dataformats="HWC"
                )
            elif isinstance(logger, WandbLogger):
                logger.log_image(f"{stage}/panel", images=[picture])
        if self.output_dir is not None or log_dir is not None:  # fast_dev_run has no folder
            folder = Path(self.output_dir or Path(str(log_dir)) / "figures")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{stage}_epoch{trainer.current_epoch}.png")


class SegmentationFigures(FigurePanels):
    """Input, truth, probability and the outlines of both on the input.

    Truth is white with the ignore band in grey; outlines are red for the prediction, green for the truth.

    Args:
        num_samples: Number of rows.
        every_n_epochs: Validation epochs between pictures; the test stage always has one.
        stages: Stages that make pictures.
        output_dir: Folder for the files; `figures` in the run's log folder where not given.
    """

    required_outputs: ClassVar[tuple[str, ...]] = ("image", "mask", "ignore", "probability")
    titles: ClassVar[tuple[str, ...]] = ("input", "truth", "probability", "found (red), true (green)")

    def row(self, pl_module: LightningModule, outputs: Mapping[str, Any], position: int) -> list[Picture]:
        """Four pictures of the sample's size."""
        image = to_picture(outputs["image"][position])
        mask = outputs["mask"][position, 0].detach().cpu().numpy() > 0.5
        ignore = outputs["ignore"][position, 0].detach().cpu().numpy().astype(np.bool_)
        probability = outputs["probability"][position, 0].detach().float().cpu().numpy()
        found = probability > float(getattr(pl_module, "threshold", 0.5))
        outlined = outline(outline(image, mask, _TRUE_OUTLINE), found, _OUTLINE)
        return [image, truth_picture(mask, ignore), heat_map(probability), outlined]


def panel(rows: Sequence[Sequence[Picture]], titles: Sequence[str]) -> Picture:
    """Rows of pictures on white under captions.

    Small pictures are enlarged by a whole factor without smoothing. Cells are as large as the largest picture,
    each picture at the top left of its cell.

    Args:
        rows: Pictures (H, W, 3), as many a row as there are titles.
        titles: Captions of the columns.
    """
    for number, row in enumerate(rows):
        if len(row) != len(titles):
            raise ValueError(f"row {number} has {len(row)} pictures for {len(titles)} titles")
    cells = [[_enlarge(picture) for picture in row] for row in rows]
    width = max(picture.shape[1] for row in cells for picture in row)
    heights = [max(picture.shape[0] for picture in row) for row in cells]
    shape = (CAPTION + sum(heights) + GAP * len(cells), (width + GAP) * len(titles) - GAP, 3)
    canvas = np.full(shape, 255, np.uint8)
    for column, title in enumerate(titles):
        _caption(canvas[:CAPTION, column * (width + GAP) :][:, :width], title)
    top = CAPTION
    for row, height in zip(cells, heights, strict=True):
        for column, picture in enumerate(row):
            left = column * (width + GAP)
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        top += height + GAP
    return canvas


def truth_picture(mask: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> Picture:
    """White where marked, black elsewhere, grey where nothing is evaluated."""
    grey = np.where(ignore, IGNORED, np.where(mask, 255, 0)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def heat_map(values: NDArray[np.float32]) -> Picture:
    """Values in [0, 1] as colours from black over red to white-yellow."""
    levels = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    bgr = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(bgr[..., ::-1])


def outline(image: Picture, mask: NDArray[np.bool_], color: tuple[int, int, int]) -> Picture:
    """The image with the outermost pixels of the mask painted."""
    filled = mask.astype(np.uint8)
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
    edge = filled - cv2.erode(filled, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    painted = image.copy()
    painted[edge > 0] = color
    return painted


def _enlarge(picture: Picture) -> Picture:
    factor = max(1, round(MIN_SIDE / max(picture.shape[:2])))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _caption(area: Picture, title: str) -> None:
    """Writes the title into the area, made smaller until it fits."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.4
    (width, _), _ = cv2.getTextSize(title, font, scale, 1)
    scale *= min(1.0, (area.shape[1] - 4) / max(width, 1))
    text = np.ascontiguousarray(area)
    cv2.putText(text, title, (2, CAPTION - 6), font, scale, (0, 0, 0), 1, cv2.LINE_AA)
    area[:] = text
