"""Work that is interrupted and resumed ends with the same bytes; work that diverges begins anew."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F

from reta import interruption
from reta.checkpoint import Checkpoint, State, attempt
from reta.errors import DivergedError, Interrupted
from reta.interruption import request_stop
from reta.methods import METHODS
from reta.models import Classifier, build
from reta.storage import RunFolder, Unit
from reta.synthesis.loop import Settings, recover
from reta.synthesis.matching import Matching
from reta.synthesis.pool import Pool
from reta.synthesis.recipe import Recipe
from reta.synthesis.schedule import Schedule
from reta.training import Progress, Protocol, fit
from small_world import CLASSES, SIZE


@pytest.fixture(autouse=True)
def _no_stop_is_left() -> Iterator[None]:
    yield
    interruption._State.reason = None


@pytest.fixture
def unit(tmp_path) -> Unit:
    return RunFolder(tmp_path).unit("work", {"seed": 1})


def stopping_after(calls: int) -> Callable[[], None]:
    """Return a function that asks the work to stop when it is called for the n-th time."""
    counter = itertools.count(1)

    def called() -> None:
        if next(counter) == calls:
            request_stop(Interrupted(15))

    return called


@dataclass(frozen=True)
class StoppingMatching(Matching):
    """The usual objective, with a signal arriving while it is computed."""

    called: Callable[[], None] = lambda: None

    def __call__(self, *arguments):
        self.called()
        return super().__call__(*arguments)


def recipe(method: str, **changes: object) -> Recipe:
    made = replace(METHODS[method], schedule=Schedule(7, 2), **changes)
    if made.topology:
        made = replace(made, topology=replace(made.topology, interval=2, spread=True))
    return made


@pytest.mark.parametrize("method", ["fadrm+", "reta-paper", "sre2l"])
def test_recovery_resumes_to_the_same_bytes(
    method: str, unit: Unit, committee: list[Classifier], pool: Pool
) -> None:
    """Breaks when anything that decides a later step is missing from the state, at any step."""
    settings = Settings(3, images_per_pass=CLASSES)  # three passes a step
    whole = recover(recipe(method), committee, pool, range(CLASSES), settings)
    for calls in (1, 2, 6, 8, 10, 17, 20):
        stopped = recipe(method, objective=StoppingMatching(called=stopping_after(calls)))
        with pytest.raises(Interrupted):
            recover(stopped, committee, pool, range(CLASSES), settings, Checkpoint(unit))
        interruption._State.reason = None
        checkpoint = Checkpoint(unit)
        again = recover(recipe(method), committee, pool, range(CLASSES), settings, checkpoint)
        assert again.steps == whole.steps
        assert again.connections == whole.connections
        pairs = (whole.frames, again.frames), (whole.anchors, again.anchors)
        for old, new in pairs:
            assert len(old) == len(new)
            assert all(map(torch.equal, old, new))
        unit.forget()


def batches_of(images: torch.Tensor, called: Callable[[], None]):
    labels = torch.arange(len(images)) % CLASSES

    def batches(epoch: int):
        for part in torch.arange(len(images)).roll(epoch).split(8):
            called()
            yield [(images[half], labels[half]) for half in part.split(4)]

    return batches


def with_dropout() -> Classifier:
    model = build("convnet3", CLASSES, SIZE)
    model.head = torch.nn.Sequential(torch.nn.Dropout(0.5), model.head)
    return model


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("calls", [1, 3, 5, 9, 10, 14])
def test_training_resumes_to_the_same_bytes(calls: int, ema: float, unit: Unit) -> None:
    """Breaks when weights, moments, dropout, batches or figures do not go on where they were."""

    def train(called: Callable[[], None]) -> tuple[Classifier, Progress]:
        model, progress = with_dropout(), Progress()

        def after_epoch(epoch: int) -> None:
            progress.curve.append((epoch, model.head[1].weight.sum().item()))

        images = torch.rand(36, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        batches = batches_of(images, called)
        protocol = Protocol(3, ema=ema)
        kept = {"progress": progress, "checkpoint": Checkpoint(unit)}
        fit(model, batches, F.cross_entropy, protocol, after_epoch, "", seed=3, **kept)
        return model, progress

    whole, curve = train(lambda: None)
    with pytest.raises(Interrupted):
        train(stopping_after(calls))
    interruption._State.reason = None
    again, resumed = train(lambda: None)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert resumed == curve


def test_a_state_of_other_inputs_or_damaged_is_none(unit: Unit) -> None:
    """Breaks when work goes on from a state that is not its own."""
    Checkpoint(unit).save(State({"x": torch.arange(3.0)}, {"step": 4}))
    state = Checkpoint(unit).load()
    assert state is not None
    assert state.tensors["x"].tolist() == [0, 1, 2]
    assert state.facts["step"] == 4
    other = unit.folder.unit("work", {"seed": 2})
    assert Checkpoint(other).load() is None
    path = unit.folder.state_path("work")
    whole = path.read_bytes()
    for place in (0, 70, 140, len(whole) - 1):
        flipped = bytearray(whole)
        flipped[place] ^= 4
        path.write_bytes(flipped)
        assert Checkpoint(unit).load() is None
        path.write_bytes(whole[:place])
        assert Checkpoint(unit).load() is None
    unit.finish()
    assert not path.exists()


def test_states_are_written_rarely(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when keeping the state of fast work costs more than the work."""
    written = []
    checkpoint = Checkpoint(unit)
    with checkpoint.keeping(lambda: written.append(1) or State({})) as offer:
        for _ in range(1000):
            offer()
    assert not written
    monkeypatch.setattr(Checkpoint, "every", 0)
    monkeypatch.setattr(Checkpoint, "share", 1.0)
    checkpoint = Checkpoint(unit)
    with checkpoint.keeping(lambda: written.append(1) or State({})) as offer:
        for _ in range(100):
            offer()
    assert 0 < len(written) <= 100


