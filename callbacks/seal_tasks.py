"""What seal data are good for: are re-cut seals found out, and can text under seals be read?"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from callbacks.evaluation import EvaluationCallback
from callbacks.metrics.bootstrap import Statistic, mean_of, ratio_of_sums
from callbacks.metrics.detection_statistics import CurveSlot, ScoredGroup, auroc_statistic
from callbacks.metrics.edit_distance import edit_distance
from callbacks.metrics.sample_table import Table


class VerificationEvaluation(EvaluationCallback):
    """Reports how well genuine pairs are told from re-cut ones, in all and by the outline of the seal.

    ``auroc``; ``accuracy``; ``precision``, ``recall`` and ``f1`` of "genuine" at logit 0.
    """

    required_outputs: ClassVar[tuple[str, ...]] = ("logit", "authentic", "kind")
    text_columns: ClassVar[tuple[str, ...]] = ("kind",)

    @property
    def columns(self) -> tuple[str, ...]:
        """Score and truth."""
        return ("logit", "authentic")

    def rows(
        self,
        pl_module: LightningModule,
        outputs: Mapping[str, Any],
        batch: Any,
    ) -> dict[str, Tensor | Sequence[str]]:
        """The columns of each pair."""
        return {name: outputs[name] for name in self.required_outputs}

    def summarise(self, table: Table) -> dict[str, Statistic]:
        """Figures of all pairs, then the AUROC of each outline."""
        labels, scores, slot = table["authentic"] > 0.5, table["logit"], CurveSlot()
        called = scores > 0
        found, alarms = (called & labels).astype(float), (called & ~labels).astype(float)
        missed = (~called & labels).astype(float)
        everything = ScoredGroup(scores, labels, np.ones(len(labels), dtype=np.bool_), slot)
        statistics: dict[str, Statistic] = {"auroc": auroc_statistic(everything)} if everything.has_both else {}
        statistics |= {
            "accuracy": mean_of((called == labels).astype(float)),
            "precision": ratio_of_sums(found, found + alarms),
            "recall": ratio_of_sums(found, found + missed),
            "f1": ratio_of_sums(2 * found, 2 * found + alarms + missed),
        }
        for kind in np.unique(table["kind"]).tolist():
            group = ScoredGroup(scores, labels, table["kind"] == kind, slot)
            if group.has_both:
                statistics[f"auroc/{kind}"] = auroc_statistic(group)
        return statistics


class ReadingEvaluation(EvaluationCallback):
    """Reports the character error rate, edits over printed letters, and the share of lines without an error."""

    required_outputs: ClassVar[tuple[str, ...]] = ("read", "text")

    @property
    def columns(self) -> tuple[str, ...]:
        """Edits and letters."""
        return ("edits", "letters")

    def rows(
        self,
        pl_module: LightningModule,
        outputs: Mapping[str, Any],
        batch: Any,
    ) -> dict[str, Tensor | Sequence[str]]:
        """The columns of each line."""
        pairs = list(zip(outputs["read"], outputs["text"], strict=True))
        edits = torch.tensor([edit_distance(read, text) for read, text in pairs])
        return {"edits": edits, "letters": torch.tensor([len(text) for _, text in pairs])}

    def summarise(self, table: Table) -> dict[str, Statistic]:
        """The two figures over all lines."""
        return {
            "cer": ratio_of_sums(table["edits"], table["letters"]),
            "whole_lines": mean_of((table["edits"] == 0).astype(float)),
        }
