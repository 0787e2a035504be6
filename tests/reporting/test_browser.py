"""The pages in a real browser: nothing breaks, nothing is loaded, every control works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from folders import write_comparison, write_run
from PIL import Image

from reta.reporting import write_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
]

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
    first, second = "apple, image 1 · images/000/0.png", "apple, image 2 · images/000/1.png"
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
