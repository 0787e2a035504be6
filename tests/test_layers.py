"""Imports only go down, so that each part can be read, tested and used without those above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "reta"

# From the top down; a module may import those of its own layer and of the layers below.
LAYERS = [
    ["cli", "__main__"],
    ["bench"],
    ["api"],
    ["comparison", "variants"],
    ["evaluating"],
    ["sharing"],
    ["planning", "clock"],
    ["students", "pipeline", "reporting"],
    ["stages"],
    ["parts"],
    ["preparation", "protocols"],
    ["squeeze"],
    ["methods", "evaluation", "gate", "space", "together"],
    ["synthesis", "training"],
    ["topology", "committee", "data", "team"],
    ["teachers"],
    ["models"],
    ["checkpoint"],
    ["cluster", "config", "executor", "memory", "runtime", "storage", "tensors"],
    ["lease"],
    ["files"],
    ["progress", "tracking"],
    ["interruption"],
    ["mirror"],
    ["errors", "__init__"],
]
LEVEL = {name: depth for depth, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    """Return the reta modules a file imports, inside functions too, but not for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= set(names) if node.module == "reta" else {node.module or ""}
    return {name for name in found if name.split(".")[0] == "reta"}


def part(module: str) -> str:
    """Return the name in LAYERS that a module or attribute of reta belongs to."""
    name = module.split(".")[1] if "." in module else "__init__"
    return name if name in LEVEL else "__init__"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.name)
def test_imports_only_go_down(path):
    """Breaks when a lower layer reaches up, such as a part of a recipe reading the Config."""
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert own in LEVEL, f"say in LAYERS where {own} belongs"
    for module in imports(path):
        assert LEVEL[part(module)] >= LEVEL[own], f"{own} imports {module}"


def test_topology_stands_alone():
    """Breaks when reta.topology needs anything of reta."""
    for path in (SOURCE / "topology").glob("*.py"):
        assert not imports(path) - {"reta.topology"}


def test_a_report_needs_no_torch():
    """Breaks when rebuilding a report on a laptop would import torch."""
    code = "import sys, reta.reporting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_module_imports_by_itself():
    """Breaks on a circular import that only one order of imports hides."""
    names = [
        ".".join(("reta", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for path in SOURCE.rglob("*.py")
        if path.stem != "__main__"
    ]
    code = (
        "import importlib, sys\n"
        "for order in (sys.argv[1:], sys.argv[:0:-1]):\n"
        "    for name in [name for name in sys.modules if name.partition('.')[0] == 'reta']:\n"
        "        del sys.modules[name]\n"
        "    for name in order: importlib.import_module(name)"
    )
    subprocess.run([sys.executable, "-c", code, *sorted(names)], check=True)


def test_no_pickle_in_the_source():
    """Breaks when a loader could run code hidden in a file."""
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in ("import pickle", "weights_only=False", "allow_pickle=True"):
            assert word not in text, f"{path.name}: {word}"
        # Weights of others are read as tensors alone; see tests/test_teachers.py.
        loads, safe = text.count("torch.load("), text.count('map_location="cpu", weights_only=True')
        assert loads == (safe if path.name == "teachers.py" else 0), path.name


def test_no_function_below_the_pipeline_takes_a_config():
    """Breaks when a part depends on settings it does not name."""
    for name in ("synthesis", "topology", "data", "evaluation"):
        for path in (SOURCE / name).rglob("*.py"):
            assert not any(module.startswith("reta.config") for module in imports(path)), path
