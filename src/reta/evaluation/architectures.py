"""Cross-architecture generalisation (paper, Table 2): one distilled set, students of many kinds."""

from __future__ import annotations

from dataclasses import dataclass

from reta.evaluation.result import Figure, Result
from reta.evaluation.subject import Subject


@dataclass(frozen=True)
class Architectures:
    """Accuracy of students of other architectures (Table 2).

    Every student is trained from scratch with the same protocol. The soft labels are the same for
    all; where a student is also one of the teachers, that is said.

    Attributes:
        students: architectures; see `reta.models.names`.
    """

    students: tuple[str, ...] = ("convnet3", "resnet18", "mobilenet_v2", "shufflenet_v2_x0_5")

    def measure(self, subject: Subject) -> Result:
        """Return the accuracy on unseen real images of each architecture."""
        figures, details = {}, {}
        for name in self.students:
            trained = subject.train(name, subject.seeds)
            last = [student.last for student in trained]
            figures[name] = Figure(name, last)
            details[name] = {
                "parameters": sum(p.numel() for p in trained[0].model.parameters()),
                "last": last,
                "best": [student.best for student in trained],
            }
        teachers = [name for name in self.students if name in subject.manifest["teachers"]]
        notes = [f"Also a teacher of these labels: {', '.join(teachers)}."] if teachers else []
        return Result(figures, details, notes)
