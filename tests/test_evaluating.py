"""Evaluations of a finished run: what is written, kept, shared and refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

import reta
from reta import config
from reta.config import Config
from reta.errors import DataError, UsageError
from reta.evaluating import choose, evaluate
from reta.evaluation.catalogue import EVALUATIONS, summary
from reta.pipeline import distill
from reta.planning import outline
from reta.preparation import open_data
from reta.storage import RunFolder

TINY = Config(
    "digits",
    method="reta-paper",  # whose anchors change
    ipc=2,
    classes=3,
    per_class=20,
    teachers=("convnet3",),
    teacher_epochs=1,
    steps=8,
    label_epochs=3,
    student="convnet3",
    students=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; its students are trained when first needed."""
    return distill(TINY, tmp_path_factory.mktemp("runs") / "digits")


def test_cheap_evaluations_write_what_they_return(finished):
    """Breaks when a result is not sealed, not plain JSON, or lacks what a table is made of."""
    names = ("diversity", "efficiency", "architectures")
    options = {"architectures.students": ["convnet3", "convnet4"]}
    results = evaluate(finished, names, options=options)
    assert list(results) == list(names)
    for name, result in results.items():
        assert json.loads((finished / f"evaluations/{name}.json").read_text()) == result
        for figure in result["figures"].values():
            assert figure["values"]
            assert figure["unit"] in ("share", "number", "seconds", "bytes")
    assert len(results["architectures"]["figures"]["convnet4"]["values"]) == 2
    assert reta.verify(finished) == []


def test_what_was_measured_is_kept(finished):
    """Breaks when a repetition measures anew, or a new setting is answered with the old result."""
    before = evaluate(finished, ["diversity"])["diversity"]
    record = RunFolder(finished).record_path("evaluate-diversity")
    made = record.stat().st_mtime_ns
    assert evaluate(finished, ["diversity"])["diversity"] == before
    assert record.stat().st_mtime_ns == made
    other = evaluate(finished, ["diversity"], options={"diversity.neighbours": 2})["diversity"]
    assert other["settings"]["neighbours"] == 2
    assert other["figures"]["coverage"] != before["figures"]["coverage"]


def test_another_teacher_is_refused(finished, tmp_path):
    """Breaks when a set is measured in the feature space of a teacher it was not made with."""
    copy = shutil.copytree(finished, tmp_path / "copy")
    weights = copy / "teachers/convnet3.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(DataError, match="not the teacher"):
        evaluate(copy, ["diversity"], options={"diversity.neighbours": 3})


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["diversty"], {}, "did you mean 'diversity'"),
        (["diversity"], {"diversity.neighbors": 3}, "did you mean 'neighbours'"),
        (["diversity"], {"efficiency.neighbours": 3}, "one that is asked for: diversity"),
        (["accuracy"], {"accuracy.seeds": 3}, "EVALUATION.SETTING"),
        (["diversity"], {"diversity.neighbours": "many"}, "not int"),
    ],
)
def test_what_cannot_be_measured_is_named(names, options, message):
    """Breaks when a misspelt evaluation or setting is ignored, or found only after hours."""
    with pytest.raises(UsageError, match=message):
        choose(names, options)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation_says_what_it_is(name):
    """Breaks when `reta evaluations` has an empty line, or no explanation of a setting."""
    evaluation = EVALUATIONS[name]
    text = type(evaluation).__doc__ or ""
    assert summary(evaluation)
    for setting in vars(evaluation):
        assert f"{setting}: " in text, setting


def test_continual_learning_offline_and_per_stage(finished):
    """Breaks when per-stage memory is the run's own, a curve lacks a size, or references differ."""
    options = {
        "continual.steps": 3,
        "continual.sizes": [3, 6, 60],
        "continual.epochs": 1,
        "continual.orders": 1,
        "continual.references": ["herding"],
    }
    offline = evaluate(finished, ["continual"], options=options)["continual"]
    curves = offline["details"]["curves"]
    assert set(curves) == {"own", "herding"}
    assert set(curves["own"]) == {"3", "6"}
    assert any("60" in note for note in offline["notes"])
    assert any("saw the classes of later stages" in note for note in offline["notes"])
    cell = curves["own"]["6"]
    assert [len(row) for row in cell["matrix"][0]] == [1, 2, 3]
    assert offline["figures"]["final"]["values"] == cell["final"]
    assert cell["incremental"][0] == pytest.approx(sum(cell["accuracy"][0]) / 3)
    strict = evaluate(finished, ["continual"], options=options | {"continual.memory": "per-stage"})[
        "continual"
    ]
    assert any("one stage only" in note for note in strict["notes"])
    stages = sorted((finished / "continual").iterdir())
    assert len(stages) == 3
    for stage in stages:
        (name,) = RunFolder(stage / "digits-ipc2").manifest()["classes"]
        assert name in "012"
    assert reta.verify(finished) == []


