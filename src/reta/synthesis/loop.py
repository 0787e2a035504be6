"""The one loop that runs any recipe over a block of classes, all their images side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from reta.checkpoint import Checkpoint, State, optimiser_tensors, restore_optimiser
from reta.data.augment import Views, random_views, render
from reta.errors import DivergedError
from reta.interruption import check
from reta.models import Classifier
from reta.progress import track, warn_once
from reta.runtime import Stopwatch, random_generator, recovery_precision
from reta.synthesis.alignment import Aligner
from reta.synthesis.batches import Batches
from reta.synthesis.canvas import Canvas
from reta.synthesis.connecting import choose, connect
from reta.synthesis.connection import share_at
from reta.synthesis.engine import Recovered, Settings, Tensors, Work
from reta.synthesis.matching import Scene, Turn
from reta.synthesis.packing import Packing
from reta.synthesis.pool import Pool
from reta.synthesis.probes import probe
from reta.synthesis.recipe import Recipe
from reta.synthesis.schedule import Block, Schedule
from reta.tracking import note

__all__ = ["Recovered", "Recovery", "Settings", "jitter", "recover"]


def jitter(image_size: int) -> int:
    """Return FADRM's largest circular shift: 4 px up to 64 px, 32 px at 224."""
    if image_size > 64:
        return image_size // 7
    return min(4, image_size // 8)


class Recovery:
    """One block of classes on its way from start images to synthetic ones."""

    def __init__(
        self,
        recipe: Recipe,
        committee: Sequence[Classifier],
        pool: Pool,
        labels: Sequence[int],
        settings: Settings,
    ) -> None:
        self.recipe = recipe
        self.teachers = list(committee) if recipe.committee == "all" else list(committee[:1])
        short = recovery_precision(committee[0].mean.device)
        self.probes = [probe(one, short, settings.compiled) for one in self.teachers]
        self.pool = pool
        self.labels = list(labels)
        self.settings = settings
        device = self.teachers[0].mean.device
        self.targets = torch.tensor(self.labels, device=device)
        self.batches = Batches(recipe.objective.batch, len(self.labels), settings.ipc)
        scene = Scene(self.probes, pool, self.labels, settings.ipc, settings.seed)
        self.matcher = recipe.objective.at_work(scene)
        self._news: list[Any] = []  # what the matcher is to remember if the step is completed
        beginning = recipe.start(pool, committee[0], self.labels, settings.ipc, settings.seed)
        self.used = [] if beginning.anchors is None else [beginning.anchors]
        self.free = None  # where pixels may change
        if recipe.preserve:
            images = beginning.images.to(device)
            self.free = recipe.preserve.free(self.teachers[0], images, self.targets)
        at_once = max(1, settings.images_per_pass // len(self.labels))
        packing = Packing(at_once, len(self.labels), settings.ipc, device)
        self.canvas = Canvas(beginning.images, self.probes, self.batches, packing, pool.grey)
        self.aligner = None
        if recipe.topology and settings.ipc > 1:
            self.aligner = Aligner(recipe.topology, self.canvas, pool, labels, settings.seed)
        elif recipe.topology:
            warn_once("one synthetic image per class has no topology: the PTA term is 0")
        self.steps: list[dict[str, float]] = []
        self.connections: list[dict[str, float]] = []
        self.frames = [self.canvas.frame()]
        self.block, self.step = 0, 0  # the next step to be taken
        self.caution = 1.0  # share of the learning rate
        self.optimiser: torch.optim.Optimizer | None = None

    def run(self, checkpoint: Checkpoint | None = None) -> Recovered:
        """Optimise and connect, block after block.

        Args:
            checkpoint: where an interrupted block of classes continues.

        Raises:
            DivergedError: if the loss becomes NaN or infinite.
        """
        checkpoint = checkpoint or Checkpoint()
        self.caution = checkpoint.caution
        watch, earlier = Stopwatch(), self._restore(checkpoint.load())
        if self.recipe.schedule:
            blocks = self.recipe.schedule.blocks(self.canvas.image_size)
            with checkpoint.keeping(lambda: self._state(earlier + watch.seconds)) as offer:
                while self.block < len(blocks):
                    self._optimise(self.recipe.schedule, blocks, offer)
                    self._close(blocks)
        return Recovered(
            images=self.frames[-1],
            frames=self.frames,
            anchors=[anchors.T.contiguous() for anchors in self.used],
            steps=self.steps,
            connections=self.connections,
            seconds=earlier + watch.seconds,
            images_per_pass=self.canvas.packing.at_once * len(self.labels),
        )

    def _close(self, blocks: Sequence[Block]) -> None:
        """End a block: keep its images, connect, and turn to the next one."""
        self.canvas.pixels, self.optimiser = self.canvas.pixels.detach(), None
        if self.aligner:
            self.aligner.pull = None
        if not torch.isfinite(self.canvas.pixels).all():
            raise DivergedError("the pixels became NaN or infinite; lower schedule.learning_rate")
        self.frames.append(self.canvas.frame())
        self.block, self.step = self.block + 1, 0
        if self.recipe.connection and self.block < len(blocks):
            done = sum(block.steps for block in blocks[: self.block])
            self._connect(blocks[self.block].size, done)

    def _state(self, seconds: float) -> State:
        """Return what decides how the work goes on between two steps."""
        tensors = {"pixels": self.canvas.pixels.detach()}
        tensors |= {f"matcher.{name}": value for name, value in self.matcher.tensors().items()}
        if self.optimiser:
            tensors |= optimiser_tensors(self.optimiser)
        if self.aligner and self.aligner.pull is not None:
            tensors["pull"] = self.aligner.pull
        for index, frame in enumerate(self.frames):
            tensors[f"frame.{index}"] = frame
        for index, anchors in enumerate(self.used):
            tensors[f"anchors.{index}"] = anchors
        facts = {
            "block": self.block,
            "step": self.step,
            "steps": self.steps,
            "connections": self.connections,
            "seconds": seconds,
        }
        return State(tensors, facts)

    def _restore(self, state: State | None) -> float:
        """Go back to where the work was interrupted; return the seconds it had taken."""
        if state is None:
            return 0.0
        device, tensors = self.canvas.pixels.device, state.tensors
        self.block, self.step = state.facts["block"], state.facts["step"]
        self.steps, self.connections = state.facts["steps"], state.facts["connections"]
        self.frames = [tensors[f"frame.{index}"] for index in range(self.block + 1)]
        count = sum(name.startswith("anchors.") for name in tensors)
        self.used = [tensors[f"anchors.{index}"] for index in range(count)]
        self.canvas.pixels = tensors["pixels"].to(device)
        prefix = "matcher."
        remembered = {k: v for k, v in tensors.items() if k.startswith(prefix)}
        self.matcher.load({k.removeprefix(prefix): v.to(device) for k, v in remembered.items()})
        if self.aligner and "pull" in tensors:
            self.aligner.pull = tensors["pull"].to(device)
        if self.step:
            restore_optimiser(self._adam(), tensors)
        return float(state.facts["seconds"])

    def _adam(self) -> torch.optim.Optimizer:
        """Return a new optimiser of the pixels; its moments begin at zero in each block."""
        assert self.recipe.schedule is not None
        pixels = self.canvas.pixels.requires_grad_()
        betas = self.recipe.schedule.betas
        self.optimiser = torch.optim.Adam([pixels], betas=betas, eps=1e-8)
        return self.optimiser

    def _draw_views(self, block: Block, index: int) -> list[Views]:
        """Draw the augmentation of every step of a block: one view per BN group."""
        objective, schedule = self.recipe.objective, self.recipe.schedule
        assert schedule is not None
        size = self.canvas.image_size
        done = sum(one.steps for one in schedule.blocks(size)[:index])
        steps = range(done, done + block.steps)
        least = [objective.smallest_crop(step, schedule.steps) for step in steps]
        draws = [
            random_views(
                random_generator(self.settings.seed, "recover", self.labels[0], group, index),
                block.steps,
                block.size,
                scale=(least, objective.crop[1]),
                flip=self.settings.flip,
                shift=jitter(size) if objective.shift else 0,
            )
            for group in range(self.batches.count)
        ]
        parts = zip(*[(view.boxes, view.flips, view.shifts) for view in draws], strict=True)
        boxes, flips, shifts = (torch.stack(part, dim=1) for part in parts)  # (steps, groups, …)
        return [Views(*view) for view in zip(boxes, flips, shifts, strict=True)]

    def _optimise(
        self, schedule: Schedule, blocks: Sequence[Block], offer: Callable[[], None]
    ) -> None:
        """Take the steps of one block that are still to be taken."""
        canvas, block = self.canvas, blocks[self.block]
        done = sum(block.steps for block in blocks[: self.block])
        if self.optimiser is None:
            canvas.pixels = canvas.resized(block.size)
        optimiser = self.optimiser or self._adam()
        views = self._draw_views(block, self.block)
        row_every = max(1, schedule.steps // 100)
        description = f"recover: block {self.block + 1}/{len(blocks)}"
        remaining = range(self.step, block.steps)
        for step in track(remaining, description, len(remaining)):
            offer()
            active = schedule.active(done + step, self.settings.ipc)
            kind = ("match", active, (done + step) % self.matcher.turns)
            gradient, row = canvas.packed(kind, partial(self._match, done + step, views[step]))
            if self.aligner:
                turn = self.matcher.asked(done + step)[0]
                anchors = self.used[-1] if self.used else None
                gradient, more = self.aligner.pulled(gradient, step, block.steps, turn, anchors)
                row |= more
            canvas.pixels.grad = self._allowed(gradient)
            optimiser.param_groups[0]["lr"] = schedule.rate(done + step) * self.caution
            optimiser.step()
            canvas.bound()
            turns = (done + step) // self.matcher.turns  # a row of each teacher in turn
            if turns % row_every == 0 or "topology" in row or step == block.steps - 1:
                self._log(done + step, row)
            self.matcher.remember(self._news)
            self.step = step + 1

    def _match(self, step: int, views: Views) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the pixel gradient of the objective and its value, pass by pass."""
        canvas = self.canvas
        gradient = torch.zeros_like(canvas.pixels)
        losses, gaps, news = [], [], []
        assert self.recipe.schedule is not None
        active = self.recipe.schedule.active(step, self.settings.ipc)
        for where, groups in self.batches.passes(active, canvas.packing.at_once):
            check()  # nothing has changed yet in this step
            leaf = canvas.pixels.detach()[where].requires_grad_()
            images, labels = self.batches.grouped(canvas.shown(leaf), where, self.targets)
            augmented = render(images, views[groups.start : groups.stop], leaf.shape[-1])
            loss, gap, new = self.matcher(augmented, Turn(step, labels, groups))
            (gradient[where],) = torch.autograd.grad(loss.sum(), leaf)
            losses.append(loss.detach())
            gaps.append(gap.detach())
            news.append(new)
        self._news = news
        return gradient, {"loss": torch.cat(losses).mean(), "bn_gap": torch.cat(gaps).mean()}

    def _allowed(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient where pixels may change, and 0 elsewhere."""
        if self.free is None:
            return gradient
        free = F.interpolate(self.free.flatten(0, 1), gradient.shape[-2:], mode="nearest")
        return gradient * free.view(*gradient.shape[:2], *free.shape[1:])

    def _connect(self, size: int, step: int) -> None:
        """Blend the chosen real images in, at the next block's resolution, and log what it did."""
        connection = self.recipe.connection
        assert connection is not None
        used = torch.stack(self.used) if self.used else None  # (blocks so far, ipc, classes)
        anchors = choose(self.canvas, connection, self.pool, self.labels, used, size)
        self.used.append(anchors)
        count = self.recipe.schedule.connections if self.recipe.schedule else 1
        alpha = share_at(connection.alpha, connection.last_alpha, self.block - 1, count)
        row = connect(self.canvas, anchors, self.pool, size, alpha)
        kept = 0.0 if used is None else float((anchors == used[-1]).float().mean())
        self.connections.append({"step": step, "kept_anchors": kept, **row})
        note(step, self.connections[-1], "connection")

    def _log(self, step: int, row: dict[str, Any]) -> None:
        values = {name: float(value) for name, value in row.items()}
        asked = self.matcher.asked(step)
        names = " and ".join(self.teachers[teacher].name for teacher in asked)
        if not all(map(_finite, values.values())):
            raise DivergedError(
                f"the loss of {names} became {values['loss']} at step {step}; "
                "lower schedule.learning_rate, or check that the teacher is trained"
            )
        self.steps.append({"step": step, "teacher": asked[0], **values})
        note(step, values, names)


def _finite(value: float) -> bool:
    return value - value == 0


def recover(
    recipe: Recipe,
    committee: Sequence[Classifier],
    pool: Pool,
    labels: Sequence[int],
    settings: Settings,
    checkpoint: Checkpoint | None = None,
    laid: Sequence[Tensors] | None = None,
) -> Recovered:
    """Distil the images of some classes: in this loop, or by the engine that a recipe brings.

    Args:
        recipe: the method.
        committee: frozen teachers; the first one gives the features φ.
        pool: all real images.
        labels: the classes of this block, at most 100: a BN group is one image of each.
        settings: what the loop needs to know besides the recipe.
        checkpoint: keeps the state of the work, so that it can be interrupted.
        laid: the groundwork of an engine; made here, of these classes alone, if it is not given.
    """
    engine = recipe.engine
    if engine is None:
        return Recovery(recipe, committee, pool, labels, settings).run(checkpoint)
    work = Work(committee, pool, labels, settings, recipe.start)
    if laid is None:
        laid = [engine.lay(index, work) for index in range(engine.groundwork)]
    return engine.recover(replace(work, laid=laid, checkpoint=checkpoint or Checkpoint()))
