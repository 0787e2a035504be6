"""Distilled sets for others: in the formats they use, and on the Hugging Face Hub."""

from reta.sharing.export import FORMATS, export
from reta.sharing.push import Upload, plan, push

__all__ = ["FORMATS", "Upload", "export", "plan", "push"]