def test_what_diverges_begins_anew_at_half_the_rate(unit: Unit) -> None:
    """Breaks when a divergence costs a unit that would have worked at a lower rate."""
    cautions = []

    def work(checkpoint: Checkpoint) -> str:
        cautions.append(checkpoint.caution)
        assert checkpoint.load() is None
        if len(cautions) < 3:
            checkpoint.save(State({"x": torch.ones(2)}))
            checkpoint.save(State({"x": torch.tensor([1, float("nan")])}))
        return "done"

    result, failures = attempt(unit, work)
    assert result == "done"
    assert cautions == [1, 0.5, 0.25]
    assert failures == ["work: x became NaN or infinite"] * 2


def test_what_diverges_four_times_is_given_up(unit: Unit) -> None:
    """Breaks when a hopeless unit is tried for ever, or leaves its state behind."""
    tried = []

    def work(checkpoint: Checkpoint) -> None:
        tried.append(1)
        raise DivergedError("hopeless")

    with pytest.raises(DivergedError, match="work diverged 4 times"):
        attempt(unit, work)
    assert len(tried) == 4
    assert not list(unit.folder.path.rglob("*.state"))


def test_an_interrupted_later_attempt_stays_careful(unit: Unit) -> None:
    """Breaks when a unit is resumed at another learning rate than it was going at."""

    def interrupted(checkpoint: Checkpoint) -> None:
        if not checkpoint.failures:
            raise DivergedError("once")
        with checkpoint.keeping(lambda: State({"x": torch.ones(1)})):
            raise Interrupted(15)

    with pytest.raises(Interrupted):
        attempt(unit, interrupted)
    again, failures = attempt(unit, lambda checkpoint: (checkpoint.caution, checkpoint.load()))
    assert again[0] == 0.5
    assert again[1] is not None
    assert failures == ["once"]


@dataclass(frozen=True)
class DivergingMatching(Matching):
    """The usual objective, whose loss is NaN once a counter has run out."""

    calls: Iterator[int] = field(default_factory=itertools.count)
    at: tuple[int, ...] = ()

    def __call__(self, *arguments):
        loss, gap = super().__call__(*arguments)
        return (loss * float("nan") if next(self.calls) in self.at else loss), gap


@pytest.mark.parametrize("at", range(0, 7))
def test_a_nan_at_any_step_is_caught(
    at: int, unit: Unit, committee: list[Classifier], pool: Pool
) -> None:
    """Breaks when a NaN gets through to the images, or a unit is not begun anew."""
    objective = DivergingMatching(calls=itertools.count(), at=(at,))
    # A group in a pass: of packs the first steps are done in two ways, and one call is in one.
    alone = Settings(2, images_per_pass=1)
    result, failures = attempt(
        unit,
        lambda checkpoint: recover(
            recipe("fadrm+", objective=objective), committee, pool, [0, 1], alone, checkpoint
        ),
    )
    assert len(failures) == 1
    assert all(abs(row["loss"]) < 1e6 for row in result.steps)
    calmer = copy.copy(METHODS["fadrm+"])
    slow = replace(calmer, schedule=Schedule(7, 2, learning_rate=0.125))
    expected = recover(slow, committee, pool, [0, 1], Settings(2))
    assert torch.equal(result.images, expected.images)
