"""The dataset card of a real run: valid for the Hub, true, and its code runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from reta.methods import METHODS
from reta.reporting import write_card
from reta.storage import RunFolder


@pytest.fixture
def run(shared_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared_run, tmp_path / "run"))


def test_the_hub_can_read_it(shared_run: Path) -> None:
    """Front matter that the Hub's own reader or its rules refuse."""
    hub = pytest.importorskip("huggingface_hub")
    card = hub.DatasetCard.load(shared_run / "README.md")
    assert card.data.license == "unknown"
    assert card.data.task_categories == ["image-classification"]
    assert card.data.size_categories == ["n<1K"]
    assert "reta" in card.data.tags
    assert card.text.lstrip().startswith("# photos")


def test_its_snippets_run(shared_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first lines someone pastes who found the set on the Hub."""
    monkeypatch.chdir(shared_run)
    snippets = re.findall(r"```python\n(.*?)```", (shared_run / "README.md").read_text(), re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        assert len(snippet.splitlines()) <= 12
        scope: dict[str, object] = {}
        exec(compile(snippet, "README.md", "exec"), scope)
    assert len(scope["images"]) == 6  # type: ignore[arg-type]


def test_training_fills_in_the_accuracy(run: Path) -> None:
    """A card that still says nothing was measured, or that hides what was."""
    assert "1 student (convnet3), trained from scratch" in (run / "README.md").read_text()
    (run / "metrics.json").unlink()
    assert "Not measured yet: `reta train`" in write_card(run).read_text()


def test_it_tells_where_the_set_comes_from(shared_run: Path) -> None:
    """A set of unknown origin, or one that passes for anonymous."""
    text = (shared_run / "README.md").read_text()
    for fact in (
        "photos",
        METHODS["reta"].summary,
        "RETA, arXiv 2602.24144",
        "convnet3 (",
        "reta 0.",
    ):
        assert fact in text
    assert "not anonymous" in text
    assert r"cat & <dog>" in text  # inside code, where nothing is markup


def test_what_the_owner_wrote_is_kept(run: Path) -> None:
    """Somebody's licence and notes gone after one more `reta train`."""
    card = run / "README.md"
    text = card.read_text().replace("license: unknown", "license: cc-by-4.0")
    card.write_text(re.sub(r"TO FILL IN", "Photographed by us, with consent.", text))
    again = write_card(run).read_text()
    assert again == card.read_text()
    assert "license: cc-by-4.0" in again
    assert again.count("Photographed by us, with consent.") == 4


@pytest.mark.parametrize("earlier", ["", "---\n: [\n---\nmine", "# My own page\n"])
def test_a_damaged_or_foreign_card_is_replaced(run: Path, earlier: str) -> None:
    """A card that cannot be written because the one before was edited by hand."""
    expected = (run / "README.md").read_text()
    (run / "README.md").write_text(earlier)
    assert write_card(run).read_text() == expected


def test_the_card_is_no_damage(run: Path) -> None:
    """`reta verify` that calls the card a file it does not know."""
    assert RunFolder(run).verify() == []
