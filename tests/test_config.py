"""Settings: what is accepted, what is refused, and what the error says."""

import dataclasses
import math
from typing import Any

import pytest

from reta.config import (
    Config,
    describe,
    from_mapping,
    from_yaml,
    preset,
    preset_names,
    resolve,
    to_yaml,
    with_options,
)
from reta.errors import UsageError
from reta.methods import METHODS


def test_yaml_round_trip(tmp_path):
    """Breaks when a setting is lost or changes type between a run and its continuation."""
    config = Config("digits", teachers=("convnet3",), options={"topology.weight": 0.1}, steps=7)
    (tmp_path / "config.yaml").write_bytes(to_yaml(config))
    assert from_yaml(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("classes", [7, ("cat", "dog"), None])
def test_classes_survive_yaml(tmp_path, classes):
    """Breaks when names of classes come back as a list, which compares unequal, or as a count."""
    (tmp_path / "config.yaml").write_bytes(to_yaml(Config("photos", classes=classes)))
    assert from_yaml(tmp_path / "config.yaml").classes == classes


def test_an_unknown_key_names_the_nearest():
    """Breaks when a misspelt setting is silently ignored."""
    with pytest.raises(UsageError, match=r"'teacher_epoch'.*did you mean 'teacher_epochs'"):
        from_mapping({"data": "digits", "teacher_epoch": 3}, "x.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "digits", "ipc": "ten"}, "ipc is 'ten'"),
        ({"data": "digits", "ipc": True}, "ipc is True"),
        ({"data": "digits", "ipc": 0}, "at least 1"),
        ({"data": "digits", "seed": -1}, "negative"),
        ({"data": "digits", "effort": "huge"}, "effort is 'huge'"),
        ({"data": "digits", "teachers": [1]}, "teachers"),
        ({"data": "digits", "classes": [3]}, "classes"),
        ({"data": "digits", "classes": 0}, "at least 1"),
        ({"ipc": 3}, "no `data`"),
    ],
)
def test_a_wrong_value_is_refused(values, message):
    """Breaks when a value of the wrong type or range gets as far as the work."""
    with pytest.raises(UsageError, match=message):
        from_mapping(values, "x.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    """Breaks when damaged YAML ends in a traceback."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"bad\.yaml"):
        from_yaml(path)


def test_effort_fills_only_what_is_left_open():
    """Breaks when the one dial overrides what the user said."""
    small = resolve(Config("digits", steps=123), 16, 10, 1000)
    assert small.steps == 123
    assert small.teachers
    assert None not in (small.teacher_epochs, small.label_epochs, small.student, small.students)
    paper = resolve(Config("digits", effort="paper"), 224, 10, 1000)
    assert paper.label_epochs == 300
    assert "shufflenet_v2_x1_0" in paper.teachers
    assert resolve(Config("digits", effort="paper"), 32, 10, 1000).label_epochs == 1000


@pytest.mark.parametrize(
    ("ipc", "classes", "images", "epochs"),
    [
        (1, 10, 5000, 2),  # 1,000 images of a class for each that is made of it
        (10, 10, 5000, 20),
        (1, 10, 3000, 4),
        (50, 10, 5000, 30),  # no more than the effort says
        (1, 10, 60_000, 0.17),  # a part of an epoch
        (1, 10, 90_000_000, 0.01),
        (1, 2, 2000, 3),  # 5,000 images at least
    ],
)
def test_teachers_of_few_images_learn_less(ipc: int, classes: int, images: int, epochs: float):
    """A class seen for longer than the images made of it are worth; no images at all."""
    chosen = resolve(Config("digits", ipc=ipc), 16, classes, images)
    assert chosen.teacher_epochs == epochs
    assert resolve(chosen, 16, 1, 1) == chosen, "what is chosen stays"


def test_teachers_learn_for_as_long_as_was_said() -> None:
    """The default in the place of a number, of a wanted accuracy, or of another effort."""

    def epochs(**settings: Any) -> float | None:
        return resolve(Config("digits", ipc=1, **settings), 16, 10, 5000).teacher_epochs

    assert epochs(teacher_epochs=7) == 7
    assert str(epochs(teacher_epochs=7.0)) == "7", "a whole number is written as one"
    for wrong in (0, -0.5, math.nan, math.inf):
        with pytest.raises(UsageError, match=r"teacher_epochs is .* above 0"):
            epochs(teacher_epochs=wrong)
    assert epochs(teacher_accuracy=0.9) == 30
    assert epochs(effort="smoke") == 4
    assert epochs(effort="paper") == 200


def test_every_preset_is_valid():
    """Breaks when a shipped preset has a key or a method that does not exist."""
    assert "demo" in preset_names()
    for name in preset_names():
        assert preset(name).method in METHODS


def test_options_reach_into_a_recipe():
    """Breaks when --set changes nothing, or something else."""
    old = METHODS["reta"]
    new = with_options(old, {"connection.trade_off": 0.3, "topology.graph": "separate"})
    assert new.connection.trade_off == 0.3
    assert new.topology.graph == "separate"
    assert dataclasses.replace(new, connection=old.connection, topology=old.topology) == old


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"connection.tradeoff": 0.3}, "did you mean 'trade_off'"),
        ({"connection.trade_off": "high"}, "trade_off is 'high'"),
        ({"connection.trade_off": 2.0}, "trade_off is 2.0"),
        ({"connection.anchors": "nearest"}, "nearest"),
        ({"topology.graph": "both"}, "both"),
        ({"topology.weight.more": 1}, "no such part"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    """Breaks when a misspelt or impossible setting of a method is ignored."""
    with pytest.raises(UsageError, match=message):
        with_options(METHODS["reta"], options)


def test_an_option_of_a_missing_part_is_refused():
    """Breaks when a setting of a part this method lacks is silently dropped."""
    with pytest.raises(UsageError, match="no such part"):
        with_options(METHODS["random"], {"topology.weight": 0.1})


def test_describe_tells_parts_apart():
    """Breaks when two different recipes would look the same to the resume check."""
    texts = {str(describe(recipe)) for recipe in METHODS.values()}
    assert len(texts) == len(METHODS)


def test_the_papers_label_epochs() -> None:
    """1000 on CIFAR-100 and on Tiny-ImageNet at one image per class, else 300."""

    def epochs(size: int, ipc: int) -> int | None:
        return resolve(Config("x", ipc=ipc, effort="paper"), size, 10, 1000).label_epochs

    assert [epochs(32, ipc) for ipc in (1, 10, 50)] == [1000, 1000, 1000]
    assert [epochs(64, ipc) for ipc in (1, 10, 50)] == [1000, 300, 300]
    assert [epochs(224, ipc) for ipc in (1, 10, 50)] == [300, 300, 300]
