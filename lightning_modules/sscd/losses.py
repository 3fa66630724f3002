"""The loss of SSCD: InfoNCE over the global batch plus a term that spreads descriptors, in blocks of rows."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

INFONCE_EPS = 1e-6
RHO_FLOOR = 1e-6
NO_NEGATIVE = -100.0


@dataclass(frozen=True)
class CopyLoss:
    """The terms, whose sum is the loss, and statistics without gradient."""

    infonce: Tensor
    entropy: Tensor
    """Already weighted."""
    positive_sim: Tensor
    negative_sim: Tensor
    nearest_negative_sim: Tensor

    @property
    def total(self) -> Tensor:
        """The loss."""
        return self.infonce + self.entropy


def copy_loss(
    rows: Tensor,
    columns: Tensor,
    row_sources: Tensor,
    column_sources: Tensor,
    first_column: int = 0,
    temperature: float = 0.05,
    entropy_weight: float = 30.0,
    per_row: bool = False,
    block: int = 1024,
) -> CopyLoss:
    """Return the loss of this process's descriptors against those of all processes.

    Two views are positives where they share a source: the same picture, or a picture that is mixed into both. Averaged
    over processes, values and gradients are those of one process with the whole batch. Memory grows with
    ``block`` × columns, never with rows × columns.

    Args:
        rows: Descriptors of length one of this process (N, D).
        columns: Those of all processes (M, D), gathered with gradient.
        row_sources: Which pictures a view shows (N, S), int64; a view of fewer than S repeats one.
        column_sources: The same of all processes (M, S).
        first_column: Where the rows lie among the columns.
        temperature: Divides similarities.
        entropy_weight: Of the spreading term; 0 leaves it out.
        per_row: Mean over rows of the mean over a row's positives (the reference with mixup) instead of the sum over
            all positive pairs divided by the number of rows. Equal where every row has one positive.
        block: Rows at a time.
    """
    # In float32 whatever autocast says: exp(1 / 0.05) passes float16, and bfloat16 has two digits for distances.
    with torch.autocast(rows.device.type, enabled=False):
        if rows.dtype != torch.float64:
            rows, columns = rows.float(), columns.float()
        sums = rows.new_zeros(7)
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            arguments = (rows[part], columns, row_sources[part], column_sources)
            options = (first_column + start, temperature, entropy_weight, per_row)
            # Recomputed in the backward pass, so that one block of similarities exists at a time.
            sums = sums + checkpoint(_block_sums, *arguments, *options, use_reentrant=False)
    infonce, spread, nearest, positive, positives, negative, negatives = sums.unbind()
    count = len(rows)
    return CopyLoss(
        infonce=infonce / count,
        entropy=entropy_weight * spread / count,
        positive_sim=(positive / positives).detach(),
        negative_sim=(negative / negatives).detach(),
        nearest_negative_sim=(nearest / count).detach(),
    )


def _block_sums(
    rows: Tensor,
    columns: Tensor,
    row_sources: Tensor,
    column_sources: Tensor,
    first_column: int,
    temperature: float,
    entropy_weight: float,
    per_row: bool,
) -> Tensor:
    """Return sums: InfoNCE, -log ρ, nearest negative; similarity and number of positives, then of negatives."""
    similarity = rows @ columns.T
    match = _share_source(row_sources, column_sources)
    negative = ~match
    positive = match
    own = torch.arange(len(rows), device=rows.device)
    positive[own, first_column + own] = False

    logits = similarity / temperature
    against = logits.masked_fill(~negative, -math.inf).logsumexp(dim=1, keepdim=True)
    against = torch.logaddexp(against, against.new_tensor(math.log(INFONCE_EPS)))
    # -log(E / (E + rest)) = softplus(log rest - log E), only where it counts.
    pairs = torch.where(positive, F.softplus(against - logits), 0.0)
    counts = positive.sum(dim=1)
    infonce = (pairs.sum(dim=1) / counts.clamp(min=1)).sum() if per_row else pairs.sum()

    nearest = similarity.masked_fill(~negative, NO_NEGATIVE).amax(dim=1)
    spread = similarity.new_zeros(())
    if entropy_weight:
        spread = -0.5 * (2.0 - 2.0 * nearest).clamp(min=RHO_FLOOR).log().sum()
    with torch.no_grad():
        statistics = (
            nearest.sum(),
            torch.where(positive, similarity, 0.0).sum(),
            counts.sum().to(similarity.dtype),
            torch.where(negative, similarity, 0.0).sum(),
            negative.sum().to(similarity.dtype),
        )
    return torch.stack([infonce, spread, *statistics])


def _share_source(rows: Tensor, columns: Tensor) -> Tensor:
    """Return (N, M), true where two views have a source in common."""
    shared = torch.zeros(len(rows), len(columns), dtype=torch.bool, device=rows.device)
    for of_row in rows.unbind(dim=1):
        for of_column in columns.unbind(dim=1):
            shared |= of_row[:, None] == of_column[None]
    return shared
