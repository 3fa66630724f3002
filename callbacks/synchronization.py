"""How well are the corners found: errors in pixels for each transform, and how much the mark changes a picture."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.evaluation import EvaluationCallback, Stage
from callbacks.metrics.bootstrap import Statistic, mean_of, ratio_of_sums
from callbacks.metrics.sample_table import Table

WITHIN_PX = (1, 3, 5, 10)
_QUALITY = ("psnr", "ssim")
# Columns of errors, by the outputs that they come from.
_ERRORS = {"error": "corner_error_px", "identity": "identity_error_px", "unmarked": "unmarked_error_px"}


class SynchronizationEvaluation(EvaluationCallback):
    """Reports corner errors of attacked marked pictures, and PSNR and SSIM of marked ones.

    The error of a picture is the mean distance of its four corners to where they really were, in pixels of the
    original. `within_3_px` is the share of pictures with an error of at most 3 px. `identity_error_px` is what always
    answering "not moved" would give, `error_to_identity` the ratio of both means. `unmarked_error_px` is the error in
    the same pictures without a mark: where it is as small, the mark was not needed, black corners tell a rotation.
    `…/NAME` is over one transform; the others count each transform of a picture once.

    Args:
        stages: Stages that end with a table on the terminal and files; values are logged in every stage.
        output_dir: Folder for the files; the run's log folder where not given.
        resamples: Number of bootstrap data sets behind the 95 % intervals; pictures come with all transforms.
        bootstrap_seed: Seed of the resampling.
    """

    required_outputs: ClassVar[tuple[str, ...]] = (
        "corner_error_px",
        "identity_error_px",
        "unmarked_error_px",
        "transforms",
        *_QUALITY,
    )
    _transforms: tuple[str, ...] = ()

    def __init__(
        self,
        stages: Sequence[Stage] = ("test",),
        output_dir: str | None = None,
        resamples: int = 1000,
        bootstrap_seed: int = 0,
    ) -> None:
        super().__init__(stages, output_dir, resamples, bootstrap_seed)

    @property
    def columns(self) -> tuple[str, ...]:
        """Errors, found, of the identity and without a mark, for each transform; quality."""
        errors = (f"{kind}/{name}" for kind in _ERRORS for name in self._transforms)
        return (*errors, *_QUALITY)

    def rows(
        self,
        pl_module: LightningModule,
        outputs: Mapping[str, Any],
        batch: Any,
    ) -> dict[str, Tensor | Sequence[str]]:
        """The columns of each picture."""
        if tuple(outputs["transforms"]) != self._transforms:
            raise ValueError(
                f"{type(pl_module).__name__} evaluated {list(outputs['transforms'])}, but its `transforms` are "
                f"{list(self._transforms)}"
            )
        rows: dict[str, Tensor | Sequence[str]] = {name: outputs[name] for name in _QUALITY}
        for position, name in enumerate(self._transforms):
            rows |= {f"{kind}/{name}": outputs[output][:, position] for kind, output in _ERRORS.items()}
        return rows

    def summarise(self, table: Table) -> dict[str, Statistic]:
        """Over all transforms, then for each."""
        errors = {
            output: np.stack([table[f"{kind}/{name}"] for name in self._transforms], axis=1)
            for kind, output in _ERRORS.items()
        }
        error, identity = errors["corner_error_px"], errors["identity_error_px"]
        statistics: dict[str, Statistic] = {output: mean_of(each.mean(axis=1)) for output, each in errors.items()}
        statistics["error_to_identity"] = ratio_of_sums(error.sum(axis=1), identity.sum(axis=1))
        statistics |= {f"within_{limit}_px": mean_of((error <= limit).mean(axis=1)) for limit in WITHIN_PX}
        # A picture that the mark leaves as it is has an endless ratio, which no mean can take.
        quality = np.where(np.isfinite(table["psnr"]), table["psnr"], np.nan)
        statistics |= {"psnr_db": mean_of(quality), "ssim": mean_of(table["ssim"])}
        for position, name in enumerate(self._transforms):
            own = error[:, position]
            statistics |= {f"{output}/{name}": mean_of(each[:, position]) for output, each in errors.items()}
            statistics |= {f"within_{limit}_px/{name}": mean_of((own <= limit).astype(float)) for limit in WITHIN_PX}
        return statistics

    def _start(self, stage: Stage, trainer: Trainer, pl_module: LightningModule) -> None:
        self._transforms = transforms_of(pl_module, self)
        super()._start(stage, trainer, pl_module)


def transforms_of(pl_module: LightningModule, owner: object) -> tuple[str, ...]:
    """Return the names of the transforms that the module's evaluation steps make."""
    transforms = getattr(pl_module, "transforms", None)
    if not transforms:
        raise ValueError(
            f"{type(owner).__name__} needs `transforms` of {type(pl_module).__name__}: the names of what it evaluates"
        )
    return tuple(transforms)
