"""A batch changed in parts: on a CPU so few samples at a time that they stay in its cache, a core each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_modules.functional.passes import side_by_side

Change = Callable[[Tensor, range], Tensor]
"""From some samples (N, C, H, W) and their rows in the batch to as many changed ones of the same shape."""
Graphs = dict[int, tuple[Tensor, Tensor]]
"""Input and output of a part by its first row, with the graph between them."""
CACHED_VALUES = 2**18


def in_parts(change: Change, images: Tensor) -> Tensor:
    """Return images (B, C, H, W) changed; the gradient passes, once.

    Args:
        change: What is done to some of them, each on its own whatever its neighbours.
        images: The batch. On a CPU it is cut up by the size of a sample alone, so that threads change nothing.
    """
    count = len(images)
    if images.device.type != "cpu" or count == 0:
        return change(images, range(count))
    step = max(1, CACHED_VALUES // math.prod(images.shape[1:]))
    parts = [list(range(start, min(start + step, count))) for start in range(0, count, step)]
    if torch.is_grad_enabled() and images.requires_grad:
        changed: Tensor = _InParts.apply(images, change, parts)
        return changed
    return _run(images, change, parts)


def _run(images: Tensor, change: Change, parts: list[list[int]], keep: Graphs | None = None) -> Tensor:
    """Return changed images; `keep` takes the graphs that they leave."""
    changed = torch.empty_like(images, memory_format=torch.contiguous_format)
    inference, graphs = torch.is_inference_mode_enabled(), keep is not None

    def run(part: list[int]) -> None:
        rows = range(part[0], part[-1] + 1)
        # Both modes are a thread's own; autocast is too, and off in threads that nobody turned it on in.
        with torch.inference_mode() if inference else torch.set_grad_enabled(graphs):
            given = images[rows.start : rows.stop].detach().contiguous().requires_grad_(graphs)
            result = change(given, rows)
            changed[rows.start : rows.stop] = result.detach()
        if keep is not None:
            keep[rows.start] = given, result

    side_by_side(run, parts, images.device)
    return changed


class _InParts(torch.autograd.Function):
    """Keeps a graph of each part, so that parts are also gone through backwards side by side and in the cache."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, change: Change, parts: list[list[int]]) -> Tensor:
        """Return changed images."""
        ctx.parts, ctx.graphs = parts, {}
        return _run(images, change, parts, ctx.graphs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the images."""
        passed = torch.empty_like(gradient, memory_format=torch.contiguous_format)

        def run(rows: list[int]) -> None:
            part, result = ctx.graphs.pop(rows[0])
            rows_of = slice(rows[0], rows[-1] + 1)
            passed[rows_of] = torch.autograd.grad(result, part, gradient[rows_of])[0]

        side_by_side(run, ctx.parts, gradient.device)
        return passed, None, None
