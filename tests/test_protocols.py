"""Protocols: which students a table of accuracies is a table of."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch

import reta
from reta.config import Config
from reta.data.distilled import load
from reta.errors import UsageError
from reta.models import build
from reta.pipeline import distill
from reta.protocols import PRESETS, Regime
from reta.runtime import full_precision
from reta.storage import RunFolder
from reta.students import evaluate, train
from reta.tensors import read_tensors
from reta.training import Protocol, fit, student_loss, train_student
from small_world import make_images

TINY = Config(
    "digits",
    "random",
    ipc=2,
    classes=3,
    per_class=30,
    teachers=("convnet3",),
    teacher_epochs=2,
    label_epochs=3,
    student="convnet3",
    students=2,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without students."""
    return distill(TINY, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.mark.parametrize("epochs", [1, 4, 10, 37, 60, 300, 1000])
def test_fadrm_looks_at_the_test_set_when_its_code_does(epochs: int) -> None:
    """Epochs counted from 0: those from 80 % on that end in 9, and the last."""
    expected = {e for e in range(epochs) if (e >= 0.8 * epochs and e % 10 == 9) or e == epochs - 1}
    protocol = Protocol(epochs, checks="end")
    assert {done - 1 for done in range(1, epochs + 1) if protocol.checked(done)} == expected


def test_the_presets_are_fadrms() -> None:
    """Learning rates 5e-4 and 1e-3, η 1 and 2, all four."""
    assert set(PRESETS) == {(5e-4, 1.0), (5e-4, 2.0), (1e-3, 1.0), (1e-3, 2.0)}
    trained = [one.training(TINY) for one in Regime("fadrm").presets(TINY)]
    assert {(one.learning_rate, one.stretch) for one in trained} == set(PRESETS)
    assert all(one.checks == "end" and one.epochs == 3 for one in trained)
    assert all(one.weight_decay == 0.01 and one.temperature == 20 for one in trained)


@pytest.mark.parametrize(
    "asked",
    [
        {"learning_rate": 0.0},
        {"stretch": -1.0},
        {"epochs": 0},
        {"protocol": "fadrm", "learning_rate": 1e-3},
        {"protocol": "fadrm", "stretch": 1.0},
    ],
)
def test_regimes_that_make_no_sense(asked: dict[str, Any]) -> None:
    """A rate of zero, or a choice where the protocol leaves none."""
    with pytest.raises(UsageError, match=r"must be|four presets"):
        Regime(**asked).presets(TINY)


def test_students_of_other_settings_are_kept_apart(folder: Path) -> None:
    """Breaks when --labels hard overwrites the soft students, or their accuracies are averaged."""
    soft = train(folder)
    assert (soft["protocol"]["labels"], soft["protocol"]["title"]) == ("soft", "default protocol")
    hard = reta.train(folder, labels="hard", epochs=4, learning_rate=2e-3)
    assert hard["protocol"]["labels"] == "hard"
    assert hard["students"][0]["curve"][-1][0] == 4
    assert [row["protocol"]["labels"] for row in hard["accuracies"]] == ["soft", "hard"]
    assert hard["accuracies"][0]["students"] == soft["students"]
    assert sorted(path.name for path in (folder / "students").iterdir()) == [
        "convnet3-0.safetensors",
        "convnet3-1.safetensors",
        "convnet3-hard-lr0.002-4epochs-0.safetensors",
        "convnet3-hard-lr0.002-4epochs-1.safetensors",
    ]
    assert evaluate(folder) == hard  # measured as last asked
    assert train(folder) == {**soft, "accuracies": hard["accuracies"]}
    assert RunFolder(folder).verify() == []


def test_accuracies_are_means_over_students(folder: Path) -> None:
    """Breaks when the spread is over epochs, the best is reported first, or a seed is lost."""
    metrics = train(folder, students=3)
    last = [one["curve"][-1][1] for one in metrics["students"]]
    best = [max(value for _, value in one["curve"]) for one in metrics["students"]]
    figures = metrics["accuracy"]
    assert figures["last_mean"] == pytest.approx(mean(last))
    assert figures["last_std"] == pytest.approx(stdev(last))
    assert figures["best_mean"] == pytest.approx(mean(best))
    assert figures["best_std"] == pytest.approx(stdev(best))
    assert json.loads((folder / "metrics.json").read_text()) == metrics


def test_own_is_what_the_authors_of_the_method_do() -> None:
    """EDC's loss for another method, or another's where nobody asked for it."""
    edc = replace(TINY, method="edc")
    own = Regime("own").training(edc)
    assert (own.loss, own.hard_weight, own.ema, own.stretch) == ("mse", 0.025, 0.99, 2.0)
    assert Regime("own", learning_rate=0.1).training(edc).learning_rate == 0.1
    assert Regime().training(edc) == Regime().training(TINY)
    assert Regime("own").training(TINY) == Regime().training(TINY)
    assert Regime("own").word == "own"


def test_soft_and_hard_labels_side_by_side(folder: Path) -> None:
    """MSE over all logits plus the weighted cross-entropy with the CutMix mixture, in numpy."""
    data = load(folder, temperature=None)
    kinds = [data.batches(0, torch.device("cpu"), kind) for kind in ("both", "soft", "hard")]
    logits = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    loss = student_loss(Protocol(3, loss="mse", hard_weight=0.25))
    for batches in zip(*kinds, strict=True):
        for (views, targets), (same, said), (_, known) in zip(*batches, strict=True):
            assert torch.equal(views, same)
            assert torch.equal(targets, torch.cat([said, known], dim=1))
            own = logits[: len(views)].double().numpy()
            log_sum = np.log(np.exp(own).sum(axis=1, keepdims=True))
            entropy = -(known.numpy() * (own - log_sum)).sum(axis=1).mean()
            expected = ((own - said.numpy()) ** 2).mean() + 0.25 * entropy
            assert loss(logits[: len(views)], targets).item() == pytest.approx(expected, rel=1e-5)


def test_a_student_is_trained_the_methods_way(tmp_path: Path) -> None:
    """The protocol is kept with the student, apart from others, and its name is shown."""
    quick = replace(TINY, method="edc", steps=2)
    run = distill(quick, tmp_path / "run")
    metrics = train(run, students=1, regime=Regime("own"))
    assert metrics["protocol"]["title"] == "the method's own protocol"
    assert (metrics["protocol"]["loss"], metrics["protocol"]["ema"]) == ("mse", 0.99)
    assert (run / "students/convnet3-own-0.safetensors").exists()


def test_fadrm_is_the_best_preset_and_says_so(folder: Path) -> None:
    """Breaks when another preset is reported, raw values are lost, or the name is."""
    metrics = train(folder, students=1, regime=Regime("fadrm", epochs=12))
    assert metrics["protocol"]["title"] == "fadrm protocol (best of four on test)"
    assert {
        (row["protocol"]["learning_rate"], row["protocol"]["stretch"]) for row in metrics["presets"]
    } == set(PRESETS)
    best = [row["best_mean"] for row in metrics["presets"]]
    assert metrics["accuracy"]["best_mean"] == max(best)
    chosen = metrics["presets"][best.index(max(best))]
    assert metrics["students"] == chosen["students"]
    assert [done for done, _ in metrics["students"][0]["curve"]] == [12]
    right = sum(count for true, taken, count in metrics["confusion"] if true == taken)
    total = sum(count for *_, count in metrics["confusion"])
    assert right / total == pytest.approx(metrics["accuracy"]["last_mean"])
    assert len(list((folder / "students").iterdir())) == 4
    assert evaluate(folder) == metrics


def test_a_regime_reaches_the_weights(folder: Path) -> None:
    """Breaks when a setting is named in the record but not used: against `train_student` itself."""
    metrics = train(folder, students=1, regime=Regime(labels="hard", learning_rate=3e-3, stretch=1))
    assert metrics["protocol"]["stretch"] == 1
    (path,) = (folder / "students").iterdir()
    tensors, facts = read_tensors(path)
    data = load(folder, temperature=None)
    model = build("convnet3", 3, 16, mean=facts["mean"], std=facts["std"], seed=0)
    test = make_images(3, 2, 16)
    protocol = Protocol(3, 3e-3, stretch=1.0, labels="hard")
    train_student(model, data, test, protocol, seed=0)
    for name, value in model.state_dict().items():
        assert torch.equal(tensors[name], value), name


def test_hard_labels_are_cross_entropy_on_the_same_views(folder: Path) -> None:
    """Breaks when hard students see other views, or CutMix's partner is forgotten."""
    data = load(folder, temperature=None)
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for kind in ("soft", "hard"):
        batches = data.batches(1, torch.device("cpu"), kind)  # type: ignore[arg-type]
        seen[kind] = [micro for batch in batches for micro in batch]
    for (views, logits), (same, classes) in zip(seen["soft"], seen["hard"], strict=True):
        assert torch.equal(views, same)
        assert logits.shape == classes.shape
        torch.testing.assert_close(classes.sum(1), torch.ones(len(classes)))
    mixed = torch.cat([classes for _, classes in seen["hard"]])
    assert mixed.max() <= 1
    model = build("convnet3", 3, 16, seed=1).train()
    other = build("convnet3", 3, 16, seed=1).train()
    test = make_images(3, 2, 16)
    with full_precision():
        train_student(model, data, test, Protocol(1, labels="hard"), seed=0)

    def by_hand(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return -(targets * logits.log_softmax(1)).sum(1).mean()

    fit(
        other,
        lambda epoch: data.batches(epoch, torch.device("cpu"), "hard"),
        by_hand,
        Protocol(1),
        lambda _: None,
        "by hand",
    )
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)
