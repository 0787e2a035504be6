"""The table of evaluations. To add one, write a class with `measure` and name it here."""

from __future__ import annotations

from reta.evaluation.architectures import Architectures
from reta.evaluation.audit import Audit
from reta.evaluation.continual import Continual
from reta.evaluation.diversity import Diversity
from reta.evaluation.efficiency import Efficiency
from reta.evaluation.ranking import Ranking
from reta.evaluation.robustness import Corruptions
from reta.evaluation.subject import Evaluation

EVALUATIONS: dict[str, Evaluation] = {
    "architectures": Architectures(),
    "audit": Audit(),
    "continual": Continual(),
    "corruptions": Corruptions(),
    "diversity": Diversity(),
    "efficiency": Efficiency(),
    "ranking": Ranking(),
}


def summary(evaluation: Evaluation) -> str:
    """Return the first line of what an evaluation says of itself."""
    return (type(evaluation).__doc__ or "").partition("\n")[0].rstrip(".")
