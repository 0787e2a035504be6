"""Training: the loss, what is decayed, at which rate, and what is reported."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import confusion_matrix

from reta.committee import committee_logits
from reta.data.distilled import DistilledSet
from reta.data.images import DecodedImages, ImageSet
from reta.data.labels import LabelShard, micro_batches
from reta.models import Classifier, build
from reta.synthesis.relabel import relabel
from reta.training import (
    Progress,
    Protocol,
    accuracy,
    confusion,
    fit,
    predict,
    soft_loss,
    train_student,
    train_teacher,
    watch,
)
from small_world import make_images, make_teacher


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_soft_loss_is_kl_from_the_teacher_without_t_squared(temperature: float) -> None:
    """KL the other way round, a mean over classes, or the factor T² (400 at T = 20)."""
    student, teacher = 3 * rand(5, 7), 3 * rand(5, 7, seed=1)
    total = 0.0
    for row in range(5):
        p = [math.exp(v / temperature) for v in teacher[row].tolist()]
        q = [math.exp(v / temperature) for v in student[row].tolist()]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert soft_loss(temperature)(student, teacher).item() == pytest.approx(total / 5, rel=1e-10)
    assert soft_loss(temperature)(teacher, teacher).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(("stretch", "end"), [(1.0, 0.0), (2.0, 0.5)])
def test_the_cosine_is_stretched(stretch: float, end: float) -> None:
    """η = 2 ends at half the rate; per epoch, from the full rate."""
    protocol = Protocol(epochs=300, learning_rate=5e-4, stretch=stretch)
    assert protocol.rate(0) == 5e-4
    middle = 0.5 * (1 + math.cos(math.pi * 150 / (300 * stretch)))
    assert protocol.rate(150) == pytest.approx(5e-4 * middle)
    assert protocol.rate(300) == pytest.approx(5e-4 * end, abs=1e-12)


def test_defaults_are_those_of_fadrm() -> None:
    """Weight decay 0.01 and T = 20."""
    assert (Protocol(1).weight_decay, Protocol(1).temperature) == (0.01, 20.0)


def test_only_weights_decay_and_at_the_rate_of_the_epoch() -> None:
    """Without a gradient AdamW multiplies by 1 − lr·wd each step: weights, not biases or norms."""
    model = build("convnet3", 3, 8)
    before = {name: value.clone() for name, value in model.named_parameters()}
    protocol = Protocol(epochs=4, learning_rate=0.1, weight_decay=0.5, stretch=2.0)
    finished: list[int] = []
    batch = [(torch.rand(2, 3, 8, 8), torch.zeros(2).long())]
    fit(
        model,
        lambda epoch: [batch, batch],
        lambda logits, targets: 0 * logits.sum(),
        protocol,
        finished.append,
        "nothing to learn",
    )
    assert finished == [1, 2, 3, 4]
    shrunk = 1.0
    for epoch in range(4):
        shrunk *= (1 - 0.5 * 0.1 * 0.5 * (1 + math.cos(math.pi * epoch / 8))) ** 2
    for name, value in model.named_parameters():
        factor = shrunk if value.ndim > 1 else 1.0
        torch.testing.assert_close(value, before[name] * factor, msg=name)
    assert any(value.ndim == 1 for value in before.values())


def test_biases_of_two_axes_do_not_decay_either() -> None:
    """FADRM decays what is called a weight; Swin's position bias is a table, not a weight."""
    model = build("swin_t", 3, 16)
    before = {name: value.clone() for name, value in model.named_parameters()}
    batch = [(torch.rand(2, 3, 16, 16), torch.zeros(2).long())]
    zero = Protocol(epochs=1, learning_rate=0.1, weight_decay=0.5)
    fit(model, lambda _: [batch], lambda logits, _: 0 * logits.sum(), zero, lambda _: None, "none")
    tables = [name for name in before if name.endswith("position_bias_table")]
    assert tables
    for name, value in model.named_parameters():
        if name in tables:
            assert torch.equal(value, before[name])
    weight = dict(model.named_parameters())["head.weight"]
    torch.testing.assert_close(weight, before["head.weight"] * 0.95)


