"""What documents say of the code and of its results cannot rot."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
sys.path[:0] = [str(DOCS), str(DOCS.parent / "benchmarks")]

import claims  # noqa: E402
import factors  # noqa: E402
import factors_page  # noqa: E402
import paper_in_code  # noqa: E402
from factors_gaps import gaps  # noqa: E402

# Eq. 7 is the residual update written with indices: it is claimed together with Eq. 8.
EQUATIONS = set(range(1, 12))


def test_each_equation_is_claimed_exactly_once():
    """Breaks when an equation of the paper has no function, or two functions claim it."""
    numbers = []
    for equations, *_ in paper_in_code.claims():
        ends = [int(number) for number in re.findall(r"\d+", equations)]
        numbers += range(ends[0], ends[1] + 1) if "–" in equations else ends
    assert sorted(numbers) == sorted(EQUATIONS)


def test_the_docs_page_is_up_to_date():
    """Breaks when a docstring or a line number changed and `make docs` was not run."""
    assert paper_in_code.PAGE.read_text(encoding="utf-8") == paper_in_code.page()


def test_the_tables_are_those_of_the_results():
    """Breaks when a number in a document is not the one that was measured and committed."""
    tables = 0
    for document in claims.DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        tables += text.count("<!-- table:")
        assert claims.filled(text) == text, document.name
    assert tables


def test_the_page_of_factors_is_that_of_the_results():
    """Breaks when a row was measured and the page not made anew, or a number in it was typed."""
    settings = factors_page.read()
    assert factors_page.PAGE.read_text(encoding="utf-8") == factors_page.page(settings)
    answer = factors_page.ANSWER.read_text(encoding="utf-8")
    assert answer.count("<!-- factors: ") == 4
    assert answer == factors_page.filled(answer, settings)


def test_a_gain_over_settings_leans_on_the_precise_ones():
    """Breaks when settings are averaged without their precision, or pairs are torn apart."""

    def setting(noise: float, gain: float) -> dict[str, Any]:
        base = [{"committee": "a", "seed": i, "last": 0.4 + 0.1 * i} for i in range(4)]
        signs = (1, -1, 1, -1)
        own = [
            one | {"last": one["last"] + (gain + noise * sign) / 100}
            for one, sign in zip(base, signs, strict=True)
        ]
        return {"rows": {factors_page.BASELINE: base, "new": own}, "same": {}}

    gap = factors_page.over([setting(0.1, 1.0), setting(5.0, 9.0)], "new")
    assert gap is not None
    assert 1.0 < gap.mean < 1.1
    assert gap.low <= gap.mean <= gap.high
    assert gap.high - gap.low < 1, "the seeds' own spread, 30 points, is not that of the pairs"


def test_rows_are_compared_under_the_same_teachers():
    """Breaks when a seed of one committee is held against another's, or a rerun tears pairs."""

    def cells(committee: str, *values: float) -> list[dict[str, Any]]:
        return [{"committee": committee, "seed": i, "last": v} for i, v in enumerate(values)]

    base = factors.merged(cells("a", 0.5, 0.6, 0.7), cells("b", 0.1, 0.2), "b")
    row = cells("b", 0.13, 0.22, 0.9)
    assert gaps({"rows": {"fadrm+": base, "row": row}}, "row") == pytest.approx([3, 2])
    assert factors.merged(base, cells("a", 0.8), "a") == cells("b", 0.1, 0.2) + base[:3]
    again = factors.merged(base, cells("b", 0.3, 0.4), "b")
    assert again == cells("a", 0.5, 0.6, 0.7) + cells("b", 0.3, 0.4)
