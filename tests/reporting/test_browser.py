"""The pages in a real browser: nothing breaks, nothing is loaded, every control works."""

from __future__ import annotations

import json
import re
import subprocess
from html import unescape
from pathlib import Path

import pytest
from chromium import BROWSER, QUIET, Tab
from folders import noise, write_comparison, write_run
from PIL import Image

from reta.reporting import write_report

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")

# Runs after the page's own script; the answers come back in the dumped document.
RUN_TEST = """
const click = (what) => document.querySelector(what).click();
const shown = (what) => [...document.querySelectorAll(what)].filter((e) => e.offsetParent).length;
found.shelves = [shown(".shelf")];
click("[data-class='1']"); found.shelves.push(shown(".shelf"));
click("[data-class='2']"); found.shelves.push(shown(".shelf"));
click("[data-all]"); found.shelves.push(shown(".shelf"));
found.all = document.querySelector("[data-all]").getAttribute("aria-pressed");

click("#theme"); found.theme = [document.documentElement.dataset.theme];
found.ground = [getComputedStyle(document.body).backgroundColor];
click("#theme"); found.theme.push(document.documentElement.dataset.theme);
found.ground.push(getComputedStyle(document.body).backgroundColor);

const stage = document.querySelector(".stage");
const moment = () => stage.querySelector(".moment").textContent;
found.moments = [moment()];
click("[data-step='-1']"); found.moments.push(moment());
click("[data-step='-1']"); found.moments.push(moment());
found.anchor = stage.querySelector("img").classList.contains("anchor");
const range = stage.querySelector("input");
range.value = 0; range.dispatchEvent(new Event("input")); found.moments.push(moment());
found.ends = document.querySelector("[data-step='-1']").disabled;
const choice = document.querySelector("[data-choose='films']");
choice.value = "1"; choice.dispatchEvent(new Event("change")); found.moments.push(moment());
found.films = shown(".film");
found.shapes = shown("#shapes > div");

const dialog = document.getElementById("zoom");
const caption = () => document.getElementById("zoom-caption").textContent;
click(".shot"); found.zoom = [dialog.open, caption()];
click("#zoom [data-move='1']"); found.zoom.push(caption());
dialog.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"})); found.zoom.push(caption());
click("#zoom [data-close]"); found.closed = !dialog.open;
found.loaded = performance.getEntriesByType("resource").filter(
  (entry) => !entry.name.startsWith("data:")).length;
"""

# What may be wider than the screen scrolls by itself.
FIND_WIDE = """
found.wide = [...document.querySelectorAll("body *")].filter((element) =>
  element.getBoundingClientRect().right > 360.5 &&
  !element.closest(".scroll, .strip, .bar ul, svg, pre, .unseen")
).map((element) => element.outerHTML.slice(0, 100));
found.page = document.documentElement.scrollWidth;
"""


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    profile = page.parent / "profile"
    command = [BROWSER, *QUIET, f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def complaints(log: str) -> list[str]:
    return [line for line in log.splitlines() if ":CONSOLE" in line]


def test_complaints_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "broken.html"
    page.write_text("<!doctype html><script>missing()</script>")
    assert "missing is not defined" in complaints(browse(page, "--dump-dom").stderr)[0]


def ask(page: Path, script: str, width: int | None = None) -> dict[str, object]:
    """Run a script in a copy of the page and return the ``found`` it fills.

    A headless window has a least width, so a narrower page is put into a frame.
    """
    # The page allows no script but its own, so the copy has to drop that rule.
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    report = 'top.postMessage(JSON.stringify(found), "*");'
    run = f'addEventListener("load", () => {{ const found = {{}}; {script} {report} }});'
    answer = (
        'addEventListener("message", (event) => document.body.append(Object.assign('
        'document.createElement("pre"), {id: "found", textContent: event.data})));'
    )
    copy, outer = page.with_name("copy.html"), page.with_name("outer.html")
    copy.write_text(source.replace("</body>", f"<script>{run}</script></body>"))
    frame = f'<iframe src="copy.html" width="{width or 1200}" height="900"></iframe>'
    outer.write_text(f"<!doctype html><body><script>{answer}</script>{frame}</body>")
    done = browse(outer, "--window-size=1280,900", "--virtual-time-budget=5000", "--dump-dom")
    assert complaints(done.stderr) == []
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    answers: dict[str, object] = json.loads(unescape(found[1]))
    return answers


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def comparison_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_comparison(tmp_path_factory.mktemp("comparison")))


def test_controls_work(run_page: Path) -> None:
    found = ask(run_page, RUN_TEST)
    assert found["shelves"] == [4, 1, 2, 4]
    assert found["all"] == "true"
    assert sorted(found["theme"]) == ["dark", "light"]  # type: ignore[call-overload]
    assert len(set(found["ground"])) == 2  # type: ignore[call-overload]
    assert found["moments"] == [
        "apple, image 1, as distilled",
        "apple, image 1, after block 3",
        "apple, image 1, the real image blended in at connection 2",
        "apple, image 1, at the start",
        "fish, image 1, as distilled",
    ]
    assert found["anchor"] is True
    assert found["ends"] is True
    assert found["films"] == 1
    assert found["shapes"] == 1
    first, second = (
        f"apple, image {number + 1} · images/000/{number}.png · right: "
        "the real image blended in last (training image 2000)"
        for number in (0, 1)
    )
    assert found["zoom"] == [True, first, second, first]
    assert found["closed"] is True
    assert found["loaded"] == 0


