"""A method of your own: one recipe and one new part.

The idea here: after each block, blend in the real images the teacher is surest of, other ones
than the last time. Run it with: python examples/new_method.py [OUT]
"""

import sys
from dataclasses import dataclass, replace

import torch

import reta
from reta.methods import METHODS
from reta.synthesis.connection import Connection, Query


@dataclass(frozen=True)
class ConfidentAnchor(Connection):
    """Connects the images the teacher is surest of, each to one synthetic image.

    Attributes:
        alpha: weight of the synthetic image.
    """

    alpha: float = 0.7

    def choose(self, query: Query) -> torch.Tensor:
        """Return the pool indices of the anchors of one class."""
        members = query.members
        current = members[:0] if query.current is None else query.current
        penalty = 2 * torch.isin(members, current).float()  # no anchor twice in a row
        order = (query.pool.confidence[members] - penalty).argsort(descending=True)
        return members[order[torch.arange(len(query.embeddings)) % len(members)]]


METHODS["confident"] = replace(
    METHODS["fadrm+"],
    summary="FADRM+ with the most confident real images as anchors",
    source="examples/new_method.py",
    connection=ConfidentAnchor(),
)

if __name__ == "__main__":
    out = sys.argv[1] if len(sys.argv) > 1 else "runs/new-method"
    small = {"effort": "smoke", "classes": 5, "per_class": 60, "teachers": ("convnet3",)}
    table = reta.compare("digits", ["fadrm+", "confident"], out, ipc=2, **small)
    for row in table["rows"]:
        print(f"{row['method']:<12} {100 * row['last_mean']:.1f} %   κ {row['kappa_mean']:.2f}")
