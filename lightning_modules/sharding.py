"""Networks whose weights, gradients and optimiser are spread over the processes of a run."""

from collections.abc import Sequence

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard(network: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh) -> None:
    """Spread a network over the processes of a mesh; each block is gathered when it computes, and dropped after.

    The network must be called as a whole, not by its parts. A second call changes nothing.

    Args:
        network: What is spread.
        blocks: Parts of it that compute one after another.
        mesh: Its data-parallel dimension.
    """
    if not isinstance(network, FSDPModule):
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
