"""Classifiers: an architecture by name, or any module of one's own, behind one interface."""

from reta.models.architectures import (
    SMALL,
    build,
    check,
    dress,
    instance_convnet,
    names,
    network,
    register,
)
from reta.models.classifier import Classifier, file_stem, freeze, preferred_layout, wrap
from reta.models.grouped import batch_statistics, can_group
from reta.models.stacked import StackedClassifier
from reta.models.task import Task, Triple, difference, model_bytes, read, save

__all__ = [
    "SMALL",
    "Classifier",
    "StackedClassifier",
    "Task",
    "Triple",
    "batch_statistics",
    "build",
    "can_group",
    "check",
    "difference",
    "dress",
    "file_stem",
    "freeze",
    "instance_convnet",
    "model_bytes",
    "names",
    "network",
    "preferred_layout",
    "read",
    "register",
    "save",
    "wrap",
]
