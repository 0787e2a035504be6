"""The whole path on a corner of the digits: bytes, resume, refusal, students, comparison."""

import json
import logging
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import reta
from crashes import ended, start, wait
from reta import config
from reta.config import Config
from reta.errors import DataError, UsageError
from reta.models import register
from reta.parts import balanced, class_folders
from reta.pipeline import distill
from reta.preparation import open_data, recipe_of
from reta.progress import warn_once
from reta.storage import RunFolder
from reta.students import evaluate, train

TINY = Config(
    "digits",
    ipc=2,
    classes=3,
    per_class=30,
    teachers=("convnet3", "convnet4"),
    teacher_epochs=2,
    steps=8,
    label_epochs=3,
    student="convnet3",
    students=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with trained students."""
    folder = distill(TINY, tmp_path_factory.mktemp("runs") / "digits")
    train(folder)
    return folder


def results(folder: Path) -> dict[str, str]:
    """Return the hashes of everything but the unit records, which hold wall-clock times."""
    files = RunFolder(folder).manifest()["files"]
    return {
        name: digest
        for name, digest in files.items()
        if not name.startswith("units/") and name != "metrics.json"
    }


def test_a_finished_run_is_intact_and_complete(finished):
    """Breaks when a file is written outside a unit, left behind or not sealed."""
    assert RunFolder(finished).verify() == []
    assert len(list(finished.glob("images/*/*.png"))) == 3 * TINY.ipc
    assert not list(finished.rglob("*.tmp"))
    for name in ("config.yaml", "geometry.json", "metrics.json", "manifest.json"):
        assert (finished / name).is_file()


def test_the_images_are_a_torchvision_folder_in_class_order(finished):
    """Breaks when another tool would read the classes in another order than the labels'."""
    folder = ImageFolder(finished / "images")
    data = reta.load(finished)
    assert tuple(folder.classes) == data.classes
    assert folder.targets == data.labels.tolist()
    for index, (image, _) in enumerate(folder):
        assert np.array_equal(np.asarray(image), data.images[index].permute(1, 2, 0).numpy())


def test_a_plain_training_loop_learns_from_the_set(finished):
    """Breaks when `reta.load` gives views and labels that do not belong together."""
    data = reta.load(finished)
    assert len(data) == 3 * TINY.ipc
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for epoch in range(20 * data.epochs):
        data.set_epoch(epoch)
        for views, labels in DataLoader(data, batch_size=8):
            assert views.shape[1:] == (3, 16, 16)
            assert torch.allclose(labels.sum(dim=1), torch.ones(len(labels)))
            loss = torch.nn.functional.cross_entropy(model(views), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_same_seed_gives_the_same_bytes(finished, tmp_path):
    """Breaks when any random draw, or the clock, reaches an artefact unkeyed."""
    again = distill(TINY, tmp_path / "again")
    train(again)
    assert results(again) == results(finished)


def test_another_seed_gives_other_images(finished, tmp_path):
    """Breaks when the seed is not used."""
    other = results(distill(replace(TINY, seed=1), tmp_path / "other"))
    assert other["images/0/000.png"] != results(finished)["images/0/000.png"]


@pytest.mark.parametrize("lost", ["recover-000", "labels-000", "pool-000", "teacher-convnet3"])
def test_a_lost_unit_is_made_again_with_the_same_bytes(finished, tmp_path, lost):
    """Breaks when a run that stopped between two units ends with other bytes."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    (folder / "units" / f"{lost}.json").unlink()
    (folder / "manifest.json").unlink()
    distill(TINY, folder)
    train(folder)
    assert results(folder) == results(finished)


def test_a_killed_run_continues_to_the_same_bytes(finished, tmp_path):
    """Breaks when kill -9 at any moment leaves something that a second start trips over."""
    folder = tmp_path / "killed"

    def files() -> int:
        return len([path for path in folder.rglob("*.*") if path.name[0] != "."])

    for more in (1, 3, 8):  # killed as soon as so many new files are there
        before, child = files(), start(lambda: distill(TINY, folder))
        while not ended(child) and files() < before + more:
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        assert wait(child) in (0, -signal.SIGKILL)
    distill(TINY, folder)
    train(folder)
    assert results(folder) == results(finished)
    assert RunFolder(folder).verify() == []


def test_a_changed_setting_is_refused_by_name(finished):
    """Breaks when a run is continued with other settings than it was begun with."""
    with pytest.raises(UsageError, match="begun with ipc = 2, not 3"):
        distill(replace(TINY, ipc=3), finished)
    with pytest.raises(UsageError, match="begun with seed = 0, not 7"):
        distill(replace(TINY, seed=7), finished)


def test_damage_is_never_trained_on(finished, tmp_path):
    """Breaks when a flipped bit in an image or a label goes unnoticed at load time."""
    for name in ("images/1/001.png", "labels/views-000.safetensors"):
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(finished, folder)
        content = bytearray((folder / name).read_bytes())
        content[-20] ^= 1
        (folder / name).write_bytes(bytes(content))
        with pytest.raises(DataError, match="changed after it was written"):
            reta.load(folder)
        with pytest.raises(DataError):
            train(folder, students=3)
        (folder / name).unlink()
        with pytest.raises(DataError, match="missing"):
            reta.load(folder)


def test_more_students_keep_the_earlier_ones(finished, tmp_path):
    """Breaks when asking for a third student trains the first two again."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    before = json.loads((folder / "units/student-convnet3-0.json").read_text())
    metrics = train(folder, students=3)
    assert [student["seed"] for student in metrics["students"]] == [0, 1, 2]
    assert json.loads((folder / "units/student-convnet3-0.json").read_text()) == before
    assert evaluate(folder) == metrics
    assert RunFolder(folder).verify() == []


def test_another_student_gets_its_own_figures(finished, tmp_path):
    """Breaks when the accuracies of two architectures are averaged."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    metrics = train(folder, student="convnet4", students=1)
    assert metrics["student"] == "convnet4"
    assert len(metrics["students"]) == 1
    assert metrics["full_data"]["architecture"] == "convnet4"


def write_photos(folder: Path, per_class: int = 8, same: bool = False, shade: int = 0) -> Path:
    """Write a little folder of colour images with one sub-folder per class."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bée 2")):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            noise = np.zeros((18, 16, 3)) if same else rng.integers(0, 40, (18, 16, 3))
            pixels = (noise + 80 * (label + 1) + shade).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def test_a_folder_of_photos_end_to_end(tmp_path):
    """Breaks when images of one's own need anything but a folder per class."""
    photos = write_photos(tmp_path / "photos")
    folder = reta.distill(
        photos,
        tmp_path / "run",
        ipc=2,
        effort="smoke",
        image_size=16,
        teachers=["convnet3"],
        steps=4,
        label_epochs=2,
    )
    data = reta.load(folder)
    assert data.classes == ("ant", "bée 2")
    assert reta.evaluate(folder)["accuracy"]["chance"] == 0.5
    assert reta.report(folder).read_text(encoding="utf-8").count("bée 2")
    assert reta.verify(folder) == []