def test_teachers_learn_as_long_for_a_memory_of_any_size(tmp_path, monkeypatch):
    """Epochs by the memory's size, so that its teachers differ; epochs that are not said."""
    monkeypatch.setattr(config, "VIEWS", 20)
    monkeypatch.setattr(config, "FEWEST_VIEWS", 1)
    settings = replace(TINY, teacher_epochs=None, students=1)
    made = outline(settings, open_data(settings), tmp_path / "run")
    assert "1 of 1 teachers trained, 2 epochs each" in [stage.detail for stage in made.stages]
    folder = distill(settings, tmp_path / "run")
    options = {
        "continual.steps": 3,
        "continual.sizes": [3, 9],
        "continual.memory": "per-stage",
        "continual.sets": "per-size",
        "continual.epochs": 1,
        "continual.orders": 1,
        "continual.references": [],
    }
    evaluate(folder, ["continual"], options=options)
    assert reta.train(folder)["full_data"]["epochs"] == 2
    runs = [folder, *(path.parent for path in folder.glob("continual/**/images"))]
    assert len({RunFolder(run).manifest()["ipc"] for run in runs}) > 2
    for run in runs:
        assert RunFolder(run).manifest()["teacher_epochs"] == {"convnet3": 2}


@pytest.mark.parametrize("memory", ["offline", "per-stage"])
def test_a_memory_distilled_at_its_own_size(finished, tmp_path, memory):
    """Breaks when a memory of another size is cut from the run, or not of the run's method."""
    folder = shutil.copytree(finished, tmp_path / "run")
    options = {
        "continual.steps": 3,
        "continual.sizes": [3, 9],  # the run has 6 images
        "continual.quota": "shrinking",
        "continual.memory": memory,
        "continual.sets": "per-size",
        "continual.epochs": 1,
        "continual.orders": 1,
        "continual.references": [],
    }
    before = set(folder.glob("continual/**/images"))
    result = evaluate(folder, ["continual"], options=options)["continual"]
    assert set(result["details"]["curves"]["own"]) == {"3", "9"}
    made = [path.parent for path in set(folder.glob("continual/**/images")) - before]
    sizes = sorted(RunFolder(path).manifest()["ipc"] for path in made)
    if memory == "offline":  # all classes at 9/1, 9/2, 3/1, 9/3 and 3/3 images, but not the run's 2
        assert sizes == [1, 3, 4, 9]
        assert {len(RunFolder(path).manifest()["classes"]) for path in made} == {3}
        teachers = RunFolder(folder).manifest()["teachers"]
        assert all(RunFolder(path).manifest()["teachers"] == teachers for path in made)
    else:  # each stage's class when it entered: of 9 images 9, 4, 3; of 3 images 3, 1, 1
        assert sizes == [1, 1, 3, 3, 4, 9]
        assert {len(RunFolder(path).manifest()["classes"]) for path in made} == {1}
    assert {RunFolder(path).manifest()["method"] for path in made} == {TINY.method}
    smaller = result["figures"]["incremental_3"]
    assert smaller["curve"] == result["figures"]["incremental"]["curve"] | {"at": 3}
    assert reta.verify(folder) == []


def test_audit_knows_real_images_for_what_they_are(tmp_path):
    """Breaks when a set of real images passes as synthetic, or an anchor is looked up elsewhere."""
    folder = distill(replace(TINY, method="random", students=1), tmp_path / "random")
    result = evaluate(folder, ["audit"])["audit"]
    assert result["figures"]["close"]["values"] == [1.0]
    assert result["figures"]["anchor_weight"]["values"] == [1.0]
    assert result["figures"]["explained"]["values"][0] == pytest.approx(1)
    for row in result["details"]["images"]:
        assert row["hash"] == {"image": row["anchor"]["image"], "bits": 0}
        assert row["nearest"][0]["image"] == row["anchor"]["image"]
        assert row["nearest"][0]["distance"] == pytest.approx(0, abs=1e-5)
        assert row["anchor"]["explained_by_others"] < 0.9


def test_audit_of_anchors(finished):
    """Breaks when the weights are not those of k connections with α, or no interval is given."""
    result = evaluate(finished, ["audit"])["audit"]
    weight = result["figures"]["anchor_weight"]["values"][0]
    assert 0.5 <= weight < 1  # the last anchor has 1 − α = 0.5, more where it was used before
    low, high = result["details"]["membership"][0]["pool"]["interval"]
    assert 0 <= low <= result["figures"]["membership"]["values"][0] <= high <= 1
    assert any("no privacy guarantee" in note for note in result["notes"])


def test_ranking_keeps_every_accuracy_with_its_seed(finished):
    """Breaks when rates are chosen on test images unasked, or rounds share a seed."""
    options = {"ranking.rounds": 2, "ranking.rates": [1e-3, 5e-3], "ranking.real_epochs": 1}
    options["ranking.epochs"] = 1
    result = evaluate(finished, ["ranking"], options=options)["ranking"]
    assert len(result["details"]["trainings"]) == 7
    for facts in result["details"]["trainings"].values():
        assert facts["seeds"] == [1, 2]
        assert len(facts["test"]) == 2
        assert str(facts["rate"]) in facts["tried"]
        assert facts["tried"][str(facts["rate"])] == max(facts["tried"].values())
    raw = result["details"]["trainings"]
    recovery = [
        real - hard
        for real, hard in zip(
            raw["real, hard labels"]["test"], raw["distilled, hard labels"]["test"], strict=True
        )
    ]
    assert result["figures"]["hlr"]["values"] == pytest.approx(recovery)
