"""What a distilled set costs to make and to keep (paper, Fig. 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reta.evaluation.result import Figure, Result
from reta.evaluation.subject import Subject
from reta.storage import RunFolder


@dataclass(frozen=True)
class Efficiency:
    """Seconds and memory per image, bytes of images and labels (Fig. 5).

    Read from the records of the run, so it costs nothing and needs no data. Seconds are of the
    machine in the manifest, and say little if other programs ran beside.
    """

    def measure(self, subject: Subject) -> Result:
        """Return the costs of a run by stage."""
        count = len(subject.data)
        own, home = _seconds(subject.run), _seconds(subject.shared)
        recover = [facts for name, facts in own.items() if name.startswith("recover-")]
        seconds = {
            "teachers": _total(home, "teacher-"),
            "pool": _total(home, "pool"),
            "recover": _total(own, "recover-"),
            "labels": _total(own, "labels-"),
            "students": _total(own, "student-"),
        }
        sizes = {part: _bytes(subject.run, part) for part in ("images", "labels")}
        real = subject.source.train
        raw = len(real) * 3 * subject.source.image_size**2
        figures = {
            "seconds_per_image": Figure(
                "seconds per image", [seconds["recover"] / count], "seconds", "lower"
            ),
            "label_seconds_per_image": Figure(
                "seconds of labelling per image", [seconds["labels"] / count], "seconds", "lower"
            ),
            "peak_memory": Figure(
                "peak memory",
                [max((float(facts["peak_memory"]) for facts in recover), default=0.0)],
                "bytes",
                "lower",
            ),
            "bytes_images": Figure("bytes of images", [float(sizes["images"])], "bytes", "lower"),
            "bytes_labels": Figure("bytes of labels", [float(sizes["labels"])], "bytes", "lower"),
        }
        details = {
            "seconds": seconds,
            "bytes_real_pixels": raw,
            "label_epochs": subject.data.epochs,
            "bytes_per_view": sizes["labels"] / max(1, subject.data.epochs * count),
            "hardware": subject.manifest["hardware"],
            "device": subject.manifest["device"],
        }
        notes = [
            "Peak memory is the GPU's, or the whole process's where there is none: then it also "
            "holds the images and the libraries, and earlier methods of the same process."
        ]
        return Result(figures, details, notes)


def _seconds(run: RunFolder) -> dict[str, dict[str, Any]]:
    return {name: record["facts"] for name, record in run.records().items()}


def _total(facts: dict[str, dict[str, Any]], prefix: str) -> float:
    return sum(
        float(own.get("seconds", 0)) for name, own in facts.items() if name.startswith(prefix)
    )


def _bytes(run: RunFolder, part: str) -> int:
    return sum(path.stat().st_size for path in (run.path / part).rglob("*") if path.is_file())
