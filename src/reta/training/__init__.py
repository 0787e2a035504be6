"""Training: one loop, for teachers on real images and students on distilled ones."""

from reta.training.loop import adamw, fit
from reta.training.protocol import Loss, Progress, Protocol, soft_loss, student_loss
from reta.training.scoring import accuracy, confusion, predict, shares, watch
from reta.training.student import train_student
from reta.training.teacher import train_teacher

__all__ = [
    "Loss",
    "Progress",
    "Protocol",
    "accuracy",
    "adamw",
    "confusion",
    "fit",
    "predict",
    "shares",
    "soft_loss",
    "student_loss",
    "train_student",
    "train_teacher",
    "watch",
]
