"""Less memory outside of recovery: smaller passes, the same answers; or what to change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch

from reta import gate
from reta.committee import committee_logits
from reta.data.images import DecodedImages
from reta.errors import MemoryLimitError
from reta.evaluation import audit, diversity
from reta.evaluation.geometry import class_features
from reta.evaluation.learners import Examples, learn, recognised
from reta.memory import Halving
from reta.methods import METHODS
from reta.models import Classifier
from reta.synthesis.alignment import TopologyAlignment
from reta.synthesis.cvdd import priors
from reta.synthesis.embedding import embed_class
from reta.synthesis.engine import Settings, Work
from reta.synthesis.layers import LayerProbe, real_statistics
from reta.synthesis.nrrdd import CriticalPatches, CriticalRegions
from reta.synthesis.pool import Pool, build_pool, look
from reta.synthesis.start import Mosaic
from reta.training import Protocol, predict, train_teacher
from small_world import CLASSES, PER_CLASS, SIZE, make_teacher, small

COUNT = CLASSES * PER_CLASS


def short_of_memory(most: int) -> Classifier:
    """Return a teacher in double precision on a device that holds so many images."""
    teacher = make_teacher(1).double()

    def enter(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return (inputs[0].double(),)

    teacher.trunk.register_forward_pre_hook(enter)
    return teacher


def limit_convolutions(patch: pytest.MonkeyPatch, most: int) -> None:
    """Let every network be on a device that holds so many images."""
    forward = torch.nn.Conv2d.forward

    def limited(self: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, images)

    patch.setattr(torch.nn.Conv2d, "forward", limited)


@pytest.mark.parametrize("most", [1, 5, 17])
def test_less_memory_gives_the_same_answers(most: int, image_set: DecodedImages) -> None:
    """Breaks when an image is lost, doubled or answered in another place after memory ran out."""
    plenty, scarce = short_of_memory(COUNT), short_of_memory(most)
    (seen, _), (less, _) = (look(image_set, one, range(COUNT)) for one in (plenty, scarce))
    for name, values in seen.items():
        assert torch.allclose(values, less[name], atol=1e-6), name
    assert torch.equal(predict(plenty, image_set), predict(scarce, image_set))
    answers = [gate._predict(one, image_set.images, None) for one in (plenty, scarce)]
    assert torch.equal(*answers)


@pytest.mark.parametrize("most", [1, 7])
def test_less_memory_gives_the_same_measures(most: int, image_set: DecodedImages) -> None:
    """Breaks when a part of evaluation needs all images of a pass at once, or mixes them up."""
    plenty, scarce = short_of_memory(COUNT), short_of_memory(most)
    pool, images = build_pool(image_set, plenty), image_set.images
    examples = Examples(images, image_set.labels)
    synthetic = images.view(CLASSES, PER_CLASS, *images.shape[1:])
    measures: list[Callable[[Classifier], object]] = [
        lambda model: diversity.unit_features(model, images),
        lambda model: audit.scores(model, image_set),
        lambda model: recognised(model, examples),
        lambda model: class_features(model, pool, synthetic, range(CLASSES), 1)[0].synthetic,
    ]
    for measured in measures:
        torch.testing.assert_close(measured(plenty), measured(scarce), atol=1e-6, rtol=0)


@pytest.mark.parametrize("most", [1, 5])
def test_less_memory_gives_the_same_beginnings(most: int, image_set: DecodedImages) -> None:
    """Breaks when choosing, weighing or reading real images depends on the memory there is."""
    plenty, scarce = short_of_memory(500), short_of_memory(most)
    pool = build_pool(image_set, plenty)
    everything = torch.arange(COUNT)
    crops = pool.pixels(everything).double()
    rows = crops[: 2 * CLASSES].unflatten(0, (2, CLASSES))
    sampled = TopologyAlignment(points=4)
    parts: list[Callable[[Classifier], object]] = [
        lambda model: Mosaic().judge(model, crops, 1),
        lambda model: CriticalPatches().judge(model, crops, 1),
        lambda model: CriticalRegions().free(model, rows, torch.arange(CLASSES)),
        lambda model: priors([model], pool, 0),
        lambda model: real_statistics(LayerProbe(model, 4), pool, everything),
        lambda model: embed_class(replace(pool), 1, [model], "committee"),
        lambda model: sampled.real_features(pool, [0, 1], 4, 0, None, model),
    ]
    for part in parts:
        torch.testing.assert_close(part(plenty), part(scarce), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["dm", "dc", "dsa", "idc", "mtt", "cao2"])
def test_less_memory_gives_the_same_images_from_every_engine(
    name: str, committee: list[Classifier], pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when an engine's batches are other ones where memory is short; to rounding."""
    if name == "cao2":
        pytest.importorskip("diffusers")
    given = METHODS[name].engine
    assert given is not None
    quick = {"student_batch": 2} if name == "mtt" else {"matches": 2} if name != "dm" else {}
    names = {field.name for field in fields(given)}
    engine = small(given, **{key: value for key, value in quick.items() if key in names})
    made = []
    for most in (1000, 3 if name == "dm" else 2):  # the images of a class are DM's least
        with monkeypatch.context() as patch:
            limit_convolutions(patch, most)
            settings = Settings(3, images_per_pass=2 * 3)
            work = Work(committee, pool, range(2), settings, METHODS[name].start)
            laid = [engine.lay(index, work) for index in range(engine.groundwork)]
            made.append((laid, engine.recover(replace(work, laid=laid))))
    (plenty, whole), (scarce, parted) = made
    torch.testing.assert_close(plenty, scarce, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(whole.steps, parted.steps, rtol=1e-3, atol=1e-5)
    assert (whole.images.int() - parted.images.int()).abs().max() <= 1


def test_labels_keep_their_statistics(image_set: DecodedImages) -> None:
    """Breaks when a micro-batch is split, which would change what its labels are."""
    views, sizes = image_set.images[:36].double() / 255, [8, 8, 8, 8, 4]
    plenty = committee_logits([short_of_memory(COUNT)], views, sizes)
    assert torch.equal(committee_logits([short_of_memory(8)], views, sizes), plenty)
    with pytest.raises(MemoryLimitError, match="micro-batches of 8 views"):
        committee_logits([short_of_memory(7)], views, sizes)


def test_one_image_too_many_names_the_fix(image_set: DecodedImages) -> None:
    """Breaks when a pass that cannot be smaller is tried for ever."""
    with pytest.raises(MemoryLimitError, match=f"images of {SIZE} px .* lower --image-size"):
        look(image_set, short_of_memory(0), range(COUNT))


def test_a_training_batch_is_not_made_smaller(image_set: DecodedImages) -> None:
    """Breaks when training goes on with other batches than it says, or without a word."""
    model = make_teacher(1).requires_grad_()

    def enter(*_: object) -> None:
        if model.training:
            raise MemoryError("bad_alloc")

    model.trunk.register_forward_pre_hook(enter)
    with pytest.raises(MemoryLimitError, match=r"a batch of 16 images .* smaller --teachers"):
        train_teacher(model, image_set, image_set, Protocol(1), flip=True, seed=0)


@pytest.mark.parametrize("who", ["a learner", "an MTT student"])
def test_what_cannot_be_parted_says_what_to_lower(
    who: str,
    image_set: DecodedImages,
    committee: list[Classifier],
    pool: Pool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Breaks when a lack of memory ends in a traceback where no smaller pass is the same work."""
    given = METHODS["mtt"].engine
    assert given is not None
    engine = small(given)
    work = Work(committee, pool, range(2), Settings(3), METHODS["mtt"].start)
    work = replace(work, laid=[engine.lay(0, work)])
    limit_convolutions(monkeypatch, 2)
    if who == "a learner":
        model, examples = (
            make_teacher(1).requires_grad_(),
            Examples(image_set.images, image_set.labels),
        )
        with pytest.raises(MemoryLimitError, match="a smaller one would be another training"):
            learn(model, examples, Protocol(1), seed=0, flip=True)
    else:
        with pytest.raises(MemoryLimitError, match=r"lower engine\.student_batch"):
            engine.recover(work)


def test_other_errors_are_left_alone() -> None:
    """Breaks when a mistake in the code counts as a lack of memory."""

    def fail(_: slice) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        Halving("things")(fail, 4)