def test_micro_batches_add_up_to_one_step() -> None:
    """A step per micro-batch, gradients left over from the last batch, or a sum for a mean."""
    torch.manual_seed(0)
    images, targets = torch.rand(12, 3, 8, 8), torch.randn(12, 3)
    protocol = Protocol(epochs=2, learning_rate=1e-2)
    batches = [
        [(images[:4], targets[:4]), (images[4:8], targets[4:8])],
        [(images[8:], targets[8:])],
    ]
    ours = build("convnet3", 3, 8, seed=1)
    fit(ours, lambda _: batches, soft_loss(20.0), protocol, lambda _: None, "ours")

    plain = build("convnet3", 3, 8, seed=1).train()
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in plain.parameters() if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in plain.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ]
    )
    for rate in (1e-2, 0.5e-2):
        for group in adamw.param_groups:
            group["lr"] = rate
        for batch in batches:
            losses = []
            for views, soft in batch:
                p, q = (soft / 20).softmax(1), (plain(views) / 20).softmax(1)
                losses.append((p * (p / q).log()).sum(1).mean())
            adamw.zero_grad()
            torch.stack(losses).mean().backward()
            adamw.step()
    for (name, value), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=2e-4, msg=name)
    for name, value in ours.named_buffers():
        torch.testing.assert_close(value, dict(plain.named_buffers())[name], rtol=1e-3, atol=1e-4)


def test_accuracy_in_all_and_by_class(image_set: ImageSet, committee: list[Classifier]) -> None:
    """Classes weighted equally where images should be, or predictions out of order."""
    model = committee[0]
    uneven = DecodedImages(
        image_set.images[:20], image_set.labels[:20], (*image_set.classes, "nobody")
    )
    total, per_class = accuracy(model, uneven)
    right = []
    for image, label in zip(uneven.images, uneven.labels, strict=True):
        right.append(int(model(image[None].float() / 255)[0].argmax()) == int(label))
    assert total == pytest.approx(sum(right) / 20)
    for label in range(4):
        own = [hit for hit, other in zip(right, uneven.labels.tolist(), strict=True)
               if other == label]  # fmt: skip
        assert per_class[label] == pytest.approx(sum(own) / len(own))
    assert len(per_class) == 5
    assert per_class[4] is None  # not 0 %: nobody was asked


def test_predictions_do_not_depend_on_the_batch_size(
    image_set: ImageSet, committee: list[Classifier]
) -> None:
    """Batch statistics in evaluation, or a last part left out."""
    model = build("convnet3", 4, 16).train()
    whole = predict(model, image_set)
    parts = [
        predict(model.train(), DecodedImages(pixels, labels, image_set.classes))
        for pixels, labels in zip(image_set.images.split(5), image_set.labels.split(5), strict=True)
    ]
    assert torch.equal(whole, torch.cat(parts))
    assert len(whole) == len(image_set)
    assert not model.training


@pytest.mark.parametrize("epochs", [1, 7, 10, 25, 300])
def test_the_last_epoch_is_always_measured(
    epochs: int, image_set: ImageSet, committee: list[Classifier]
) -> None:
    """The number reported first is the last epoch's; measuring must not cost more than training."""
    few = DecodedImages(image_set.images[:2], image_set.labels[:2], image_set.classes)
    progress, after_epoch = watch(committee[0], few, Protocol(epochs))
    for epoch in range(1, epochs + 1):
        after_epoch(epoch)
    measured = [epoch for epoch, _ in progress.curve]
    assert measured[-1] == epochs
    assert len(measured) == len(set(measured)) <= 10


def test_last_and_best_are_told_apart() -> None:
    """The best over epochs is chosen on test images and must not pass for the result."""
    progress = Progress([(1, 0.2), (2, 0.6), (3, 0.5)])
    assert (progress.last, progress.best) == (0.5, 0.6)


@pytest.fixture(scope="module")
def distilled() -> DistilledSet:
    images = make_images(3, 6, 16, seed=4)
    order = images.labels.argsort(stable=True)
    shard = relabel([make_teacher(1, 3)], images.images[order], range(2), seed=0)
    return DistilledSet(images.images[order], images.labels[order], images.classes, [shard])


@pytest.mark.parametrize("name", ["convnet3", "mobilenet_v2"])
def test_students_are_reproducible(name: str, distilled: DistilledSet) -> None:
    """Dropout drawn from global state, or global state changed by training."""
    test = DecodedImages(distilled.images, distilled.labels, distilled.classes)
    states = []
    for run, seed in enumerate((1, 1, 2)):
        torch.manual_seed(run)
        before = torch.get_rng_state()
        model = build(name, 3, 16, seed=5)
        train_student(model, distilled, test, Protocol(2), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2]) is (name == "convnet3")  # the seed is for dropout


