"""Classifiers: an architecture by name, or any module of one's own, behind one interface."""

from reta.models.architectures import build, check, dress, names, network, register
from reta.models.classifier import Classifier, file_stem, freeze, wrap

__all__ = [
    "Classifier",
    "build",
    "check",
    "dress",
    "file_stem",
    "freeze",
    "names",
    "network",
    "register",
    "wrap",
]
