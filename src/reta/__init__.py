"""reta: dataset distillation you can install."""

__version__ = "0.1.0"
