"""What a method hands over to be exported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ExportProgram:
    """A network with everything around it that its user would otherwise have to know.

    `network` maps one tensor, RGB float32 in [0, 1] of (B, 3, H, W), to one tensor; batch and sides are free.
    """

    network: nn.Module
    """Scaling of pixels and activation inside; in eval mode, on the CPU, float32."""
    input_name: str = "image"
    output_name: str = "probability"
    min_side: int = 1
    """Smallest height and width that the network takes."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """JSON-able facts stored in the file: method, classes, threshold, input contract, licence."""
