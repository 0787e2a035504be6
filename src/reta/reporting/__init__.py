"""One self-contained page per run or comparison, rebuilt from the folder without torch."""

from reta.reporting.card import write_card
from reta.reporting.gallery import gallery_sheet
from reta.reporting.report import write_report

__all__ = ["gallery_sheet", "write_card", "write_report"]
