"""The one loop that runs any recipe over a block of classes, all their images side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from reta.checkpoint import Checkpoint, State, optimiser_tensors, restore_optimiser
from reta.data.augment import Views, random_views, render
from reta.errors import DivergedError
from reta.interruption import check
from reta.models import Classifier
from reta.progress import track, warn_once
from reta.runtime import Stopwatch, random_generator, recovery_precision
from reta.synthesis.alignment import Target, TopologyAlignment
from reta.synthesis.batches import Batches
from reta.synthesis.connection import Query, fit_gap, resample, residual_connection, share_at
from reta.synthesis.embedding import Embedding, embed, embed_class
from reta.synthesis.engine import Recovered, Settings, Tensors, Work
from reta.synthesis.matching import Scene, Turn
from reta.synthesis.packing import Packing
from reta.synthesis.pool import Pool
from reta.synthesis.probes import probe
from reta.synthesis.recipe import Recipe
from reta.synthesis.retrieval import edge_complexity
from reta.synthesis.schedule import Block, Schedule
from reta.topology import contraction_ratio
from reta.tracking import note

__all__ = ["Recovered", "Recovery", "Settings", "jitter", "recover"]

T = TypeVar("T")


def jitter(image_size: int) -> int:
    """Return FADRM's largest circular shift: 4 px up to 64 px, 32 px at 224."""
    if image_size > 64:
        return image_size // 7
    return min(4, image_size // 8)


class Recovery:
    """One block of classes on its way from start images to synthetic ones.

    Pixels are ``(ipc, classes, 3, D, D)``: the first axis counts BN groups of one image per class.
    They are kept in units of the data's standard deviation, in which the learning rate is given.
    Where all real images are grey they have one channel, because a teacher that never saw a colour
    cannot tell that a colour is wrong.
    """

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
        self.image_size = pool.image_size
        device = self.teachers[0].mean.device
        channels = 1 if pool.grey else 3
        self.unit = self.teachers[0].std.squeeze(0)[:channels]  # (channels, 1, 1)
        self.targets = torch.tensor(self.labels, device=device)
        self.batches = Batches(recipe.objective.batch, len(self.labels), settings.ipc)
        scene = Scene(self.probes, pool, self.labels, settings.ipc, settings.seed)
        self.matcher = recipe.objective.at_work(scene)
        self._news: list[Any] = []  # what the matcher is to remember if the step is completed
        beginning = recipe.start(pool, committee[0], self.labels, settings.ipc, settings.seed)
        self.used = [] if beginning.anchors is None else [beginning.anchors]
        self.pixels = beginning.images[:, :, :channels].to(device) / self.unit
        self.free = None  # where pixels may change
        if recipe.preserve:
            images = beginning.images.to(device)
            self.free = recipe.preserve.free(self.teachers[0], images, self.targets)
        at_once = max(1, settings.images_per_pass // len(self.labels))
        self.packing = Packing(at_once, len(self.labels), settings.ipc, device)
        self.topology = recipe.topology if settings.ipc > 1 else None
        if recipe.topology and not self.topology:
            warn_once("one synthetic image per class has no topology: the PTA term is 0")
        self._targets: dict[tuple[int, int], Target] = {}
        self.steps: list[dict[str, float]] = []
        self.connections: list[dict[str, float]] = []
        self.frames = [self._frame()]
        self.block, self.step = 0, 0  # the next step to be taken
        self.caution = 1.0  # share of the learning rate
        self.pull: torch.Tensor | None = None  # of the topology, while it is spread over steps
        self.optimiser: torch.optim.Optimizer | None = None

    @property
    def packs(self) -> list[slice]:
        """Images of each class that share a forward pass."""
        return self.packing.packs(self.settings.ipc)

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
            blocks = self.recipe.schedule.blocks(self.image_size)
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
            images_per_pass=self.packing.at_once * len(self.labels),
        )

    def _close(self, blocks: Sequence[Block]) -> None:
        """End a block: keep its images, connect, and turn to the next one."""
        self.pixels, self.optimiser, self.pull = self.pixels.detach(), None, None
        if not torch.isfinite(self.pixels).all():
            raise DivergedError("the pixels became NaN or infinite; lower schedule.learning_rate")
        self.frames.append(self._frame())
        self.block, self.step = self.block + 1, 0
        if self.recipe.connection and self.block < len(blocks):
            done = sum(block.steps for block in blocks[: self.block])
            self._connect(blocks[self.block].size, done)

    def _state(self, seconds: float) -> State:
        """Return what decides how the work goes on between two steps."""
        tensors = {"pixels": self.pixels.detach()}
        tensors |= {f"matcher.{name}": value for name, value in self.matcher.tensors().items()}
        if self.optimiser:
            tensors |= optimiser_tensors(self.optimiser)
        if self.pull is not None:
            tensors["pull"] = self.pull
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
        device, tensors = self.pixels.device, state.tensors
        self.block, self.step = state.facts["block"], state.facts["step"]
        self.steps, self.connections = state.facts["steps"], state.facts["connections"]
        self.frames = [tensors[f"frame.{index}"] for index in range(self.block + 1)]
        count = sum(name.startswith("anchors.") for name in tensors)
        self.used = [tensors[f"anchors.{index}"] for index in range(count)]
        self.pixels = tensors["pixels"].to(device)
        prefix = "matcher."
        remembered = {k: v for k, v in tensors.items() if k.startswith(prefix)}
        self.matcher.load({k.removeprefix(prefix): v.to(device) for k, v in remembered.items()})
        if "pull" in tensors:
            self.pull = tensors["pull"].to(device)
        if self.step:
            restore_optimiser(self._adam(), tensors)
        return float(state.facts["seconds"])

    def _adam(self) -> torch.optim.Optimizer:
        """Return a new optimiser of the pixels; its moments begin at zero in each block."""
        assert self.recipe.schedule is not None
        self.pixels.requires_grad_()
        betas = self.recipe.schedule.betas
        self.optimiser = torch.optim.Adam([self.pixels], betas=betas, eps=1e-8)
        return self.optimiser

    def _frame(self) -> torch.Tensor:
        images = self._shown(self._resized(self.image_size)).clamp(0, 1)
        return (images * 255).round().to(torch.uint8).transpose(0, 1).contiguous().cpu()

    def _resized(self, size: int) -> torch.Tensor:
        ipc, classes = self.pixels.shape[:2]
        return resample(self.pixels.flatten(0, 1), size).view(ipc, classes, -1, size, size)

    def _shown(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return pixels as images ``(ipc, classes, 3, D, D)`` in [0, 1]."""
        return (pixels * self.unit).expand(-1, -1, 3, -1, -1)

    def _draw_views(self, block: Block, index: int) -> list[Views]:
        """Draw the augmentation of every step of a block: one view per BN group."""
        objective, schedule = self.recipe.objective, self.recipe.schedule
        assert schedule is not None
        done = sum(one.steps for one in schedule.blocks(self.image_size)[:index])
        steps = range(done, done + block.steps)
        least = [objective.smallest_crop(step, schedule.steps) for step in steps]
        draws = [
            random_views(
                random_generator(self.settings.seed, "recover", self.labels[0], group, index),
                block.steps,
                block.size,
                scale=(least, objective.crop[1]),
                flip=self.settings.flip,
                shift=jitter(self.image_size) if objective.shift else 0,
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
        block, done = blocks[self.block], sum(block.steps for block in blocks[: self.block])
        if self.optimiser is None:
            self.pixels = self._resized(block.size)
        optimiser = self.optimiser or self._adam()
        views = self._draw_views(block, self.block)
        row_every = max(1, schedule.steps // 100)
        topology = self.topology
        description = f"recover: block {self.block + 1}/{len(blocks)}"
        remaining = range(self.step, block.steps)
        for step in track(remaining, description, len(remaining)):
            offer()
            active = schedule.active(done + step, self.settings.ipc)
            kind = ("match", active, (done + step) % self.matcher.turns)
            gradient, row = self._packed(kind, partial(self._match, done + step, views[step]))
            if topology and topology.due(step, block.steps):
                turn = self.matcher.asked(done + step)[0]
                chosen = turn if topology.teachers == "turn" else 0
                pulling = partial(self._align, chosen)
                self.pull, aligned = self._packed(("align", chosen), pulling)
                row |= aligned
                ratio = self.pull.norm() / gradient.norm().clamp(min=1e-12)
                if topology.weight_of == "gradient":
                    self.pull = self.pull * (topology.weight / ratio.clamp(min=1e-12))
                    ratio = self.pull.norm() / gradient.norm().clamp(min=1e-12)
                row["gradient_ratio"] = float(ratio)
            if self.pull is not None and topology:
                if topology.spread:
                    gradient = gradient + self.pull / topology.interval
                else:
                    gradient, self.pull = gradient + self.pull, None
            self.pixels.grad = self._allowed(gradient)
            optimiser.param_groups[0]["lr"] = schedule.rate(done + step) * self.caution
            optimiser.step()
            with torch.no_grad():
                self.pixels.copy_(torch.minimum(self.pixels.clamp_(min=0), 1 / self.unit))
            turns = (done + step) // self.matcher.turns  # a row of each teacher in turn
            if turns % row_every == 0 or "topology" in row or step == block.steps - 1:
                self._log(done + step, row)
            self.matcher.remember(self._news)
            self.step = step + 1

    def _match(self, step: int, views: Views) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the pixel gradient of the objective and its value, pass by pass."""
        gradient = torch.zeros_like(self.pixels)
        losses, gaps, news = [], [], []
        assert self.recipe.schedule is not None
        active = self.recipe.schedule.active(step, self.settings.ipc)
        for where, groups in self.batches.passes(active, self.packing.at_once):
            check()  # nothing has changed yet in this step
            leaf = self.pixels.detach()[where].requires_grad_()
            images, labels = self.batches.grouped(self._shown(leaf), where, self.targets)
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

    def _reach(
        self, pack: slice, turn: int = 0, kind: Embedding = "features"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pixels of a pack as a leaf, and its images, as they are, as a teacher sees."""
        leaf = self.pixels.detach()[pack].requires_grad_()
        images = self._shown(leaf).flatten(0, 1)
        return leaf, embed(images, self._eyes(kind)[turn:], kind)

    def _eyes(self, kind: Embedding) -> list[Classifier]:
        """Return the teachers that look; the fast ones do not show what is between their layers."""
        return [one.source if kind == "middle" else one.teacher for one in self.probes]

    def _by_class(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Return the features of all packs as ``(classes, ipc, d)``, without a graph."""
        features = torch.cat(parts).detach()
        if not torch.isfinite(features).all():
            raise DivergedError(
                f"the features of {self.teachers[0].name} became NaN or infinite; "
                "lower schedule.learning_rate, or check that the teacher is trained"
            )
        ipc, classes = self.pixels.shape[:2]
        return features.view(ipc, classes, -1).transpose(0, 1)

    @torch.no_grad()
    def _features(self, turn: int = 0, kind: Embedding = "features") -> torch.Tensor:
        """Return φ of all images as they are, ``(classes, ipc, d)``."""
        return self._packed(
            ("look", turn, kind),
            lambda: self._by_class([self._reach(pack, turn, kind)[1] for pack in self.packs]),
        )

    def _packed(self, kind: tuple[Any, ...], work: Callable[[], T]) -> T:
        """Return what some work gives, in packs that fit and change no byte, see `Packing`."""
        side, whole = self.pixels.shape[-1], self.batches.kind == "class"
        group = f"{self.batches.images} images of {side} px"
        return self.packing.do((*kind, side), work, group, whole)

    def _align(self, turn: int = 0) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the pixel gradient of the topology term and its value.

        The gradient at the features is found first, for all images of a class together; each pack
        is then back-propagated by itself, so only one pack's graph is ever held.
        """
        topology = self.topology
        assert topology is not None
        # The graph of an only pack can wait; of several, each is made again when its turn comes.
        kept = [self._reach(pack, turn) for pack in self.packs] if len(self.packs) == 1 else []
        seen = [reached for _, reached in kept]
        features = self._by_class(seen) if kept else self._features(turn)
        at_features, total = torch.zeros_like(features), features.new_zeros(())
        for count, columns in self._point_groups(topology).items():
            key = (turn, count)
            if key not in self._targets or topology.real_points == "anchors":
                labels = [self.labels[column] for column in columns]
                anchors = self.used[-1][:, columns] if self.used else None
                teacher = self.probes[turn].teacher if turn else None
                real = topology.real_features(
                    self.pool, labels, count, self.settings.seed, anchors, teacher
                )
                self._targets[key] = topology.target(real.to(features))
            losses, gradient = topology.gradient(features[columns, :count], self._targets[key])
            at_features[columns, :count] = gradient
            total = total + losses.sum()
        pull = torch.zeros_like(self.pixels)
        for index, pack in enumerate(self.packs):
            if pack.start >= topology.points:
                break  # beyond n_c no image is aligned
            leaf, reached = kept[index] if kept else self._reach(pack, turn)
            push = at_features.transpose(0, 1)[pack].flatten(0, 1)
            (pull[pack],) = torch.autograd.grad(reached, leaf, push)
        return pull, {"topology": total}

    def _point_groups(self, topology: TopologyAlignment) -> dict[int, list[int]]:
        """Return n_c, and which classes have it: fewer points where a class has few real images."""
        groups: dict[int, list[int]] = {}
        for column, label in enumerate(self.labels):
            count = min(self.settings.ipc, topology.points, len(self.pool.members(label)))
            if count > 1:
                groups.setdefault(count, []).append(column)
            else:
                warn_once(f"class {label} has one real image: no topology to align it with")
        return groups

    def _connect(self, size: int, step: int) -> None:
        """Blend the chosen real images in, at the next block's resolution, and log what it did."""
        connection = self.recipe.connection
        assert connection is not None
        kind = connection.embedding
        embeddings = self._features(kind=kind)
        used = torch.stack(self.used) if self.used else None  # (blocks so far, ipc, classes)
        columns = [
            connection.choose(
                Query(
                    self.pool,
                    label,
                    embeddings[column],
                    None if used is None else used[..., column],
                    size,
                    embed_class(self.pool, label, self._eyes(kind), kind),
                )
            )
            for column, label in enumerate(self.labels)
        ]
        anchors = torch.stack(columns, dim=1)  # (ipc, classes)
        self.used.append(anchors)
        patches = resample(self.pool.pixels(anchors).flatten(0, 1), size)
        patches = patches.unflatten(0, anchors.shape).to(self.pixels.device)
        self.pixels = self._resized(size)
        before = self._features()  # at the new resolution, so that the ratio is the connection's
        images = self._shown(self.pixels)
        gap = float(fit_gap(images, patches))
        count = self.recipe.schedule.connections if self.recipe.schedule else 1
        alpha = share_at(connection.alpha, connection.last_alpha, self.block - 1, count)
        connected = residual_connection(images, patches, alpha)
        self.pixels = connected[:, :, : len(self.unit)] / self.unit
        after = self._features()
        pairs = zip(before.cpu(), after.cpu(), strict=True)
        ratios = [contraction_ratio(old, new) for old, new in pairs]
        ratios = [ratio for ratio in ratios if math.isfinite(ratio)]  # not where all were one
        distinct = [len(column.unique()) for column in columns]
        kept = 0.0 if used is None else float((anchors == used[-1]).float().mean())
        self.connections.append(
            {
                "step": step,
                "fit_gap": gap,
                "complexity": float(edge_complexity(patches.flatten(0, 1)).mean()),
                "distinct_anchors": sum(distinct) / len(distinct),
                "kept_anchors": kept,
                "contraction_ratio": sum(ratios) / len(ratios) if ratios else 1.0,
            }
        )
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
