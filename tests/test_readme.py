"""What the documents tell people to type works."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reta import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICK = "--effort smoke --teachers convnet3 --teacher-epochs 1 --steps 5 --label-epochs 2"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_shell_commands(tmp_path, monkeypatch, capsys):
    """Breaks when a command of the README is misspelt or its order does not work."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(12):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("reta ")]
    assert len(commands) >= 5
    for command in commands:
        quick = QUICK.split() if command[0] in ("distill", "compare") else []
        cli.main([*command, *quick])
    assert (tmp_path / "runs/photos/report.html").is_file()
    assert "intact" in capsys.readouterr().out


def test_the_make_targets():
    """Breaks when the README or CONTRIBUTING names a make target that does not exist."""
    makefile = (ROOT / "Makefile").read_text()
    for document in (README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        for target in re.findall(r"^make ([a-z-]+)", document, flags=re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_python_snippet(tmp_path, monkeypatch):
    """Breaks when the first lines a newcomer pastes do not run."""
    monkeypatch.chdir(tmp_path)
    (snippet,) = blocks("python")
    quick = 'ipc=1, effort="smoke", classes=10, per_class=20, steps=5, label_epochs=2'
    assert "ipc=3" in snippet
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
    scope: dict[str, object] = {"model": model}
    exec(compile(snippet.replace("ipc=3", quick), "README.md", "exec"), scope)
    loss = scope["loss"]
    assert isinstance(loss, torch.Tensor)
    assert loss.isfinite()


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/run-folder.md",
        "docs/cluster.md",
        "docs/data.md",
        "docs/models.md",
        "docs/presets.md",
        "docs/report.md",
    ],
)
def test_links_lead_somewhere(name):
    """Breaks when a document points to a file that was moved."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert ((ROOT / name).parent / target).exists(), target


def test_the_commands_of_the_report_page(tmp_path, monkeypatch, capsys):
    """Breaks when docs/report.md names a command, an option or a format that is not there."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/report.md").read_text(encoding="utf-8")
    commands = [
        shlex.split(line, comments=True)[1:]
        for block in re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)
        for line in block.splitlines()
        if line.startswith("reta ")
    ]
    assert len(commands) >= 3
    cli.main(["distill", "digits", "--out", "runs/photos", "--ipc", "1", *QUICK.split()])
    for command in commands:
        if command[0] != "push" or "--dry-run" in command:
            cli.main(command)
    assert "would upload" in capsys.readouterr().out
    with np.load("photos-npz/distilled.npz", allow_pickle=False) as arrays:
        assert len(arrays["images"]) == 10


def test_the_snippet_on_models():
    """Breaks when the page on models shows code that does not run."""
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)

    def my_net(classes):
        pooled = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
        return torch.nn.Sequential(*pooled, torch.nn.Linear(12, classes))

    scope: dict[str, object] = {"MyNet": my_net}
    exec(compile(snippet, "models.md", "exec"), scope)
    assert scope["wrapped"].feature_dim == 12