def test_students_are_not_measured_on_other_images(tmp_path):
    """Breaks when the folder changed since, and accuracy is measured on images it never knew."""
    config = replace(TINY, data=str(write_photos(tmp_path / "photos")), classes=None, image_size=16)
    folder = distill(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "photos")
    write_photos(tmp_path / "photos", shade=3)
    with pytest.raises(DataError, match="not the images"):
        train(folder)


def test_images_may_move_but_not_change(tmp_path):
    """Breaks when a moved folder is a dead end, or changed images are mixed into a finished run."""
    settings = {"classes": None, "per_class": None, "image_size": 16}
    config = replace(TINY, data=str(write_photos(tmp_path / "photos")), **settings)
    folder = distill(config, tmp_path / "run")
    before = results(folder)
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "photos", moved)
    with pytest.raises(DataError, match="not there any more; name --data"):
        train(folder)
    assert train(folder, data=str(moved))["students"]
    assert distill(replace(config, data=str(moved)), folder) == folder
    before.pop("config.yaml")  # it names the new place now
    assert before.items() <= results(folder).items()
    shutil.copy(moved / "ant" / "0.png", moved / "ant" / "new.png")
    with pytest.raises(UsageError, match="begun with other images"):
        distill(replace(config, data=str(moved)), folder)
    assert RunFolder(folder).verify() == []


