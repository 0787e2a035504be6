"""Fixtures: a run folder and a comparison folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import write_comparison, write_run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def comparison_folder(tmp_path: Path) -> Path:
    return write_comparison(tmp_path / "comparison")
