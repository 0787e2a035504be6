"""The audit of a run: what of real images is left in the distilled ones, in tables and pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from reta.reporting import words
from reta.reporting.album import Shot
from reta.reporting.charts import Row, dot_chart
from reta.reporting.measured import is_number, mapping
from reta.reporting.pictures import embed
from reta.reporting.reading import Facts, Run, open_image
from reta.reporting.retrieval import cells
from reta.reporting.svg import compact

_MOST_PAIRS, _ALLOWANCE = 12, 3_000


def table(details: Facts) -> Facts:
    """Return the audit as rows: one per distilled image, one per attack on a student."""
    images = [_row(row) for row in details.get("images") or [] if isinstance(row, Mapping)]
    attacks = {}
    for number, student in enumerate(details.get("membership") or []):
        for target, found in mapping(student).items():
            if isinstance(found, Mapping):
                attacks[f"student {number + 1}, {target}"] = dict(found)
    rest = {key: value for key, value in details.items() if key not in ("images", "membership")}
    return {**rest, "membership inference": attacks, "every image": images}


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    nearest = row.get("nearest") or [{}]
    anchor = mapping(row.get("anchor"))
    return {
        "class": row.get("class"),
        "image": int(row.get("index") or 0) + 1,
        "close": row.get("close"),
        "nearest real": mapping(nearest[0]).get("image"),
        "distance": mapping(nearest[0]).get("distance"),
        "most alike by hash": mapping(row.get("hash")).get("image"),
        "bits apart": mapping(row.get("hash")).get("bits"),
        "anchor": anchor.get("image", anchor.get("anchor")),
        "its weight": anchor.get("weight"),
        "explained by it": anchor.get("explained"),
        "by others": anchor.get("explained_by_others"),
    }


def charts(details: Facts) -> list[Markup]:
    """Return how well each student betrays what it was trained on, with intervals."""
    rows = []
    for name, found in table(details)["membership inference"].items():
        value, interval = found.get("auc"), found.get("interval")
        if is_number(value):
            reach = None
            if isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval)):
                reach = (interval[1] - interval[0]) / 2
            rows.append(Row(name, float(value), words.number(float(value)), spread=reach))
    note = "Area under the curve of the attack; 0.5 is guessing, 1 is certainty. Bars: 95 %."
    return [dot_chart("Membership inference", rows, "AUC", note=note, format_x=compact)]


def pairs(run: Run, details: Facts) -> list[Shot]:
    """Return the images of which a real one explains most, beside that real one.

    Only real images that the evolution sheets show can stand here.
    """
    found = []
    for row in details.get("images") or []:
        anchor = mapping(mapping(row).get("anchor"))
        number, share = anchor.get("image", anchor.get("anchor")), anchor.get("explained")
        if is_number(number) and is_number(share) and row.get("class") in run.classes:
            label = run.classes.index(row["class"])
            found.append((float(share), label, int(row.get("index") or 0), int(number)))
    shots: list[Shot] = []
    for share, label, index, number in sorted(found, reverse=True)[: 2 * _MOST_PAIRS]:
        cell, paths = cells(run, label).get(number), run.image_paths(label)
        if cell is None or index >= len(paths) or len(shots) == _MOST_PAIRS:
            continue
        name = f"{run.classes[label]}, image {index + 1}"
        real = f"training image {number}, which explains {words.percent(share)} of it"
        picture = embed(open_image(paths[index]), _ALLOWANCE)
        shots.append(Shot(picture, f"Synthetic {name}", name, embed(cell, _ALLOWANCE), real))
    return shots
