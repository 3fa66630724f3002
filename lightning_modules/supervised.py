"""Modules that learn one loss of labelled batches."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_modules.base import ProvenanceModule


class SupervisedModule(ProvenanceModule):
    """Logs its loss alike in all stages; a subclass says what the loss is and what callbacks read."""

    @abstractmethod
    def _shared_step(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the loss, and what the network answered."""

    @abstractmethod
    def _outputs(self, batch: Mapping[str, Any], found: Tensor) -> Mapping[str, object]:
        """Return what ``validation_step`` and ``test_step`` give to callbacks."""

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the loss."""
        loss, _ = self._shared_step(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> Mapping[str, object]:
        """Log the loss and return what the callbacks read."""
        return self._evaluation_step(batch, "val")

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> Mapping[str, object]:
        """Log the loss and return what the callbacks read."""
        return self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: Mapping[str, Any], stage: str) -> Mapping[str, object]:
        loss, found = self._shared_step(batch)
        self.log(f"{stage}/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch["image"]))
        return self._outputs(batch, found)
