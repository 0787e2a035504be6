"""Teachers trained elsewhere: what is let in, what is refused, and which cause is named."""

from __future__ import annotations

import copy
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model, list_models

from reta import cli, gate, models, teachers
from reta.config import Config
from reta.data.images import DecodedImages
from reta.errors import DataError, RetaError, UsageError
from reta.models import Classifier, Task, build, freeze
from reta.pipeline import distill
from reta.storage import RunFolder
from reta.teachers import TeacherSpec, adopt, open_teacher
from reta.training import Protocol, accuracy, train_teacher

NAMES = tuple("abcdef")
SIZE = 16
NORMAL = teachers.NORMALIZATIONS["imagenet"]
Normal = tuple[models.Triple, models.Triple]
TASK = Task(NAMES, SIZE, (0.5, 0.4, 0.45), (0.25, 0.2, 0.22))


def coloured(per_class: int, seed: int, noise: float = 0.3) -> DecodedImages:
    """Return images whose class is told by where which colour is."""
    generator = torch.Generator().manual_seed(99)
    patterns = torch.rand(len(NAMES), 1, 3, 4, 4, generator=generator)
    patterns = patterns.repeat_interleave(4, 3).repeat_interleave(4, 4)
    generator.manual_seed(seed)
    rough = torch.randn(len(NAMES), per_class, 3, SIZE, SIZE, generator=generator)
    images = (0.2 + 0.5 * patterns + noise * rough).clamp(0, 1).flatten(0, 1)
    labels = torch.arange(len(NAMES)).repeat_interleave(per_class)
    order = torch.randperm(len(labels), generator=generator)
    return DecodedImages((images[order] * 255).round().to(torch.uint8), labels[order], NAMES)


def small(classes: int, image_size: int) -> nn.Module:
    """Return a network that learns in a second."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, stride=4),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * (image_size // 4) ** 2, classes),
    )


models.register("small_net", small)


def taught(seed: int, epochs: int = 6, noise: float = 0.3, normal: Normal = NORMAL) -> Classifier:
    model = build("small_net", len(NAMES), SIZE, mean=normal[0], std=normal[1], seed=seed)
    images, few = coloured(40, 100 + seed, noise), coloured(2, 200 + seed, noise)
    train_teacher(model, images, few, Protocol(epochs, 5e-3), flip=False, seed=seed)
    return freeze(model)


@pytest.fixture(scope="module")
def unseen() -> DecodedImages:
    return coloured(80, 1)


@pytest.fixture(scope="module")
def teacher() -> Classifier:
    return taught(0)


def renormalised(model: Classifier, normal: Normal) -> Classifier:
    """Return the same weights under a normalisation they were not trained with."""
    other = copy.deepcopy(model)
    other.mean.copy_(torch.tensor(normal[0]).view(1, 3, 1, 1))
    other.std.copy_(torch.tensor(normal[1]).view(1, 3, 1, 1))
    return other


def reordered(model: Classifier) -> Classifier:
    """Return the same network with its logits in another order."""
    other = copy.deepcopy(model)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    other.head.weight.data = model.head.weight.data[order]
    other.head.bias.data = model.head.bias.data[order]
    return other


class Blue(Classifier):
    """The same network, trained by a library that reads images as blue, green, red."""

    def __init__(self, model: Classifier) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(copy.deepcopy(model).__dict__)
        first = self.trunk.get_submodule("0")
        first.weight.data = first.weight.data.flip(1)


def test_permuted_classes_are_refused_and_named(teacher: Classifier, unseen: DecodedImages) -> None:
    """RDED's and ImageWoof's trap: labels of another class order cost tens of points, silently."""
    verdict = gate.judge(reordered(teacher), unseen)
    assert verdict.accuracy < 0.4 < 0.8 < (verdict.corrected or 0)
    with pytest.raises(DataError, match="classes are in another order than their names"):
        gate.require("t", verdict, len(NAMES), None)


@pytest.mark.parametrize("wrong", ["none", "bytes"])
def test_a_wrong_normalisation_is_refused_and_the_right_one_named(
    wrong: str, teacher: Classifier, unseen: DecodedImages
) -> None:
    """Pixels from 0 to 1 given to a network that expects them standardised, or the like."""
    verdict = gate.judge(renormalised(teacher, teachers.NORMALIZATIONS[wrong]), unseen)
    with pytest.raises(DataError, match="expects the normalisation 'imagenet'"):
        gate.require("t", verdict, len(NAMES), None)


def test_a_normalisation_of_the_data_itself_is_found_too(unseen: DecodedImages) -> None:
    """A teacher normalised with its own data's statistics has no name in any table."""
    own = ((0.1, 0.6, 0.3), (0.2, 0.5, 0.1))
    model = renormalised(taught(1, normal=own), teachers.NORMALIZATIONS["bytes"])
    verdict = gate.judge(model, unseen, own)
    with pytest.raises(DataError, match="expects the normalisation 'data'"):
        gate.require("t", verdict, len(NAMES), None)