def test_a_student_learns_what_the_labels_say(distilled: DistilledSet) -> None:
    """Labels out of step with views: the loss on the very views would not fall."""
    model = build("convnet3", 3, 16, seed=5)
    loss = soft_loss(20.0)

    def mean_loss() -> float:
        model.train()
        losses = [
            loss(model(views), logits).item()
            for epoch in range(2)
            for batch in distilled.batches(epoch, torch.device("cpu"))
            for views, logits in batch
        ]
        return sum(losses) / len(losses)

    before = mean_loss()
    test = DecodedImages(distilled.images, distilled.labels, distilled.classes)
    progress = train_student(model, distilled, test, Protocol(30, learning_rate=2e-3), seed=0)
    assert mean_loss() < 0.25 * before
    assert len(progress.per_class) == 3


def test_a_teacher_learns_and_is_reproducible() -> None:
    """Labels out of step with the shuffled images; an augmentation that hides them."""
    images = make_images(3, 20, 16, seed=6)
    runs = []
    for _ in range(2):
        model = build("convnet3", 3, 16, mean=(0.5,) * 3, std=(0.2,) * 3)
        progress = train_teacher(
            model, images, images, Protocol(12, 5e-3), flip=False, seed=0, batch_size=30
        )
        runs.append((progress.curve, model.head.weight.detach().clone()))
    assert progress.last > 0.8
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])