@pytest.mark.parametrize("kind", ["run_page", "comparison_page"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_are_drawn_without_complaint(
    kind: str, width: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    page = request.getfixturevalue(kind)
    picture = tmp_path / "page.png"
    done = browse(page, f"--screenshot={picture}", f"--window-size={width},1200")
    assert complaints(done.stderr) == []
    with Image.open(picture) as image:
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50


@pytest.mark.parametrize("kind", ["run_page", "comparison_page"])
def test_pages_fit_a_phone(kind: str, request: pytest.FixtureRequest) -> None:
    found = ask(request.getfixturevalue(kind), FIND_WIDE, width=360)
    assert found == {"wide": [], "page": 360}


def test_the_keyboard_is_enough(run_page: Path) -> None:
    """Breaks when someone without a mouse cannot reach, open, turn and close a picture."""
    with Tab(run_page) as tab:
        active = "document.activeElement"
        tab.press("Tab")
        assert tab.ask(f"{active}.className") == "skip"
        tab.press("Enter")
        assert tab.ask(f"{active}.id") == "content"
        for _ in range(40):
            tab.press("Tab")
            outline = tab.ask(f"getComputedStyle({active}).outlineStyle")
            assert outline != "none", tab.ask(f"{active}.outerHTML.slice(0, 200)")
            if tab.ask(f"{active}.className") == "shot":
                break
        tab.press("Enter")
        assert tab.ask("document.getElementById('zoom').open")
        caption = "document.getElementById('zoom-caption').textContent"
        first = tab.ask(caption)
        tab.press("ArrowRight")
        assert tab.ask(caption) != first
        tab.press("ArrowLeft")
        assert tab.ask(caption) == first
        tab.press("Escape")
        assert not tab.ask("document.getElementById('zoom').open")
        assert tab.ask(f"{active}.className") == "shot"
        assert tab.complaints == tab.requests == []


def test_real_images_can_be_put_away(run_page: Path) -> None:
    """Breaks when the real anchors are not beside the distilled images, or cannot be hidden."""
    shown = "[...document.querySelectorAll('#shelves .real')].filter((e) => e.offsetParent).length"
    with Tab(run_page) as tab:
        assert tab.ask(f"document.querySelector('#shelves').scrollIntoView(); {shown}") > 0
        tab.ask("document.querySelector('[data-toggle]').click()")
        assert tab.ask(shown) == 0
        assert tab.ask("document.querySelector('[data-toggle]').ariaPressed") == "false"


@pytest.mark.parametrize("kind", ["run_page", "comparison_page"])
def test_dark_and_printed(kind: str, request: pytest.FixtureRequest) -> None:
    """Breaks when a reader's dark screen gets a white page, or paper gets dark ground."""
    page = request.getfixturevalue(kind)
    ground = "getComputedStyle(document.body).backgroundColor"
    with Tab(page) as tab:
        light = tab.ask(ground)
        tab.prefer("prefers-color-scheme", "dark")
        assert tab.ask(ground) != light
        tab.prefer("prefers-color-scheme", "dark", media="print")
        assert tab.ask(ground) == "rgb(255, 255, 255)"
        assert tab.ask("document.querySelector('.bar').offsetParent") is None
        pages = tab.pdf().count(b"/Type /Page\n")
        assert 2 <= pages < 60
        assert tab.complaints == tab.requests == []


@pytest.fixture(scope="module")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"class {label}" for label in range(300)]
    folder = tmp_path_factory.mktemp("large")
    return write_report(write_run(folder, classes=names, ipc=2, side=16, painter=noise))


def test_many_classes_stay_usable(large_page: Path) -> None:
    """Breaks when a page of hundreds of classes shows all at once, or hides some for good."""
    shown = "[...document.querySelectorAll('.shelf')].filter((e) => !e.hidden).length"
    with Tab(large_page, width=360) as tab:
        assert tab.ask("document.querySelectorAll('.shelf').length") == 300
        assert tab.ask(shown) == 24
        assert tab.ask("document.documentElement.scrollWidth") == 360
        tab.ask("document.getElementById('shelves-search').focus()")
        tab.write("CLASS 29")
        assert tab.ask(shown) == 11  # 29 and 290 to 299
        status = "document.querySelector('.search [role=status]').textContent"
        assert tab.ask(status) == "11 of 11 classes"
        tab.ask("document.getElementById('shelves-search').value = ''")
        tab.ask("document.getElementById('shelves-search').dispatchEvent(new Event('input'))")
        tab.ask("document.querySelector('.search button').click()")
        assert tab.ask(shown) == 48
        assert tab.complaints == tab.requests == []
