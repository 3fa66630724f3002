"""Pictures of what a forger did: drawn, made real, the change, and a real one."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lightning.pytorch import LightningModule

from callbacks.figures import FigurePanels, Picture
from lightning_modules.functional.pixels import to_picture

_GAIN = 2.0  # a change of half the range is full


class RealisedFigures(FigurePanels):
    """The drawn crop, what the forger made of it, the change around grey, and a real crop of something else.

    Args:
        num_samples: Number of rows.
        every_n_epochs: Validation epochs between pictures; the test stage always has one.
        stages: Stages that make pictures.
        output_dir: Folder for the files; `figures` in the run's log folder where not given.
    """

    required_outputs: ClassVar[tuple[str, ...]] = ("image", "realised", "real")
    titles: ClassVar[tuple[str, ...]] = ("drawn", "realised", "change (x2)", "real")

    def row(self, pl_module: LightningModule, outputs: Mapping[str, Any], position: int) -> list[Picture]:
        """Four pictures of the sample's size."""
        drawn, made, real = (outputs[key][position].float() for key in ("image", "realised", "real"))
        change = (0.5 + _GAIN * (made - drawn) / 2).clamp(0, 1)
        return [to_picture(drawn), to_picture(made), to_picture(change), to_picture(real)]