def test_blue_green_red_is_refused_and_named(teacher: Classifier, unseen: DecodedImages) -> None:
    """OpenCV's channel order."""
    verdict = gate.judge(Blue(teacher), unseen)
    with pytest.raises(DataError, match="channels are in the order blue, green, red; with that"):
        gate.require("t", verdict, len(NAMES), None)


def test_two_mistakes_at_once_are_named(teacher: Classifier, unseen: DecodedImages) -> None:
    """Caffe's way: blue, green, red and bytes."""
    model = renormalised(Blue(teacher), teachers.NORMALIZATIONS["bytes"])
    verdict = gate.judge(model, unseen)
    with pytest.raises(DataError, match="blue, green, red and it expects the normalisation"):
        gate.require("t", verdict, len(NAMES), None)


@pytest.mark.parametrize("classes", [NAMES[:4], (*NAMES, "g"), (*NAMES[:5], "z")])
def test_other_classes_are_refused_naming_both(
    classes: tuple[str, ...], teacher: Classifier, tmp_path: Path
) -> None:
    """A teacher of other classes or of another number of them."""
    models.save(teacher, tmp_path / "t.safetensors", replace(TASK, mean=NORMAL[0], std=NORMAL[1]))
    data = replace(TASK, classes=classes)
    spec = TeacherSpec(str(tmp_path / "t.safetensors"))
    if set(classes) <= set(NAMES):  # it knows these and more: matched by name
        assert open_teacher(spec, data).classes == 4
        return
    with pytest.raises(DataError, match=r"does not know the class '[gz]'.*(6 classes|'f', in)"):
        open_teacher(spec, data)


def test_classes_are_matched_by_name(
    teacher: Classifier, unseen: DecodedImages, tmp_path: Path
) -> None:
    """A teacher's own class order used as if it were the data's."""
    models.save(teacher, tmp_path / "t.safetensors", replace(TASK, mean=NORMAL[0], std=NORMAL[1]))
    order = [4, 1, 3]
    task = replace(TASK, classes=tuple(NAMES[label] for label in order))
    model = open_teacher(TeacherSpec(str(tmp_path / "t.safetensors")), task)
    pixels = unseen.images[:20].float() / 255
    torch.testing.assert_close(model(pixels), teacher(pixels)[:, order])
    assert model.head.out_features == model.classes == 3


@pytest.mark.parametrize("seed", range(20))
def test_a_correct_teacher_is_let_in(seed: int) -> None:
    """False alarms: 20 teachers, strong to weak, under five normalisations, on new images."""
    normal = list(teachers.NORMALIZATIONS.values())[seed % 5]
    noise = (0.3, 0.45, 0.6, 0.7)[seed % 4]
    verdict = gate.judge(taught(seed, 6, noise, normal), coloured(80, 300 + seed, noise), normal)
    assert verdict.cause is None
    assert gate.require("t", verdict, len(NAMES), None) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_weak_but_honest_teacher_is_not_accused(seed: int) -> None:
    """A cause named where nothing is wrong but the training."""
    verdict = gate.judge(taught(seed, 1, 1.5), coloured(80, 300 + seed, 1.5))
    assert verdict.accuracy < 0.6
    assert verdict.cause is None


