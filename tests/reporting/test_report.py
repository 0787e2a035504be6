"""The report says what the folder holds, safely, whole and in order."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from folders import metrics, noise, save_json, write_comparison, write_run
from PIL import Image

from reta.errors import DataError
from reta.reporting import gallery_sheet, mechanism, write_report
from reta.reporting.reading import read_run
from reta.reporting.svg import ticks
from reta.reporting.words import duration, number, size, spread

VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """A strict reader of a page: every tag closed, and what a person would find in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []
        # Also turns the unbreakable spaces of numbers into plain ones.
        self.text = re.sub(r"\s+", " ", self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), f"an attribute of <{tag}> is repeated"
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in found:
            self.ids.append(str(found["id"]))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(found)
        self.links += [str(found[name]) for name in ("href", "src") if name in found]
        assert not [name for name in found if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words += data


def check(page: Page) -> None:
    """Assert what holds for every page."""
    assert len(set(page.ids)) == len(page.ids)
    assert all("alt" in image for image in page.images)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    steps = zip(page.headings, page.headings[1:], strict=False)
    assert all(after <= before + 1 for before, after in steps)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not re.search(r"https?:|url\(|@import|\bfetch\(", page.source)
    assert page.tags.count("script") == 1
    assert "nan" not in page.text.lower().split()


def test_run_page_tells_the_outcome(run_folder: Path) -> None:
    path = write_report(run_folder)
    assert path == run_folder / "report.html"
    page = Page(path)
    check(page)
    assert "16 images in place of 5 000" in page.text
    assert "57.9 ± 2.1 %" in page.text
    assert "61.0 ± 1.8 %" in page.text
    assert "Guessing would give 25.0 %" in page.text
    assert "resnet18 of 50 epochs trained on all real images reaches 80.2 %" in page.text
    assert "4.2 MB" in page.text
    assert "11 173 962" in page.text
    assert "2.4 of 4" in page.text
    assert "0.365" in page.text
    assert "AMD EPYC 7B13" in page.text
    assert f"reta verify {run_folder}" in page.text


def test_names_and_settings_are_escaped(run_folder: Path) -> None:
    page = Page(write_report(run_folder))
    assert "<script>alert" not in page.source
    assert "<script>alert('x')</script>" in page.text
    assert 'Kuh & Kalb "quoted"' in page.text
    assert "note: <b>&" in page.text


def test_images_of_every_class_are_embedded(run_folder: Path) -> None:
    page = Page(write_report(run_folder))
    alts = [image["alt"] for image in page.images]
    assert "Synthetic image 4 of class fish" in alts
    assert "apple, image 1, the real image blended in at connection 2" in alts
    assert "Every image the student learns from, with its soft labels." in page.text


@pytest.mark.parametrize(
    ("missing", "gone", "told"),
    [
        ("metrics.json", "Accuracy by student", "reta train"),
        ("geometry.json", "Persistence diagram", "Losses"),
        ("config.yaml", "Configuration", "Setup"),
        ("images", "Everything the student", "How an image came about"),
        ("history", "How an image came about", "The images"),
        ("units", "Anchors", "The images"),
    ],
)
def test_what_is_missing_is_left_out(run_folder: Path, missing: str, gone: str, told: str) -> None:
    (run_folder / missing).rename(run_folder.parent / "elsewhere")
    page = Page(write_report(run_folder))
    check(page)
    assert gone not in page.text
    assert told in page.text


def test_a_manifest_alone_is_enough(run_folder: Path, tmp_path: Path) -> None:
    save_json(tmp_path / "bare" / "manifest.json", {"format": 1, "classes": ["a"], "ipc": 1})
    page = Page(write_report(tmp_path / "bare"))
    check(page)
    assert "1 image" in page.text
    assert "reta train" in page.text


def test_unmeasured_numbers_become_dashes(run_folder: Path) -> None:
    facts: dict[str, Any] = metrics(["a"], students=1)
    facts |= {"accuracy": {"last_mean": 0.5, "last_std": None}, "chance": None, "full_data": None}
    facts |= {"peak_memory": float("nan"), "bytes_labels": None, "label_epochs": None}
    save_json(run_folder / "metrics.json", facts)
    page = Page(write_report(run_folder))
    check(page)
    assert "50.0 %" in page.text
    assert "How much the accuracy varies" not in page.text
    assert "how much the accuracy varies is not known" in page.text
    assert "A resnet18 of 60 epochs trained on all real images reaches 79.0 %" in page.text


def test_many_classes_are_shown_in_part(tmp_path: Path) -> None:
    names = [f"class {label}" for label in range(24)]
    page = Page(write_report(write_run(tmp_path / "run", classes=names, ipc=12, side=8)))
    check(page)
    assert "A part of what the student learns from: 10 of up to 12 images per class." in page.text
    assert "Synthetic image 10 of class class 23" in [image["alt"] for image in page.images]
    assert "The 20 lowest of 24" in page.text


@pytest.mark.parametrize("side", [32, 96])
def test_ten_classes_stay_below_two_megabytes(tmp_path: Path, side: int) -> None:
    names = [f"class {label}" for label in range(10)]
    path = write_report(write_run(tmp_path / "run", classes=names, ipc=10, side=side))
    assert path.stat().st_size < 2_000_000
    assert ("are reduced" in Page(path).text) == (side > 32)


def test_real_anchors_stand_beside_the_images(run_folder: Path) -> None:
    """Breaks when the gallery shows another real image than the one blended in last."""
    page = Page(write_report(run_folder))
    real = [image for image in page.images if "real" in str(image.get("class"))]
    assert real[0]["alt"] == "The real image blended in last (training image 2000)"
    # Four classes of four images.
    assert sum("training image" in str(image["alt"]) for image in real) == 16
    source = base64.b64decode(str(real[0]["src"]).partition(",")[2])
    with (
        Image.open(io.BytesIO(source)) as shown,
        Image.open(run_folder / "history" / "000.png") as sheet,
    ):
        assert shown.convert("RGB").tobytes() == sheet.crop((4 * 32, 0, 5 * 32, 32)).tobytes()


def test_retrieval_counts(run_folder: Path) -> None:
    """Breaks when the start counts as a blend, or a real image used twice as two."""
    page = Page(write_report(run_folder))
    # Two connections of four images, each anchor used by two of them.
    assert "4 different real images in 8 blends." in page.text
    assert "× 2 image 1000" in page.text


def test_confusion(run_folder: Path) -> None:
    """Breaks when true and predicted class are exchanged, or shares are not of the true class."""
    page = Page(write_report(run_folder))
    assert "applefish33.3 % (10 of 30)" in page.text
    assert "Confusion by class" in page.text


def test_the_parts_of_the_loss_are_compared(run_folder: Path) -> None:
    """Breaks when β is forgotten in the ratio of the two parts."""
    run = read_run(run_folder)
    chart = str(mechanism.ratio_chart(run))
    first = run.recoveries[0]["steps"][0]
    gap = 0.01 * first["bn_gap"]
    assert f"resnet18 from {gap / (first['loss'] - gap):.3g} to" in chart


def test_every_evaluation_is_shown(run_folder: Path) -> None:
    """Breaks when a result is not on the page, or one of an unknown kind stops the report."""
    page = Page(write_report(run_folder))
    check(page)
    for title in ("Corruptions", "Other architectures", "Horoscope", "Audit: what is left"):
        assert title in page.text
    assert "corrupted41.0 ± 1.0 %higher is better" in page.text
    assert "A note on horoscope, with <b>signs</b>." in page.text
    assert "fog45.0 ± 0.0 %" in page.text  # severity 1
    assert "sirius2.00 ± 0.707" in page.text
    assert "own from 61 % to 71 %; random from 51 % to 56 %" in page.text
    assert "own, 40 images71.0 ± 1.4 %" in page.text
    assert "learning rate0.0100 test accuracy81.0 ± 1.4 %" in page.text
    assert "apple2yes770.125789" in page.text
    assert "student 1, pool: 0.620" in page.source
    assert 'data-anchor="training image 2000, which explains 51.0' in page.source
    order = [page.source.index(f'id="{name}"') for name in ("images", "accuracy", "cost", "losses")]
    later = ("topology", "anchors", "evaluation-corruptions", "confusion", "evaluation-audit")
    order += [page.source.index(f'id="{name}"') for name in (*later, "setup")]
    assert order == sorted(order)


def test_a_page_of_a_thousand_classes_is_bounded(tmp_path: Path) -> None:
    """Breaks when the page grows with the number of classes without end."""
    classes = [f"class {label}" for label in range(1000)]
    path = write_report(write_run(tmp_path / "run", classes=classes, ipc=3, side=16, painter=noise))
    assert path.stat().st_size < 6_000_000
    page = Page(path)
    check(page)
    assert page.source.count('class="shelf"') == 1000


def test_comparison_page(comparison_folder: Path) -> None:
    page = Page(write_report(comparison_folder))
    check(page)
    assert "Random, FADRM+ and RETA on tiny fruit" in page.text
    assert "Highest is “reta” with 57.9 ± 1.2 % (6 students)." in page.text
    assert "For “fadrm+” the interval overlaps with it" in page.text
    assert "Real images picked at random reach 53.0 ± 1.2 %." in page.text
    assert "★ 57.9 ± 1.2 % (best)" in page.text
    assert "≈ 57.1 ± 1.2 % (overlaps with the best)" in page.text
    assert page.text.count("(best)") == 5  # accuracies, corruptions, memories: a low cost is no win
    assert "reta-seed1" in page.text
    assert "reta compare tiny --methods random,fadrm+,reta" in page.text
    # Four classes, three methods, four images each, and the two of the enlargement.
    assert len(page.images) == 4 * 3 * 4 + 2


def test_comparison_tells_how_sure_it_is(comparison_folder: Path) -> None:
    """Breaks when a difference has no interval, or a published number passes for a measured one."""
    page = Page(write_report(comparison_folder))
    assert "Points against fadrm+ [95 %]" in page.text
    assert "+0.8 [−2.2, +3.8]" in page.text
    assert "Published, not measured here" in page.text
    assert "Published numbers are of the same setting: Table 1 of the paper." in page.text
    assert "63.2 %" in page.text


def test_comparison_shows_every_evaluation_and_sweep(comparison_folder: Path) -> None:
    """Breaks when something was measured of every method and is not on the page."""
    page = Page(write_report(comparison_folder))
    check(page)
    assert "fadrm+★ 41.0 ± 0.7 % (best)" in page.text
    assert "A note on corrupted." in page.text
    assert "reta: accuracy over topology.weight" in page.text
    # The curve over memories: a line and two error bars for each of three methods.
    curve = page.source.split("fadrm+ from 67.1 % to 77.1 %", 1)[1].split("</svg>", 1)[0]
    assert ">1000</text>" in curve
    assert curve.count('class="line s') == 3
    assert curve.count('class="error s') == 2 * 3
    # Two seeds each of three methods, in the charts of accuracy and of corruptions, and a sweep.
    assert page.source.count('class="point s0"') >= 2 * 3 * 2 + 2 * 2


def test_comparison_with_an_unfinished_run(comparison_folder: Path) -> None:
    (comparison_folder / "reta-seed1/manifest.json").unlink()
    (comparison_folder / "random/manifest.json").unlink()
    page = Page(write_report(comparison_folder))
    check(page)
    assert "Not finished: random, reta-seed1." in page.text
    assert "No finished run of this method" in page.text


def test_comparison_before_any_result(tmp_path: Path) -> None:
    save_json(tmp_path / "comparison.json", {"title": "Soon", "methods": ["reta"]})
    page = Page(write_report(tmp_path))
    check(page)
    assert "No accuracy has been measured yet." in page.text


def test_comparison_cannot_leave_its_folder(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "comparison", side=8)
    facts = json.loads((folder / "comparison.json").read_text())
    facts["runs"]["random"] = ["../elsewhere"]
    save_json(folder / "comparison.json", facts)
    with pytest.raises(DataError, match="outside"):
        write_report(folder)


def test_class_folders_cannot_leave_the_run(run_folder: Path) -> None:
    facts = json.loads((run_folder / "manifest.json").read_text())
    facts["folders"][0] = "../../run/images/001"
    save_json(run_folder / "manifest.json", facts)
    page = Page(write_report(run_folder))
    assert "Synthetic image 1 of class apple" not in [image["alt"] for image in page.images]


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="reta distill"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", b"{"),
        ("metrics.json", b"[]"),
        ("images/000/0.png", b"no image"),
        ("history/001.png", b""),
    ],
)
def test_damaged_files_are_named(run_folder: Path, name: str, content: bytes) -> None:
    (run_folder / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{Path(name).name}.*(reta verify|the same command)"):
        write_report(run_folder)


def test_report_is_reproducible_and_replaced(run_folder: Path) -> None:
    first = write_report(run_folder).read_bytes()
    assert write_report(run_folder).read_bytes() == first


def test_report_needs_no_torch(run_folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from reta.reporting import write_report; "
        f"write_report(Path({str(run_folder)!r})); "
        "sys.exit(bool({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_gallery_sheet(run_folder: Path, tmp_path: Path) -> None:
    path = gallery_sheet(run_folder, per_class=3)
    assert path == run_folder / "gallery.png"
    with Image.open(path) as sheet:
        assert sheet.size == (3 * 64 + 2 * 2, 4 * 64 + 3 * 2)
    assert gallery_sheet(run_folder, tmp_path / "sheet.png") == tmp_path / "sheet.png"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (spread(0.5791, 0.0213, 3), "57.9\u00a0±\u00a02.1\u00a0%"),
        (spread(0.5791, 0.0, 1), "57.9\u00a0%"),
        (spread(None, None, 0), "–"),
        (size(999), "999 bytes"),
        (size(4_200_000), "4.2\u00a0MB"),
        (size(7.2e12), "7.2e+03\u00a0GB"),
        (duration(0.0123), "12.3\u00a0ms"),
        (duration(41.5), "41.5\u00a0s"),
        (duration(8000), "2\u00a0h 13\u00a0min"),
        (number(0.000213), "0.000213"),
        (number(1234.5), "1234"),
        (number(3e-7), "3.00e-07"),
    ],
)
def test_words(written: str, expected: str) -> None:
    assert written == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-3, 7, [-4, -2])],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high)[: len(expected)] == pytest.approx(expected)
    assert ticks(low, high)[-1] >= high
