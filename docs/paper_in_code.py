"""Write docs/paper-in-code.md: which function computes which equation, read from the docstrings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "paper-in-code.md"
CLAIM = re.compile(r"Eq\. (\d+(?:[,–] ?\d+)*): (.*)", re.DOTALL)

HEADER = """\
# The paper in code

Every equation of *Fixed Anchors Are Not Enough* (arXiv 2602.24144) is one function whose docstring
begins with its number. This page is generated from those docstrings by `make docs`; a test fails
when it is out of date, or when an equation is claimed by no function or by two.

| equation | what it is | function |
|---|---|---|
"""


def claims() -> list[tuple[str, str, str, str]]:
    """Return ``(equations, first sentence, function, file:line)`` for every claim in the source."""
    found = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            match = CLAIM.match(ast.get_docstring(node) or "")
            if match:
                sentence = " ".join(match.group(2).split("\n\n")[0].split())
                place = f"{path.relative_to(ROOT).as_posix()}#L{node.lineno}"
                found.append((match.group(1), sentence, node.name, place))
    return sorted(found, key=lambda claim: int(re.split(r"\D", claim[0])[0]))


def page() -> str:
    """Return the page as Markdown."""
    rows = [
        f"| {equations} | {sentence.replace('|', chr(92) + '|')} | [`{name}`](../{place}) |"
        for equations, sentence, name, place in claims()
    ]
    return HEADER + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