def test_named_classes_are_the_ones_distilled(tmp_path):
    """Breaks when names choose other classes, or come in another order than they were given."""
    config = replace(TINY, classes=("7", "3"), ipc=1, method="random")
    folder = distill(config, tmp_path / "run")
    assert sorted(path.name[-1] for path in (folder / "images").iterdir()) == ["3", "7"]
    assert reta.load(folder).classes == ("7", "3")
    with pytest.raises(UsageError, match="'seven'"):
        distill(replace(config, classes=("seven",)), tmp_path / "other")


def test_a_run_says_that_its_anchors_were_kept(tmp_path, caplog):
    """Breaks when a user of reta is not told that nothing was retrieved, and why."""
    with caplog.at_level(logging.INFO, logger="reta"):
        folder = distill(replace(TINY, method="reta", ipc=1), tmp_path / "run")
    manifest = RunFolder(folder).manifest()
    (said,) = (one for one in manifest["warnings"] if "anchors they began with" in one)
    assert caplog.text.count(said) == 1
    assert 0 <= manifest["teacher_knowledge"] <= 1


def test_a_start_that_failed_pins_nothing(tmp_path):
    """Breaks when a run that never began refuses other settings."""
    with pytest.raises(UsageError, match="cuda"):
        distill(TINY, tmp_path / "run", device="cuda")
    assert distill(replace(TINY, ipc=1), tmp_path / "run") == tmp_path / "run"


def test_one_poor_class_does_not_switch_topology_off(tmp_path):
    """Breaks when a class with a single image takes the topology term from all the others."""
    photos = write_photos(tmp_path / "photos", per_class=12)
    (photos / "rare").mkdir()
    shutil.copy(photos / "ant" / "0.png", photos / "rare" / "0.png")
    config = replace(TINY, data=str(photos), classes=None, per_class=None, image_size=16, ipc=3)
    folder = distill(config, tmp_path / "run")
    steps = json.loads((folder / "units/recover-000.json").read_text())["facts"]["steps"]
    assert max(step.get("topology", 0) for step in steps) > 0
    warnings = " ".join(RunFolder(folder).manifest()["warnings"])
    assert "rare" in warnings
    assert "images only" in warnings


def test_every_teacher_is_logged(finished):
    """Breaks when rows are thinned in step with the turns, so that one teacher is never seen."""
    steps = json.loads((finished / "units/recover-000.json").read_text())["facts"]["steps"]
    turns = [step["teacher"] for step in steps]
    assert turns.count(0) == turns.count(1)


@pytest.mark.parametrize(
    ("change", "per_class", "same"),
    [({"ipc": 1}, 8, False), ({"ipc": 12}, 8, False), ({"ipc": 3}, 8, True)],
    ids=["one image per class", "more images than there are", "identical images"],
)
def test_degenerate_sets(tmp_path, change, per_class, same):
    """Breaks when a corner of the input makes a NaN, an endless loop or a traceback."""
    photos = write_photos(tmp_path / "photos", per_class, same)
    config = replace(TINY, data=str(photos), classes=None, per_class=None, image_size=16, **change)
    folder = distill(config, tmp_path / "run")
    assert len(reta.load(folder)) == 2 * config.ipc
    geometry = json.loads((folder / "geometry.json").read_text())
    assert all(np.isfinite(geometry["kappa"]))


def test_one_class(tmp_path):
    """Breaks when a set of a single class cannot be distilled."""
    folder = distill(replace(TINY, classes=1, ipc=3), tmp_path / "run")
    assert train(folder)["accuracy"]["last_mean"] == 1.0


