"""The dataset card: ``README.md`` of a run folder, with the front matter Hugging Face reads."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

from reta.reporting import outcome, words
from reta.reporting.reading import Run, figure, part, read_run
from reta.storage import atomic_write

CARD = "README.md"
# What stands between these two lines is the user's own and survives a new card.
_OPENING, _CLOSING = "<!-- yours: begin -->", "<!-- yours: end -->"
# Front matter a person fills in and we only pass on.
_KEPT = ("license", "license_name", "license_link", "language", "source_datasets", "pretty_name")

_SNIPPET = """\
import reta
import torch

data = reta.load(".")  # {images} images, {epochs} of views with soft labels
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear({inputs}, len(data.classes)))
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
for epoch in range(data.epochs):
    data.set_epoch(epoch)
    for views, labels in torch.utils.data.DataLoader(data, batch_size=16):  # no shuffling
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(views), labels).backward()
        optimiser.step()"""

_PLAIN = """\
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor

images = ImageFolder("images", transform=to_tensor)"""


def write_card(folder: Path) -> Path:
    """Write the dataset card of a finished run: what it is, how it was made, its limits.

    What a person wrote into the marked part of an earlier card, and the licence in its front
    matter, are kept.

    Raises:
        DataError: if the folder is no finished run.
    """
    path = Path(folder) / CARD
    earlier = path.read_text("utf-8", errors="replace") if path.is_file() else ""
    atomic_write(path, card_text(read_run(Path(folder)), earlier).encode())
    return path


def card_text(run: Run, earlier: str = "") -> str:
    """Return the card of a run, with the user's part of an earlier card."""
    template = (resources.files("reta.reporting") / "templates" / "card.md.j2").read_text("utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )  # Markdown, not HTML: `_text` takes care of names
    written = environment.from_string(template).render(_facts(run, front_matter(earlier)))
    own = _own_part(earlier)
    if own is not None:
        begin, end = written.index(_OPENING) + len(_OPENING), written.index(_CLOSING)
        written = written[:begin] + own + written[end:]
    return written.rstrip() + "\n"


def _own_part(earlier: str) -> str | None:
    begin, end = earlier.find(_OPENING), earlier.find(_CLOSING)
    return earlier[begin + len(_OPENING) : end] if 0 <= begin < end else None


def front_matter(card: str) -> dict[str, Any]:
    """Return the YAML at the top of a card, or nothing if there is none or it is damaged."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    try:
        value = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError:
        value = {}
    return value if isinstance(value, dict) else {}


def _facts(run: Run, earlier: dict[str, Any]) -> dict[str, Any]:
    metrics, data = run.metrics, run.data
    total, size = outcome.total_images(run), int(data.get("image_size") or 0)
    title = f"{data.get('name', 'Images')}, distilled to {words.plural(run.ipc, 'image')} per class"
    epochs = words.plural(epochs, "epoch") if (epochs := _label_epochs(run)) else "epochs"
    snippet = _SNIPPET.format(images=words.count(total), epochs=epochs, inputs=3 * size * size)
    return {
        "words": words,
        "text": _text,
        "code": _code,
        "rounded": _rounded,
        "front": _front(run, title, total, earlier),
        "opening": _OPENING,
        "closing": _CLOSING,
        "title": _text(title),
        "run": run,
        "total": total,
        "size": size,
        "train": figure(data, "train"),
        "test": figure(data, "test"),
        "snippet": snippet,
        "plain": _PLAIN,
        "metrics": metrics,
        "students": outcome.students(run),
        "accuracy": outcome.accuracy(run),
        "whole": outcome.full_data(run),
        "chance": figure(metrics, "chance"),
        "sizes": _sizes(run),
        "provenance": _provenance(run),
        "limits": _limits(run),
    }


def _label_epochs(run: Run) -> int:
    found = figure(run.metrics, "label_epochs") or figure(run.manifest, "label_epochs")
    return int(found or 0)


def _front(run: Run, title: str, total: int, earlier: dict[str, Any]) -> str:
    bounds = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
    size = next((name for bound, name in bounds.items() if total < bound), "1M<n<10M")
    facts = {
        "license": "unknown",
        "pretty_name": title,
        "task_categories": ["image-classification"],
        "size_categories": [size],
        "tags": ["dataset-distillation", "dataset-condensation", "synthetic", "reta"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "images/**"}],
            }
        ],
    }
    facts |= {key: earlier[key] for key in _KEPT if key in earlier}
    return str(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))


def _sizes(run: Run) -> str:
    images = figure(run.metrics, "bytes_images")
    labels = figure(run.metrics, "bytes_labels")
    if not images:
        return ""
    told = f"Images {words.size(images)}"
    if labels:
        told += f", soft labels {words.size(labels)}: count both when comparing sizes"
    return told + "."


def _provenance(run: Run) -> list[tuple[str, str]]:
    """Return where the set comes from: data, method, teachers, versions, machine."""
    manifest, data = run.manifest, run.data
    hardware, device = part(manifest, "hardware"), part(manifest, "device")
    teachers = [
        f"{name} ({words.percent(value)} on the test images)"
        for name, value in part(manifest, "teacher_accuracy").items()
    ]
    pairs = [
        ("Real images", " · ".join(str(data[k]) for k in ("name", "note") if data.get(k))),
        ("Their fingerprint", data.get("fingerprint")),
        ("Method", f"{manifest.get('method')}: {manifest.get('summary')}"),
        ("Source of the method", manifest.get("source")),
        ("Seed", manifest.get("seed")),
        ("Teachers", ", ".join(teachers)),
        ("Software", f"reta {manifest.get('reta')}, PyTorch {hardware.get('torch')}"),
        ("Machine", hardware.get("gpu") if device.get("name") != "cpu" else hardware.get("cpu")),
        ("Made", manifest.get("created")),
    ]
    return [(name, str(value)) for name, value in pairs if value not in (None, "")]


def _limits(run: Run) -> list[str]:
    recipe = part(run.manifest, "recipe")
    limits = [str(warning) for warning in run.manifest.get("warnings") or []]
    if recipe.get("connection") or part(recipe, "start").get("type") != "Noise":
        limits.append(
            "The images start from real training images or have real ones blended in, and may "
            "show them recognisably. This set is not anonymous: treat it as you must treat the "
            "originals."
        )
    limits += [
        "Biases and mistakes of the real images and of the teachers are in it, and nothing warns "
        "of them.",
        "The soft labels are bound to the stored views: other crops need teachers again, or the "
        "hard labels, which teach less.",
        "Measured on the architectures named above only; others may learn less from it.",
    ]
    return limits


def _text(value: object) -> str:
    """Return text in which Markdown and HTML find nothing to act upon, on one line."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", line)


def _code(name: str) -> str:
    """Return a name as inline code, whatever is in it."""
    line = " ".join(name.split()).replace("|", "¦")
    return f"`` {line} ``" if "`" in line else f"`{line}`"


def _rounded(values: object) -> str:
    numbers = values if isinstance(values, list) else []
    return "(" + ", ".join(f"{float(value):.4g}" for value in numbers) + ")"
