"""Persistent homology of small point clouds, differentiable in the points.

Stands alone: torch, numpy and gudhi. From a cloud to a loss:
`mutual_knn_graph` → `persistence_diagrams` → `persistence_image` → `topology_loss`.
"""

from .curves import betti_curve, contraction_gap, contraction_ratio
from .graph import diameters, mutual_knn_graph
from .image import persistence_image, persistence_images
from .loss import topology_loss, topology_losses
from .persistence import persistence_diagrams

__all__ = [
    "betti_curve",
    "contraction_gap",
    "contraction_ratio",
    "diameters",
    "mutual_knn_graph",
    "persistence_diagrams",
    "persistence_image",
    "persistence_images",
    "topology_loss",
    "topology_losses",
]