def test_no_topology_at_one_image_per_class_is_said_once(tmp_path, caplog):
    """Breaks when ipc 1 silently runs without its topology term, or says so at every step."""
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="reta"):
        distill(replace(TINY, ipc=1), tmp_path / "run")
    said = [record for record in caplog.records if "has no topology" in record.message]
    assert len(said) == 1


class NoNorm(torch.nn.Module):
    """A teacher of one's own, without BatchNorm."""

    def __init__(self, classes):
        super().__init__()
        self.body = torch.nn.Conv2d(3, 16, 5, stride=3)
        self.head = torch.nn.Linear(16, classes)

    def forward(self, pixels):
        return self.head(self.body(pixels).relu().mean((2, 3)))


def test_a_teacher_without_batchnorm_has_no_alignment_term_and_it_is_said(tmp_path, caplog):
    """Breaks when a missing term ends in a traceback, or is missing without a word."""
    register("no_norm", lambda classes, image_size: NoNorm(classes))
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="reta"):
        folder = distill(replace(TINY, teachers=("no_norm",), students=1), tmp_path / "run")
    said = "teacher no_norm has no BatchNorm: its alignment term is 0"
    assert [record.message for record in caplog.records].count(said) == 1
    assert any("no_norm has no BatchNorm" in line for line in folder_warnings(folder))
    steps = json.loads((folder / "units/recover-000.json").read_text())["facts"]["steps"]
    assert {step["bn_gap"] for step in steps} == {0.0}
    assert train(folder, student="no_norm")["student"] == "no_norm"


def folder_warnings(folder: Path) -> list[str]:
    warnings: list[str] = RunFolder(folder).manifest()["warnings"]
    return warnings


def test_a_comparison_shares_teachers_and_tabulates(tmp_path):
    """Breaks when methods are compared under different teachers, or a row is not of its runs."""
    table = reta.compare(
        "digits",
        ["random", "fadrm+"],
        tmp_path / "c",
        seeds=2,
        ipc=2,
        classes=3,
        per_class=30,
        teachers=["convnet3"],
        teacher_epochs=2,
        steps=8,
        label_epochs=3,
        students=1,
        student="convnet3",
    )
    assert [row["method"] for row in table["rows"]] == ["random", "fadrm+"]
    assert all(row["n"] == 2 for row in table["rows"])
    hashes = {
        json.dumps(RunFolder(tmp_path / "c" / name).manifest()["teachers"])
        for names in table["runs"].values()
        for name in names
    }
    assert len(hashes) == 1
    assert table["rows"][0]["contraction_ratio"] is None
    assert reta.report(tmp_path / "c").exists()
    assert reta.verify(tmp_path / "c") == []


def test_a_refused_comparison_leaves_its_teachers_alone(tmp_path, monkeypatch):
    """Breaks when settings are compared only after the shared teachers were trained anew.

    Those that are left open are kept in the runs alone.
    """
    settings = {
        "ipc": 1,
        "classes": 2,
        "per_class": 20,
        "teachers": ["convnet3"],
        "label_epochs": 2,
        "steps": 5,
        "students": 1,
    }
    reta.compare("digits", ["random"], tmp_path / "c", teacher_epochs=1, **settings)
    teacher = (tmp_path / "c/teachers/convnet3.safetensors").read_bytes()
    with pytest.raises(UsageError, match="begun with teacher_epochs = 1, not 2"):
        reta.compare("digits", ["random"], tmp_path / "c", teacher_epochs=2, **settings)
    assert (tmp_path / "c/teachers/convnet3.safetensors").read_bytes() == teacher
    monkeypatch.setattr(config, "FEWEST_VIEWS", 40)
    monkeypatch.setattr(config, "VIEWS", 20)
    reta.compare("digits", ["random"], tmp_path / "d", **settings)
    monkeypatch.setattr(config, "VIEWS", 60)  # another version's
    before = (tmp_path / "d/teachers/convnet3.safetensors").read_bytes()
    with pytest.raises(UsageError, match="begun with teacher_epochs = 1, not 3"):
        reta.compare("digits", ["random"], tmp_path / "d", **settings)
    assert (tmp_path / "d/teachers/convnet3.safetensors").read_bytes() == before
    part = reta.compare("digits", ["random"], tmp_path / "e", teacher_epochs=0.5, **settings)
    assert part["teacher_epochs"] == {"convnet3": 0.5}
    assert (tmp_path / "e/teachers/convnet3.safetensors").read_bytes() not in (teacher, before)
    (tmp_path / "c/teachers/convnet3.safetensors").write_bytes(teacher[:-1] + b"!")
    assert any("teachers/convnet3" in problem for problem in reta.verify(tmp_path / "c"))
    with pytest.raises(DataError, match="choose one of its runs: random"):
        reta.load(tmp_path / "c")


