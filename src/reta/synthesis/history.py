"""One picture per class of how its images came about."""

from __future__ import annotations

from typing import Any

import torch

from reta.synthesis.connection import resample
from reta.synthesis.loop import Recovered
from reta.synthesis.pool import Pool

_ROWS = 10


def history_sheet(
    result: Recovered, pool: Pool, position: int
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return a sheet ``(3, rows·s, columns·s)`` uint8 of one class, and what its columns are.

    A row is one synthetic image: its start, then by turns a block's result and the real image
    connected into it.

    Args:
        result: of the class block.
        pool: real images.
        position: of the class within the block.
    """
    frames = [frame[position][:_ROWS] for frame in result.frames]
    blocks = len(frames) - 1
    connected = result.anchors[len(result.anchors) - len(result.connections) :]
    columns, names = [frames[0]], ["start"]
    for block in range(1, blocks + 1):
        columns.append(frames[block])
        names.append("final" if block == blocks else f"block {block}")
        if block <= len(connected):
            anchors = pool.images.pixels(connected[block - 1][position][:_ROWS])
            columns.append(anchors)
            names.append(f"anchor {block}")
    size = frames[0].shape[-1]
    grid = torch.stack([resample(column, size) for column in columns])  # (columns, rows, 3, s, s)
    sheet = grid.permute(2, 1, 3, 0, 4).flatten(3, 4).flatten(1, 2)
    return sheet, {"columns": names, "cell": size, "rows": len(frames[0])}
