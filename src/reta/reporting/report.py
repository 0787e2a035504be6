"""Writing the page: ``report.html`` from a run folder or a comparison folder."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from reta.errors import DataError
from reta.reporting import confusion, evaluations, mechanism, outcome, retrieval, words
from reta.reporting.album import PICTURE_BYTES, films, gallery
from reta.reporting.comparison import COMPARISON, comparison_page, read_comparison
from reta.reporting.reading import Run, figure, part, read_run
from reta.reporting.setup import data_facts, machine_facts, method_facts
from reta.storage import MANIFEST, atomic_write

REPORT = "report.html"


def write_report(folder: Path) -> Path:
    """Write ``report.html``: one self-contained page about a run or a comparison of runs.

    Args:
        folder: a run folder, or the folder of a comparison.

    Returns:
        Where the page is.

    Raises:
        DataError: if the folder is neither, or a file of it is damaged.
    """
    folder = Path(folder)
    if (folder / COMPARISON).is_file():
        html = _render("comparison.html.j2", comparison_page(read_comparison(folder)))
    elif (folder / MANIFEST).is_file():
        html = _render("run.html.j2", run_page(read_run(folder)))
    else:
        raise DataError(
            f"{folder}: neither {MANIFEST} nor {COMPARISON} is here, so there is nothing to "
            "report; finish the run with `reta distill` or the comparison with `reta compare`"
        )
    atomic_write(folder / REPORT, html.encode())
    return folder / REPORT


def _render(template: str, page: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reta.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["words"] = words
    files = resources.files("reta.reporting") / "templates"
    style = (files / "style.css").read_text("utf-8").strip()
    script = (files / "script.js").read_text("utf-8").strip()
    # Nothing but our own style and script runs, and nothing is ever loaded, whatever names say.
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_digest(style)}; script-src {_digest(script)}"
    )
    return environment.get_template(template).render(
        page, style=Markup(style), script=Markup(script), policy=policy
    )


def _digest(source: str) -> str:
    digest = hashlib.sha256(source.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def run_page(run: Run) -> dict[str, Any]:
    """Return everything the page about one run shows; absent sections are empty."""
    shown = gallery(run)
    anchors = retrieval.most_used(run)
    budget = max(0, PICTURE_BYTES - (shown.bytes if shown else 0))
    measured = evaluations.sections(run)
    page = {
        "run": run,
        "title": _title(run),
        "figures": _key_figures(run),
        "lead": _lead(run),
        "gallery": shown,
        "films": films(run, budget),
        "outcome": outcome,
        "mechanism": mechanism,
        "losses": mechanism.loss_charts(run),
        "connections": mechanism.connection_rows(run),
        "anchors": anchors,
        "reuse": retrieval.reuse_chart(run),
        "geometry": _geometry(run),
        "measured": measured,
        "confusion": _confusion(run),
        "cautions": outcome.cautions(run),
        "setup": method_facts(run) + data_facts(run.data) + machine_facts(run),
        "percentages": [(name, words.percent(value)) for name, value in outcome.per_class(run)],
    }
    own = [(f"evaluation-{one.name}", one.title, True) for one in measured]
    audit = [entry for entry in own if entry[0] == "evaluation-audit"]
    present = [
        ("images", "Images", bool(shown)),
        ("evolution", "Evolution", bool(page["films"])),
        ("accuracy", "Accuracy", True),
        ("cost", "Cost and size", bool(outcome.cost_rows(run))),
        ("losses", "Losses", bool(page["losses"])),
        ("topology", "Topology", bool(page["geometry"])),
        ("anchors", "Anchors", bool(page["connections"])),
        *[entry for entry in own if entry not in audit],
        ("confusion", "Confusion", bool(page["confusion"])),
        *audit,
        ("setup", "Setup", True),
    ]
    page["sections"] = [(name, title) for name, title, there in present if there]
    return page


def _confusion(run: Run) -> dict[str, Any] | None:
    if not confusion.shares(run):
        return None
    return {
        "chart": confusion.matrix_chart(run),
        "picture": confusion.matrix_picture(run),
        "pairs": confusion.mistakes(run),
    }


def _title(run: Run) -> str:
    total = words.plural(outcome.total_images(run), "image")
    train = figure(run.data, "train")
    return f"{total} in place of {words.count(train)}" if train else total


def _lead(run: Run) -> str:
    """Return the outcome in a few sentences for someone who knows nothing of the run."""
    manifest, data = run.manifest, run.data
    real = words.count(figure(data, "train"))
    sentences = [
        f"From {real} real training images of {data.get('name', 'a data set')} in "
        f"{words.plural(len(run.classes), 'class', 'classes')}, the method "
        f"“{manifest.get('method', 'unknown')}” made {words.plural(run.ipc, 'image')} per class."
    ]
    if run.metrics:
        student = run.metrics.get("student", "model")
        sentences.append(
            f"A {student} trained on these alone recognises {outcome.accuracy(run)} of "
            f"{words.count(figure(data, 'test'))} test images it has never seen."
        )
        chance, whole = figure(run.metrics, "chance"), outcome.full_data(run)
        known = [f"Guessing would give {words.percent(chance)}"] if chance is not None else []
        if whole:
            start = "a" if known else "A"
            known.append(
                f"{start} {whole[0]} trained on all real images reaches {words.percent(whole[1])}"
            )
        if known:
            sentences.append("; ".join(known) + ".")
    return " ".join(sentences)


def _key_figures(run: Run) -> list[tuple[str, str, str]]:
    """Return the few numbers to see first: name, value, remark."""
    metrics, figures = run.metrics or {}, []
    total, train = outcome.total_images(run), figure(run.data, "train")
    if run.metrics:
        count = len(outcome.students(run))
        remark = f"last epoch, {words.plural(count, 'student')}"
        figures.append(("Test accuracy", outcome.accuracy(run), remark))
    fewer = f"{train / total:.3g} times fewer" if train and total else ""
    figures.append(("Images", words.count(total), fewer))
    sizes = [figure(metrics, "bytes_images"), figure(metrics, "bytes_labels")]
    if sizes[0] is not None:
        labels = f"and {words.size(sizes[1])} of soft labels" if sizes[1] else "no soft labels"
        figures.append(("Size", words.size(sizes[0]), labels))
    if (seconds := figure(metrics, "seconds_per_image")) is not None:
        device = str(part(run.manifest, "device").get("name", ""))
        where = {"": "", "cpu": "on the CPU", "cuda": "on the GPU"}.get(device, f"on {device}")
        figures.append(("Time per image", words.duration(seconds), where))
    return figures


def _geometry(run: Run) -> dict[str, Any] | None:
    if not run.geometry:
        return None
    values = mechanism.kappa_values(run)
    average = figure(run.geometry, "kappa_mean")
    return {
        "kappa": words.number(average) if average is not None else None,
        "charts": [mechanism.kappa_chart(run), mechanism.distance_chart(run)],
        "table": [(name, words.number(value)) for name, value in values],
        "shapes": mechanism.shape_charts(run),
    }
