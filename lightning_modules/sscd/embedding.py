"""Descriptors of a large batch in small parts, with the gradient of the whole."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def embed(network: nn.Module, views: Tensor, micro_batch: int | None) -> Tensor:
    """Return descriptors (N, D) of views (N, 3, H, W).

    In parts nothing but the descriptors is kept. The backward pass goes through the network once more, a part at a
    time, when it knows the gradient of each descriptor: any loss over all of them is exact, and memory is a part's.
    """
    if micro_batch is None or micro_batch >= len(views) or not torch.is_grad_enabled():
        rows: Tensor = network(views)
        return rows

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _still_statistics(network)

    parts = [
        checkpoint(network, part, use_reentrant=False, context_fn=contexts, preserve_rng_state=True)
        for part in torch.split(views, micro_batch)
    ]
    return torch.cat(parts)


@contextmanager
def _still_statistics(network: nn.Module) -> Iterator[None]:
    """Keep running statistics from being updated by a second pass over the same views."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