@pytest.mark.parametrize("methods", [[], ["random", "random"]])
def test_a_list_of_methods_that_makes_no_sense(methods, tmp_path):
    """Breaks when a method counts its students twice, or none is named."""
    with pytest.raises(UsageError, match="each only once"):
        reta.compare("digits", methods, tmp_path / "c")


def test_students_of_another_protocol_do_not_count(finished, tmp_path):
    """Breaks when students trained with other settings are averaged with these."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    distill(replace(TINY, learning_rate=0.01, students=1), folder)
    metrics = train(folder)
    assert len(metrics["students"]) == 1
    assert metrics == evaluate(folder)


def test_a_run_continues_with_less_memory(finished, tmp_path):
    """Breaks when lowering images_per_pass after running out of memory is refused."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    before = results(folder)
    distill(replace(TINY, images_per_pass=3), folder)
    kept = ("images", "labels", "teachers", "pool")
    after = results(folder)
    assert all(after[name] == digest for name, digest in before.items() if name.startswith(kept))


def test_a_run_with_list_options_continues(tmp_path):
    """Breaks when an option that YAML reads back as a list counts as changed."""
    config = replace(TINY, options={"schedule.betas": [0.5, 0.8]}, label_epochs=1)
    folder = distill(config, tmp_path / "run")
    assert distill(config, tmp_path / "run") == folder


def test_images_cannot_change_places(finished, tmp_path):
    """Breaks when an edited manifest gives images the labels of another class."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["folders"] = manifest["folders"][::-1]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="changed after it was written"):
        reta.load(folder)


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (100, [100]), (101, [50, 51]), (250, [83, 83, 84])]
)
def test_class_blocks_are_balanced(count, sizes):
    """Breaks when a block, which is a BN group, is left with a single class."""
    spans = balanced(count, 100)
    assert [len(span) for span in spans] == sizes
    assert [label for span in spans for label in span] == list(range(count))


def test_the_effort_scales_a_methods_own_budget():
    """Breaks when SRe2L is given FADRM's number of steps."""
    for method, steps in (("sre2l", 4000), ("reta", 2000)):
        for effort, share in (("smoke", 0.02), ("small", 0.2), ("paper", 1.0)):
            schedule = recipe_of(Config("digits", method=method, effort=effort)).schedule
            assert schedule is not None
            assert schedule.steps == steps * share
    assert recipe_of(Config("digits", method="sre2l", steps=7)).schedule.steps == 7


def test_mirroring_can_be_said(tmp_path):
    """Breaks when --no-flip is not heard, and mirrored letters are taught."""
    photos = write_photos(tmp_path / "photos")
    for flip in (None, False):
        config = Config(str(photos), image_size=16, flip=flip)
        assert open_data(config).flip is (flip is None)


def test_class_folders_sort_in_class_order():
    """Breaks when 1,200 classes or unsafe names are read back in another order, or collide."""
    names = [f"class {index}" for index in range(1200)]
    folders = class_folders(names)
    assert folders == sorted(folders)
    assert len(set(folders)) == 1200
    assert class_folders(["ant", "bee"]) == ["ant", "bee"]
    assert class_folders(["bee", "ant"]) == ["0_bee", "1_ant"]
    assert len(set(class_folders(["a b", "a_b"]))) == 2
    assert all("/" not in name for name in class_folders(["a/../b", "c"]))