def test_a_part_of_an_epoch_takes_other_images_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All images in spite of the share; the same ones again, so that the others are never seen."""
    images, seen = make_images(2, 40, 16), []
    pixels = DecodedImages.pixels

    def watched(self: DecodedImages, indices: torch.Tensor) -> torch.Tensor:
        seen.append(indices)
        return pixels(self, indices)

    monkeypatch.setattr(DecodedImages, "pixels", watched)
    model, test = build("convnet3", 2, 16), make_images(2, 2, 16)
    train_teacher(model, images, test, Protocol(2), flip=True, seed=0, batch_size=8, share=0.35)
    learned = [batch for batch in seen if len(batch) == 8]
    assert len(learned) == 2 * 4, "0.35 of ten batches, rounded up"
    first, second = (torch.cat(part).tolist() for part in (learned[:4], learned[4:]))
    assert len(set(first)) == len(set(second)) == 32
    assert set(first) != set(second)


@pytest.mark.parametrize("count", [1, 9, 17])
def test_a_left_over_image_is_no_batch(count: int) -> None:
    """One image alone has no batch statistics on a network that ends in one pixel."""
    images = make_images(1, count, 16)
    model = build("convnet3", 2, 16)
    two = DecodedImages(images.images, images.labels, ("a", "b"))
    train_teacher(model, two, two, Protocol(1), flip=True, seed=0, batch_size=8)
    assert all(torch.isfinite(value).all() for value in model.parameters())


def test_larger_images_are_cropped() -> None:
    """Above 64 px teachers see random crops; the sizes must fit."""
    images = make_images(2, 2, 72)
    model = build("convnet3", 2, 72)
    progress = train_teacher(model, images, images, Protocol(1), flip=True, seed=0)
    assert 0 <= progress.last <= 1


def test_the_confusion_matrix_is_that_of_scikit_learn() -> None:
    """True and predicted classes exchanged, or a pair forgotten."""
    labels = torch.randint(0, 5, (200,), generator=torch.Generator().manual_seed(0))
    predicted = torch.randint(0, 6, (200,), generator=torch.Generator().manual_seed(1))
    expected = confusion_matrix(labels, predicted, labels=range(6))
    rows = confusion(predicted, labels)
    assert sum(count for *_, count in rows) == 200
    assert {(true, taken): count for true, taken, count in rows} == {
        (true, taken): expected[true, taken]
        for true, taken in zip(*expected.nonzero(), strict=True)
    }


def test_the_confusion_and_the_accuracy_are_of_the_same_epoch(
    committee: list[Classifier], image_set: ImageSet
) -> None:
    """A matrix of other predictions than those the accuracy beside it counts."""
    model = build("convnet3", 4, 16, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0)
    progress, after_epoch = watch(model, image_set, Protocol(1))
    after_epoch(1)
    right = sum(count for true, taken, count in progress.confusion if true == taken)
    assert right / len(image_set) == pytest.approx(progress.last)


def test_teachers_in_the_loop_teach_what_exact_labels_teach() -> None:
    """Online labels of other views or micro-batches than the recorded ones; teachers that drift."""
    images, teachers = make_images(3, 7, 16, seed=4), [make_teacher(1, 3), make_teacher(2, 3)]
    order = images.labels.argsort(stable=True)
    pixels, labels = images.images[order], images.labels[order]
    asked = relabel(teachers, pixels, range(2), seed=0, online=True)
    assert asked.logits is None
    exact = torch.empty(2, 21, 3)
    for index, epoch in enumerate(asked.epochs):
        views = epoch.render(pixels, torch.arange(21))
        for batch in micro_batches(21):
            part = slice(batch[0].start, batch[-1].stop)
            sizes = [micro.stop - micro.start for micro in batch]
            exact[index, part] = committee_logits(teachers, views[part], sizes)
    sets = [
        DistilledSet(pixels, labels, images.classes, [LabelShard(asked.epochs, exact)], None),
        DistilledSet(pixels, labels, images.classes, [asked], None, teachers=teachers),
    ]
    states = []
    for data in sets:
        model = build("convnet3", 3, 16, seed=5)
        train_student(model, data, images, Protocol(4, 2e-3), seed=0)
        states.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-5)
    for index in (0, 7, 8, 20, 3):
        for one, other in zip(sets[0][index], sets[1][index], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_a_teacher_stops_at_its_target_on_images_it_did_not_learn() -> None:
    """A target measured on test images, or on images that were learned; or never reached."""
    images, test = make_images(3, 40, 16, seed=6), make_images(3, 5, 16, seed=7)
    model = build("convnet3", 3, 16, mean=(0.5,) * 3, std=(0.2,) * 3)
    seen: list[torch.Tensor] = []
    forward = model.forward

    def spy(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        return forward(pixels)

    model.forward = spy  # type: ignore[method-assign]
    progress = train_teacher(
        model, images, test, Protocol(50, 5e-3), flip=False, seed=0, batch_size=36, target=0.9
    )
    epochs, share = progress.held_out[-1]
    assert share >= 0.9 > max([0.0, *(other for _, other in progress.held_out[:-1])])
    assert epochs < 50
    assert progress.curve[-1][0] == epochs
    learned = [batch for batch in seen if batch.requires_grad or len(batch) == 36]
    assert sum(map(len, learned)) == 108 * epochs  # nine tenths of each class of 40
    measured = [batch for batch in seen if len(batch) == 12]
    assert len(measured) == epochs


def test_the_mean_of_the_weights_is_what_is_measured_and_kept() -> None:
    """An average that lags for ever, is not used, or leaks into training."""
    images = make_images(3, 20, 16, seed=6)

    def taught(ema: float) -> tuple[Progress, Classifier]:
        model = build("convnet3", 3, 16, mean=(0.5,) * 3, std=(0.2,) * 3)
        protocol = Protocol(12, 5e-3, ema=ema)
        return train_teacher(model, images, images, protocol, flip=False, seed=0), model

    plain, mean = taught(0.0), taught(0.9)
    assert mean[0].last > 0.8
    assert mean[0].last == pytest.approx(accuracy(mean[1], images)[0])
    assert not torch.equal(plain[1].head.weight, mean[1].head.weight)


def test_the_mean_follows_its_formula() -> None:
    """m ← d·m + (1 − d)·w with d = min(decay, (1 + n) / (10 + n)), statistics included."""
    model = build("convnet3", 3, 16)
    batch = [(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
              torch.tensor([0, 1, 2, 0]))]  # fmt: skip
    seen = [model.state_dict()["trunk.block0.1.running_mean"].clone()]
    inner = model.trunk.get_submodule("block0.1")
    protocol = Protocol(3, 1e-2, ema=0.25)

    def batches(epoch: int) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        if epoch:
            seen.append(inner.running_mean.clone())  # type: ignore[operator, union-attr]
        return [batch]

    cross = torch.nn.functional.cross_entropy
    fit(model, batches, cross, protocol, lambda _: None, "ema")
    kept = model.state_dict()["trunk.block0.1.running_mean"].clone()
    again = build("convnet3", 3, 16)
    fit(again, lambda _: [batch], cross, Protocol(3, 1e-2), lambda _: None, "no ema")
    seen.append(again.state_dict()["trunk.block0.1.running_mean"].clone())
    mean = seen[0]
    for step, value in enumerate(seen[1:], 1):
        decay = min(0.25, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * value
    torch.testing.assert_close(kept, mean)


def test_smoothed_labels_are_spread_over_all_classes() -> None:
    """Label smoothing that is not passed on: logits of an overfitted teacher would run away."""
    images = make_images(3, 10, 16, seed=6)
    sharp = []
    for smoothing in (0.0, 0.3):
        model = build("convnet3", 3, 16, mean=(0.5,) * 3, std=(0.2,) * 3)
        protocol = Protocol(40, 5e-3, smoothing=smoothing)
        train_teacher(model, images, images, protocol, flip=False, seed=0)
        with torch.no_grad():
            sharp.append(model.eval()(images.images.float() / 255).softmax(1).amax(1).mean())
    assert sharp[0] > 0.9 > sharp[1]
