"""One row of numbers a sample, gathered over processes: what evaluations are computed from."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

Table = dict[str, NDArray[Any]]
"""Columns of equal length: "index" as int64, numbers as float64 (wide ones 2-D), texts as str."""


class SampleTable(Metric):
    """Rows keyed by dataset index; every process computes the same table, whatever the sharding.

    A distributed sampler repeats samples to give ranks equal shares: of rows with one index the first is kept.
    Rows are float64 on the CPU, so counts stay exact. Texts travel as 48-bit hashes beside a list of names.

    Args:
        columns: Names of the columns that hold one number a sample.
        wide_columns: Names and widths of the columns that hold several numbers a sample.
        text_columns: Names of the columns that hold strings.
    """

    full_state_update = False
    cells: list[Tensor] | Tensor
    names: list[Tensor] | Tensor

    def __init__(
        self,
        columns: Sequence[str],
        wide_columns: Mapping[str, int] | None = None,
        text_columns: Sequence[str] = (),
    ) -> None:
        super().__init__(dist_sync_fn=_gather_on_cpu)
        self.widths = {"index": 1, **dict.fromkeys(columns, 1), **(wide_columns or {})}
        self.text_columns = tuple(text_columns)
        self.add_state("cells", default=[], dist_reduce_fx="cat")
        self.add_state("names", default=[], dist_reduce_fx="cat")
        # A rank without rows takes part with an empty 1-D tensor of the metric's dtype. Flat float64 states
        # make that the right shape and type; anything else mixes types in all_gather or hangs.
        self.set_dtype(torch.float64)

    def update(self, index: Tensor, rows: Mapping[str, Tensor | Sequence[str]]) -> None:
        """Adds the samples of one batch.

        Args:
            index: Position of each sample in the data set, (B,).
            rows: Per column, B values, or (B, width) for a wide one.
        """
        texts = {name: self._encode(rows[name]) for name in self.text_columns}
        cells = []
        for name, width in (self.widths | dict.fromkeys(self.text_columns, 1)).items():
            column = index if name == "index" else texts.get(name, rows.get(name))
            values = torch.as_tensor(column).detach().to("cpu", torch.float64)
            if values.numel() != len(index) * width:
                raise ValueError(f"column {name!r} has {values.numel()} values for {len(index)} samples of {width}")
            cells.append(values.reshape(len(index), width))
        assert isinstance(self.cells, list)
        self.cells.append(torch.cat(cells, dim=1).flatten())

    def compute(self) -> Table:
        """The rows of all processes, repeats dropped, in the order of their indices."""
        cells = _flat(self.cells).reshape(-1, sum(self.widths.values()) + len(self.text_columns))
        index, first = np.unique(cells[:, 0].astype(np.int64), return_index=True)
        cells = cells[first]
        table: Table = {}
        start = 0
        for name, width in self.widths.items():
            table[name] = np.ascontiguousarray(cells[:, start] if width == 1 else cells[:, start : start + width])
            start += width
        table["index"] = index
        names = self._decode()
        for position, name in enumerate(self.text_columns, start):
            table[name] = np.array([names[code] for code in cells[:, position]], dtype=np.str_)
        return table

    def _encode(self, texts: Tensor | Sequence[str]) -> Tensor:
        assert isinstance(self.names, list)
        for text in dict.fromkeys(str(text) for text in texts):
            if "\0" in text:
                raise ValueError(f"texts in a sample table may not hold a NUL character, got {text!r}")
            self.names.append(torch.tensor([*text.encode(), 0], dtype=torch.float64))
        return torch.tensor([_code(str(text)) for text in texts], dtype=torch.float64)

    def _decode(self) -> dict[float, str]:
        names = bytes(_flat(self.names).astype(np.uint8)).decode().split("\0")
        return {_code(name): name for name in names}


def _code(text: str) -> float:
    """48 bits of a hash: exact in float64 and the same on every rank."""
    return float(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))


def _flat(state: list[Tensor] | Tensor) -> NDArray[np.float64]:
    if isinstance(state, Tensor):
        return state.numpy()
    return torch.cat(state).numpy() if state else np.empty(0)


def _gather_on_cpu(result: Tensor, group: Any = None) -> list[Tensor]:
    """Gathers through the accelerator where the backend demands it (NCCL) and comes back to the CPU."""
    device = torch.device("cpu")
    if torch.distributed.get_backend(group) == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    return [part.cpu() for part in gather_all_tensors(result.to(device), group)]