def test_the_floor_is_five_times_chance_at_most_halfway() -> None:
    """A floor above 1 for few classes, or one that lets guessing in."""
    assert gate.default_floor(1000) == pytest.approx(0.005)
    assert gate.default_floor(100) == pytest.approx(0.05)
    assert gate.default_floor(2) == pytest.approx(0.75)


def test_a_weak_teacher_is_refused_unless_the_user_is_content() -> None:
    """Poor labels for want of a look at the teacher; or no way to insist."""
    weak = gate.Verdict(accuracy=0.3, images=512)
    with pytest.raises(DataError, match=r"30\.0% of 512 real images \(chance 10\.0%\)"):
        gate.require("t", weak, 10, None)
    assert gate.require("t", weak, 10, 0.25) is None
    swapped = gate.Verdict(0.7, 512, "its classes are swapped", 0.9)
    with pytest.raises(DataError, match=r"say --teacher-floor 0\.70"):
        gate.require("t", swapped, 10, None)
    assert "swapped" in (gate.require("t", swapped, 10, 0.7) or "")


CONFIG = Config(
    "",
    ipc=1,
    image_size=SIZE,
    steps=4,
    label_epochs=1,
    student="convnet3",
    students=1,
    flip=False,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    train, test = coloured(30, 5), coloured(40, 6)
    path = tmp_path_factory.mktemp("data") / "tinted.npz"
    np.savez(
        path,
        images=train.images.permute(0, 2, 3, 1).numpy(),
        labels=train.labels.numpy(),
        classes=np.array(NAMES),
        test_images=test.images.permute(0, 2, 3, 1).numpy(),
        test_labels=test.labels.numpy(),
    )
    return str(path)


def test_an_adopted_teacher_distils(
    data: str, teacher: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way of a user's weights, from `reta adopt` to a finished and continued run."""
    monkeypatch.chdir(tmp_path)
    parts = {"trunk": teacher.trunk.state_dict(), "head": teacher.head.state_dict()}
    bare = {**parts["trunk"], **{f"4.{key}": value for key, value in parts["head"].items()}}
    save_file(bare, "bare.safetensors")
    Path("names.txt").write_text("\n".join(NAMES) + "\n")
    asked = "--architecture small_net --classes names.txt --image-size 16 --normalization imagenet"
    cli.main(["adopt", "bare.safetensors", *asked.split(), "--out", "mine.safetensors"])
    config = replace(
        CONFIG, data=data, teachers=("mine.safetensors", "small_net"), teacher_epochs=2
    )
    run = RunFolder(distill(config, tmp_path / "run"))
    manifest = run.manifest()
    assert set(manifest["teachers"]) == {"mine", "small_net"}
    own = DecodedImages(*_test_part(data), NAMES)
    assert manifest["teacher_accuracy"]["mine"] == pytest.approx(accuracy(teacher, own)[0])
    assert run.records()["teacher-mine"]["facts"]["gate"]["cause"] is None
    again, task = models.read(run.path / "teachers/mine.safetensors")
    assert task.classes == NAMES
    assert torch.equal(again.head.weight, teacher.head.weight)
    assert distill(config, tmp_path / "run") == run.path


def _test_part(data: str) -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(data) as arrays:
        images = torch.from_numpy(arrays["test_images"]).permute(0, 3, 1, 2).contiguous()
        return images, torch.from_numpy(arrays["test_labels"])


def test_a_wrongly_adopted_teacher_stops_the_command_with_exit_code_3(
    data: str, teacher: Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refusal that a script cannot tell from success."""
    wrong = reordered(teacher)
    file = tmp_path / "wrong.safetensors"
    models.save(wrong, file, replace(TASK, mean=NORMAL[0], std=NORMAL[1]))
    options = ["--ipc", "1", "--image-size", "16", "--steps", "4", "--label-epochs", "1"]
    command = ["distill", data, "--out", str(tmp_path / "run"), "--teachers", str(file)]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command, *options])
    assert stopped.value.code == 3
    assert "another order than their names" in " ".join(capsys.readouterr().err.split())


def test_a_teacher_of_another_run_folder_is_not_read_as_this_ones(
    data: str, teacher: Classifier, tmp_path: Path
) -> None:
    """Class names, order, size and normalisation are compared at every load."""
    path = tmp_path / "t.safetensors"
    models.save(teacher, path, replace(TASK, mean=NORMAL[0], std=NORMAL[1]))
    right = replace(TASK, mean=NORMAL[0], std=NORMAL[1])
    assert models.read(path, right)[1] == right
    for wrong, said in (
        (replace(right, classes=NAMES[::-1]), "in another order: number 0 is 'a', in the data 'f'"),
        (replace(right, classes=NAMES[:3]), "answers 6 classes .*, the data has 3"),
        (replace(right, image_size=32), "of 16 px, these have 32 px"),
        (replace(right, mean=(0.5, 0.5, 0.5)), r"mean \(0.4850, .*here it is \(0.5000"),
    ):
        with pytest.raises(DataError, match=said):
            models.read(path, wrong)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def answers(file: Path, **changes: object) -> dict[str, object]:
    known = {
        "architecture": "small_net",
        "classes": NAMES,
        "image_size": SIZE,
        "normalization": "imagenet",
    }
    return {"out": file, **known, **changes}


def test_no_pickle_is_read_unasked_and_none_runs_code(tmp_path: Path) -> None:
    """Code hidden in a file of weights, run with or without the flag."""
    out, marker = tmp_path / "t.safetensors", tmp_path / "marker"
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in small(6, 16).state_dict().items()}}, good
    )
    torch.save({"state_dict": Payload(marker)}, bad)
    for path in (good, bad):
        with pytest.raises(UsageError, match="--allow-pickle-weights"):
            adopt(path, **answers(out))
    with pytest.raises(DataError, match="cannot be read as weights alone"):
        adopt(bad, **answers(out, allow_pickle=True))
    assert not marker.exists()
    assert not out.exists()
    assert adopt(good, **answers(out, allow_pickle=True)).classes == NAMES
    with pytest.raises(UsageError, match="not a file of reta"):
        TeacherSpec(str(good)).check(SIZE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": NAMES[:4]}, "the number of classes: 6, not 4"),
        ({"classes": ("a", "a")}, "every class once"),
        ({"architecture": "convnet3"}, "not the weights of a convnet3: 20 missing"),
        ({"normalization": "imagenett"}, "did you mean 'imagenet'"),
        ({"out": "t.pth"}, "is a .safetensors file"),
    ],
)
def test_wrong_answers_are_refused(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    """A teacher that says of itself what is not so."""
    path = tmp_path / "w.safetensors"
    save_file(small(6, 16).state_dict(), path)
    with pytest.raises(RetaError, match=said):
        adopt(path, **answers(tmp_path / "t.safetensors", **changes))


def test_weights_with_the_stem_of_another_size_say_so(tmp_path: Path) -> None:
    """A network made for 224 px loaded at 32 px, or a traceback of a hundred lines."""
    path = tmp_path / "w.safetensors"
    save_file(get_model("shufflenet_v2_x0_5", weights=None, num_classes=6).state_dict(), path)
    wrong = answers(tmp_path / "t.safetensors", architecture="shufflenet_v2_x0_5", image_size=32)
    adopt(path, **wrong)  # its kernel is 3 x 3 at any size
    path = tmp_path / "r.safetensors"
    save_file(get_model("resnet18", weights=None, num_classes=6).state_dict(), path)
    with pytest.raises(DataError, match=r"conv1\.weight is \(64, 3, 7, 7\).*the stem"):
        adopt(path, **wrong | {"architecture": "resnet18"})


def test_weights_that_say_nothing_are_not_guessed_at(tmp_path: Path) -> None:
    """A bare state dict taken for a teacher of these classes in this order."""
    path = tmp_path / "w.safetensors"
    save_file(small(6, 16).state_dict(), path)
    with pytest.raises(DataError, match="does not say its architecture, classes"):
        open_teacher(TeacherSpec(str(path)), TASK)


IMAGENET = Task(("n01440764", "chain_saw", "English_springer"), 72, *NORMAL)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in for torchvision's published weights where a download would lie."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = get_model("shufflenet_v2_x0_5", weights=None).state_dict()
    file = tmp_path / "hub/checkpoints/new.pth"
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    name = f"net-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    weights = type("Weights", (), {"url": f"http://127.0.0.1:9/{name}"})
    monkeypatch.setattr(teachers, "_imagenet_weights", lambda _: weights)
    return file.rename(file.parent / name)


def test_imagenet_weights_are_matched_by_class_name(published: Path) -> None:
    """ImageNet's 1000 logits used for a subset's classes in the wrong places."""
    model = open_teacher(TeacherSpec("shufflenet_v2_x0_5@imagenet"), IMAGENET)
    whole = get_model("shufflenet_v2_x0_5", weights=None).eval()
    whole.load_state_dict(torch.load(published, weights_only=True))
    pixels = torch.rand(2, 3, 72, 72, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in NORMAL)
    torch.testing.assert_close(model(pixels), whole((pixels - mean) / std)[:, [0, 491, 217]])
    with pytest.raises(DataError, match="does not know the class 'reta' of the data"):
        open_teacher(
            TeacherSpec("shufflenet_v2_x0_5@imagenet"), replace(IMAGENET, classes=("reta",))
        )


def test_published_weights_are_compared_with_their_hash(published: Path) -> None:
    """A damaged or exchanged file in torch's cache, which torch itself looks at only once."""
    content = bytearray(published.read_bytes())
    content[-1] ^= 1
    published.write_bytes(bytes(content))
    with pytest.raises(DataError, match="not the file it was published as; delete it"):
        open_teacher(TeacherSpec("shufflenet_v2_x0_5@imagenet"), IMAGENET)


def test_without_a_network_it_says_what_to_put_where(published: Path) -> None:
    """A traceback of urllib where a user sits behind a firewall."""
    published.unlink()
    with pytest.raises(DataError, match=f"cannot be downloaded.*put it at {published}"):
        open_teacher(TeacherSpec("shufflenet_v2_x0_5@imagenet"), IMAGENET)


@pytest.mark.parametrize(
    ("text", "size", "said"),
    [
        ("resnet18@imagenet", 64, "images larger than 64 px, not 64 px"),
        ("convnet3@imagenet", 128, "torchvision has no such weights"),
        ("resnet19@imagenet", 128, "did you mean 'resnet18'"),
        ("nowhere.safetensors", 32, "no such file"),
        ("resnet18@imagnet", 128, "did you mean"),
    ],
)
def test_impossible_teachers_are_refused_before_anything_runs(
    text: str, size: int, said: str
) -> None:
    """A mistake found after the other teachers were trained."""
    with pytest.raises(UsageError, match=said):
        TeacherSpec(text).check(size)


def test_every_published_file_names_its_hash() -> None:
    """Weights that could not be verified."""
    published = set(models.names()) & set(list_models())
    assert len(published) > 10
    for name in published:
        url = teachers._imagenet_weights(name).url
        digest = Path(url).stem.rpartition("-")[2]
        assert len(digest) >= 8, url
        int(digest, 16)
