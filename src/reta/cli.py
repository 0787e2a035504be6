"""The `reta` command: parsing and printing only."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
import yaml
from rich.logging import RichHandler
from rich.table import Table
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from reta import __version__, progress
from reta.api import default_folder
from reta.api import report as make_report
from reta.api import verify as find_problems
from reta.cli_bench import bench
from reta.cli_sharing import export, gallery, push
from reta.config import Config, preset
from reta.errors import (
    DataError,
    Interrupted,
    MemoryLimitError,
    RetaError,
    UsageError,
    out_of_memory,
)
from reta.interruption import stopping_on_signals
from reta.protocols import Regime
from reta.storage import json_bytes
from reta.terminal import Folder, Out, bytes_, out, say
from reta.tracking import tracking

Track = Literal["tensorboard", "wandb", "trackio"] | None
Evaluations = Annotated[tuple[str, ...], arg(metavar="EVALUATION")]
Cluster = Annotated[str | None, arg(metavar="ADDRESS")]
Preset = Annotated[str | None, arg(name="preset", metavar="NAME")]
Sweeps = Annotated[
    tuple[str, ...], UseAppendAction, arg(name="sweep", metavar="PART.FIELD=VALUE,…")
]
Set = Annotated[tuple[str, ...], UseAppendAction, arg(name="set", metavar="PART.FIELD=VALUE")]


if TYPE_CHECKING:
    from reta.data.sources import Source
    from reta.planning import Plan


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    """Return dotted settings from words like ``connection.trade_off=0.2``."""
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: write it as PART.FIELD=VALUE")
        options[name] = _value(value)
    return options


def _value(text: str) -> Any:
    """Return a YAML value; unlike YAML 1.1, 1e-3 is a number too."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    return value


def distill(
    config: OmitArgPrefixes[Config],
    out_folder: Out = None,
    device: str = "auto",
    cluster: Cluster = None,
    force: bool = False,
    preset_: Preset = None,
    track: Track = None,
    set_: Set = (),
) -> None:
    """Distil images into a few synthetic ones per class, with soft labels.

    DATA is a name (digits, cifar100 …), a folder with one sub-folder per class, a .csv, .parquet,
    .npz or .tar file, or hf:owner/name. Teachers are trained on it, images distilled, soft labels
    written. Running the same command again continues an interrupted run.

    Example: reta distill ./photos --ipc 10 --out runs/photos

    Args:
        config: settings.
        out_folder: run folder, or a URL such as s3://bucket/run; runs/DATA-METHOD-ipcN by default.
        device: auto, cpu, cuda, cuda:1 …
        cluster: do the units of work on Ray: auto (the cluster of this machine, or a new one on
            it) or an address. Needs `pip install 'reta[ray]'`.
        force: if DIR was begun with other settings, use DIR-2, DIR-3 … beside it; nothing is mixed.
        preset_: settings to begin with: a name of `reta presets` or a .yaml file; DATA and options
            override it.
        track: also send losses and accuracy to tensorboard, wandb or trackio (reta[tensorboard] …).
        set_: a setting of the method, such as connection.trade_off=0.2; may be repeated. `reta
            methods METHOD` lists them.
    """
    from reta.cluster import executor_of
    from reta.pipeline import distill as run_distill

    config = _asked(config, set_)
    out_folder = out_folder or default_folder(config)
    with tracking(track, out_folder):
        folder = run_distill(config, out_folder, device, executor_of(cluster), force, _announce)
    report = make_report(folder)
    say(f"distilled set  {folder}\nreport         {report}")
    say(f"next           reta train {shlex.quote(str(folder))}")


def plan(
    config: OmitArgPrefixes[Config],
    out_folder: Out = None,
    device: str = "auto",
    preset_: Preset = None,
    set_: Set = (),
    json: bool = False,
) -> None:
    """Say what `reta distill` with the same options would take; nothing is run or written.

    Stages with estimated time, timed by a few steps of each network on this machine; peak memory;
    disk for images and labels; units of work; and what does not fit, with the option to change.

    Example: reta plan ./photos --ipc 10 --effort paper

    Args:
        config: settings.
        out_folder: run folder; runs/DATA-METHOD-ipcN by default.
        device: auto, cpu, cuda, cuda:1 …
        preset_: settings to begin with: a name of `reta presets` or a .yaml file; DATA and options
            override it.
        set_: a setting of the method, such as connection.trade_off=0.2; may be repeated.
        json: print it as JSON, for scripts.
    """
    from reta import planning

    config = _asked(config, set_)
    made = planning.plan(config, out_folder or default_folder(config), device)
    if json:
        say(json_bytes(asdict(made) | {"units": made.units, "seconds": made.seconds}).decode())
        return
    table = Table("stage", "what", "units", "time", box=None)
    for stage in made.stages:
        table.add_row(stage.name, stage.detail, str(stage.units), _duration(stage.seconds))
    out.print(table)
    say(f"{'time':<14} {_duration(made.seconds)} on this machine, estimated")
    limit = f" of {bytes_(made.memory_limit or 0)}"
    say(f"{'memory':<14} {bytes_(made.memory or 0)}{limit}, estimated")
    _say_disk(made)


def _say_disk(made: Plan) -> None:
    parts = ", ".join(f"{name} {bytes_(size)}" for name, size in made.bytes.items())
    total = bytes_(sum(made.bytes.values()))
    say(f"{'disk':<14} {total} at most ({parts}); {bytes_(made.free)} free")
    say(f"{'units':<14} {made.units} until the set is distilled")
    for problem in made.problems:
        say(f"{'does not fit':<14} {problem}")


def _announce(config: Config, source: Source, folder: Path) -> None:
    """Print the short plan of a run."""
    from reta.planning import outline

    made = outline(config, source, folder)
    say("plan           " + "; ".join(f"{stage.name}: {stage.detail}" for stage in made.stages[1:]))
    _say_disk(made)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _asked(config: Config, pairs: Sequence[str]) -> Config:
    """Return the settings with full paths and the method's own settings."""
    return replace(_located(config), options={**config.options, **_options(pairs)})


def squeeze(
    config: OmitArgPrefixes[Config],
    out_folder: Out = None,
    device: str = "auto",
    preset_: Preset = None,
    set_: Set = (),
) -> None:
    """Train the teachers of a run only, with all GPUs of a machine where torchrun is used.

    Every process takes its share of each batch, so the teachers are those of a single process, up
    to rounding. `reta distill` with the same settings goes on from there.

    Example: torchrun --nproc-per-node 8 -m reta squeeze ./photos --out runs/photos

    Args:
        config: settings, as for `reta distill`.
        out_folder: run folder, or a URL such as s3://bucket/run; runs/DATA-METHOD-ipcN by default.
        device: auto, cpu, cuda …
        preset_: settings to begin with: a name of `reta presets` or a .yaml file.
        set_: a setting of the method, to be kept with the others; may be repeated.
    """
    from reta.pipeline import squeeze as run_squeeze
    from reta.team import leads

    config = _asked(config, set_)
    folder = run_squeeze(config, out_folder or default_folder(config), device)
    if leads():
        say(f"teachers       {folder / 'teachers'}")
        say("next           reta distill, with the same settings")


def _located(config: Config) -> Config:
    """Return the settings with a data folder's full path, so that they hold anywhere."""
    path = Path(config.data).expanduser()
    if config.teachers:
        from reta.teachers import located

        config = replace(config, teachers=located(config.teachers))
    return replace(config, data=str(path.resolve())) if path.exists() else config


def train(
    folder: Positional[Folder],
    regime: OmitArgPrefixes[Regime],
    student: str | None = None,
    students: int | None = None,
    data: str | None = None,
    device: str = "auto",
    cluster: Cluster = None,
    track: Track = None,
) -> None:
    """Train students from scratch on a distilled set; weights go to RUN/students.

    Students trained before, in this or in another way, are kept.

    Example: reta train runs/photos --labels hard

    Args:
        folder: run folder of `reta distill`.
        regime: how students are trained.
        student: architecture, such as resnet18; the run's own setting by default.
        students: how many, with different seeds.
        data: where the real images lie now, if they moved.
        device: auto, cpu, cuda, cuda:1 …
        cluster: do the units of work on Ray: auto (the cluster of this machine, or a new one on
            it) or an address. Needs `pip install 'reta[ray]'`.
        track: also send accuracy to tensorboard, wandb or trackio.
    """
    from reta.cluster import executor_of
    from reta.students import train as run_train

    with tracking(track, folder):
        metrics = run_train(
            folder,
            student,
            students,
            device,
            data=data,
            executor=executor_of(cluster),
            regime=regime,
        )
    _print_metrics(metrics)
    say(f"report         {make_report(folder)}")


def evaluate(
    folder: Positional[Folder],
    evaluations: Positional[Evaluations] = ("accuracy",),
    student: str | None = None,
    students: int | None = None,
    set_: Set = (),
    data: str | None = None,
    device: str = "auto",
    cluster: Cluster = None,
) -> None:
    """Measure what a distilled set is worth.

    Without more words: the accuracy of students on unseen real images, κ, cost and sizes;
    students are trained first if there are none yet. `reta evaluations` lists what else can be
    measured. Results go to RUN/evaluations; what was measured before is kept.

    Example: reta evaluate runs/photos diversity efficiency

    Args:
        folder: run folder of `reta distill`.
        evaluations: names of `reta evaluations`.
        student: architecture of the students; the run's own setting by default.
        students: how many, with different seeds.
        set_: a setting of an evaluation, such as diversity.neighbours=3; may be repeated. `reta
            evaluations NAME` lists them.
        data: where the real images lie now, if they moved.
        device: auto, cpu, cuda, cuda:1 …
        cluster: do the units of work on Ray: auto (the cluster of this machine, or a new one on
            it) or an address. Needs `pip install 'reta[ray]'`.
    """
    from reta.cluster import executor_of
    from reta.evaluating import evaluate as run_evaluate

    results = run_evaluate(
        folder,
        evaluations,
        student=student,
        students=students,
        options=_options(set_),
        device=device,
        data=data,
        executor=executor_of(cluster),
    )
    for name, result in results.items():
        if name == "accuracy":
            _print_metrics(result)
        else:
            _print_result(name, result)
    say(f"report         {make_report(folder)}")


def _print_result(name: str, result: dict[str, Any]) -> None:
    table = Table("", name, box=None)
    table.columns[1].justify = "right"
    for figure in (result["figures"][key] for key in result["order"]):
        table.add_row(figure["title"], _figure(figure))
    out.print(table)
    for note in result["notes"]:
        say(f"  {note}")


def _figure(figure: dict[str, Any]) -> str:
    """Return the mean of a figure, ± its standard deviation over students."""
    values, unit = figure["values"], figure["unit"]
    if unit == "bytes":
        return bytes_(mean(values))
    factor, form, mark = {
        "share": (100, ".1f", " %"),
        "seconds": (1, ".2f", " s"),
        "number": (1, ".3f", ""),
    }[unit]
    spread = f" ± {factor * stdev(values):{form}}" if len(values) > 1 else ""
    return f"{factor * mean(values):{form}}{spread}{mark}"


def evaluations(name: Positional[str | None] = None) -> None:
    """List what can be measured of a distilled set, or every setting of one evaluation.

    Args:
        name: an evaluation.
    """
    from reta.config import describe
    from reta.errors import unknown
    from reta.evaluation.catalogue import EVALUATIONS, summary

    if name is None:
        table = Table("evaluation", "what it measures", box=None)
        table.add_row("accuracy", "Accuracy of students on unseen real images (Table 1)")
        for one, evaluation in EVALUATIONS.items():
            table.add_row(one, summary(evaluation))
        out.print(table)
        return
    if name not in EVALUATIONS:
        raise unknown("evaluation", name, EVALUATIONS)
    say(inspect.getdoc(type(EVALUATIONS[name])) or "")
    settings = {key: value for key, value in describe(EVALUATIONS[name]).items() if key != "type"}
    if settings:
        say("\n" + yaml.safe_dump(settings, sort_keys=False).rstrip())


def compare(
    config: OmitArgPrefixes[Config],
    methods: tuple[str, ...] = ("random", "fadrm+", "reta"),
    evaluations: tuple[str, ...] = ("accuracy",),
    seeds: int = 1,
    sweep: Sweeps = (),
    baseline: str | None = None,
    out_folder: Out = None,
    device: str = "auto",
    cluster: Cluster = None,
    preset_: Preset = None,
    track: Track = None,
    set_: Set = (),
) -> None:
    """Distil with several methods, train the same students on each, measure and tabulate.

    Every method × evaluation × seed is a unit of work that is kept, so the same command continues.
    Tables go to DIR/tables as Markdown, LaTeX and CSV.

    Examples:
      reta compare ./photos --methods random fadrm+ reta --ipc 10 --seeds 3
      reta compare ./photos --evaluations accuracy corruptions diversity
      reta compare ./photos --methods fadrm+ reta-drc reta-pta reta            (Table 3)
      reta compare ./photos --methods reta --sweep connection.trade_off=0,0.1,0.3,1   (Fig. 4)

    Args:
        config: settings.
        methods: names of `reta methods`.
        evaluations: what is measured of every set; names of `reta evaluations`.
        seeds: distillation seeds per method.
        sweep: a setting and its values, for every method that has it; each --sweep is varied by
            itself; may be repeated.
        baseline: the row that others are held against; fadrm+ if it is there, else the first.
        out_folder: comparison folder; runs/DATA-compare-ipcN by default.
        device: auto, cpu, cuda, cuda:1 …
        cluster: do the units of work on Ray: auto (the cluster of this machine, or a new one on
            it) or an address. Needs `pip install 'reta[ray]'`.
        preset_: settings to begin with: a name of `reta presets` or a .yaml file; DATA and options
            override it.
        track: also send losses and accuracy to tensorboard, wandb or trackio.
        set_: a setting of the methods that have that part, such as topology.weight=1, or of an
            evaluation, such as corruptions.severities=[1,3,5]; may be repeated.
    """
    if config.method != "reta":
        raise UsageError(f"compare takes several: --methods random {config.method} …")
    own = [pair for pair in set_ if pair.partition(".")[0] in evaluations]
    config = _asked(config, [pair for pair in set_ if pair not in own])
    folder = out_folder or default_folder(config, "compare")
    with tracking(track, folder):
        _compare(
            config,
            methods,
            folder,
            device,
            cluster,
            seeds=seeds,
            evaluations=evaluations,
            options=_options(own),
            sweep=_sweeps(sweep),
            baseline=baseline,
        )


def _sweeps(words: Sequence[str]) -> dict[str, list[Any]]:
    """Return settings and values from words like ``connection.trade_off=0,0.1,1``."""
    found = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not equals or not values:
            raise UsageError(f"--sweep {word}: write it as PART.FIELD=VALUE,VALUE,…")
        found[name] = [_value(value) for value in values.split(",")]
    return found


def demo(
    out_folder: Annotated[Path, arg(name="out", metavar="DIR")] = Path("runs/demo"),
    device: str = "auto",
) -> None:
    """Run the whole thing on scikit-learn's handwritten digits, in a few minutes on a laptop.

    Args:
        out_folder: comparison folder.
        device: auto, cpu, cuda, cuda:1 …
    """
    _compare(preset("demo"), ("random", "fadrm+", "reta"), out_folder, device)


def _compare(
    config: Config,
    methods: Sequence[str],
    folder: Path,
    device: str,
    cluster: str | None = None,
    **options: Any,
) -> None:
    from reta.cluster import executor_of
    from reta.comparison import compare as run_compare

    command = shlex.join(["reta", *sys.argv[1:]])
    result = run_compare(
        config,
        methods,
        folder,
        device=device,
        command=command,
        executor=executor_of(cluster),
        **options,
    )
    table = Table(title=f"{result['title']}: students on unseen real images", box=None)
    for heading in ("method", "accuracy", "best epoch", "κ", "s/image", "images", "labels"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in result["rows"]:
        table.add_row(
            row["method"],
            f"{100 * row['last_mean']:.1f} ± {100 * row['last_std']:.1f} %",
            f"{100 * row['best_mean']:.1f} ± {100 * row['best_std']:.1f} %",
            f"{row['kappa_mean']:.3f}",
            f"{row['seconds_per_image']:.2f}",
            bytes_(row["bytes_images"]),
            bytes_(row["bytes_labels"]),
        )
    out.print(table)
    seeds, students = result["seeds"], result["students"]
    over = f"{seeds} distillation seeds" if seeds > 1 else f"{students} students of one set"
    say(f"mean ± std over {over}; κ 0: nothing lost")
    for name, measured in result["evaluations"].items():
        if name != "accuracy":
            _print_evaluation(name, measured, result["methods"])
    for name in (name for names in result["runs"].values() for name in names):
        make_report(folder / name)
    say(f"tables  {folder / 'tables'}\nreport  {make_report(folder)}")


def _print_evaluation(name: str, measured: dict[str, Any], methods: Sequence[str]) -> None:
    from reta.reporting.tables import cell

    figures = [measured["figures"][key] for key in measured["order"][:3]]  # the rest: tables/
    table = Table(title=name, box=None)
    table.add_column("method")
    for figure in figures:
        share = ", %" if figure["unit"] == "share" else ""
        table.add_column(figure["title"] + share, justify="right")
    for method in methods:
        rows = [figure["rows"].get(method) for figure in figures]
        cells = [
            cell(row, figure["unit"]) if row else "–"
            for row, figure in zip(rows, figures, strict=True)
        ]
        table.add_row(method, *cells)
    out.print(table)
    for note in measured["notes"]:
        say(f"  {note}")


def adopt(
    weights: Annotated[Path, Positional, arg(metavar="WEIGHTS")],
    architecture: str,
    classes: Annotated[Path, arg(metavar="FILE")],
    image_size: int,
    normalization: str,
    out_file: Annotated[Path, arg(name="out", metavar="FILE.safetensors")],
    allow_pickle_weights: bool = False,
) -> None:
    """Turn weights trained elsewhere into a teacher: `reta distill DATA --teachers FILE`.

    Weights alone do not say what they were trained on; here it is said once, and travels with
    them. Before such a teacher is used it is measured on the data, and refused if it does not
    recognise it.

    Example: reta adopt net.pth --architecture resnet18 --classes names.txt --image-size 32
    --normalization cifar10 --out net.safetensors --allow-pickle-weights

    Args:
        weights: a state dict: .safetensors, or .pth with --allow-pickle-weights.
        architecture: such as resnet18; up to 64 px with the stem for small images.
        classes: a text file with the name of each class on a line, in the order of the logits.
        image_size: side of the images it was trained on, in pixels.
        normalization: imagenet, cifar10, cifar100, half (0.5), none (0 to 1), bytes (0 to 255),
            or mean and deviation as R,G,B/R,G,B.
        out_file: where to write the teacher.
        allow_pickle_weights: read a file of torch, which is a pickle; tensors only even then.
    """
    from reta.teachers import adopt as run_adopt

    try:
        names = classes.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes {classes}: cannot be read ({error})") from error
    task = run_adopt(
        weights,
        out_file,
        architecture=architecture,
        classes=[name.strip() for name in names if name.strip()],
        image_size=image_size,
        normalization=normalization,
        allow_pickle=allow_pickle_weights,
    )
    say(f"teacher        {out_file}: {architecture}, {len(task.classes)} classes, {image_size} px")
    say(f"next           reta distill DATA --teachers {shlex.quote(str(out_file))}")


def report(folder: Positional[Folder]) -> None:
    """Rebuild report.html of a run or comparison folder; needs no GPU and no data.

    Args:
        folder: run or comparison folder.
    """
    say(make_report(folder))


def verify(folder: Positional[Folder]) -> None:
    """Compare every file of a run folder with the hash made when it was written.

    Args:
        folder: run or comparison folder.
    """
    problems = find_problems(folder)
    for problem in problems:
        say(problem)
    if problems:
        say("repair: the same `reta distill` or `reta compare` command again, then `reta train`")
        sys.exit(DataError.exit_code)
    say(f"{folder}: intact")


def unlock(folder: Positional[Folder], force: bool = False) -> None:
    """Free a run folder whose process is gone; rarely needed, as a new run does it by itself.

    Args:
        folder: run or comparison folder.
        force: take it from a process that still gives signs of life, say on a machine you cannot
            reach; it stops within half a minute.
    """
    from reta.lease import unlock as free

    free(folder, force)
    say(f"{folder}: free")


def scan(
    data: Annotated[str, tyro.conf.Positional, arg(metavar="DATA")],
    json_: Annotated[bool, arg(name="json")] = False,
    workers: int | None = None,
    root: str | None = None,
    download: bool = True,
) -> None:
    """Look at every image: what cannot be used and why, duplicates, the size of each class.

    Exit code 3 if there are problems: images that cannot be used, or that are in both the training
    and the test part, or in two classes.

    Example: reta scan ./photos

    Args:
        data: anything `reta distill` reads.
        json_: print everything as JSON.
        workers: processes; as many as there are processors by default.
        root: folder of the sets known by name; RETA_DATA or ~/.cache/reta by default.
        download: fetch a set known by name if it is not there.
    """
    from reta.data.sources import scan as run_scan

    report = run_scan(data, workers, root, download)
    if json_:
        say(json.dumps(report.facts(), indent=1, ensure_ascii=False))
    else:
        _print_scan(report.facts())
    if report.problems:
        sys.exit(DataError.exit_code)


def _print_scan(facts: dict[str, Any]) -> None:
    for row in facts["problems"]:
        say(f"problem  {row['path']}{': ' * bool(row['path'])}{row['reason']}")
    for row in facts["notes"]:
        say(f"note     {row['path']}: {row['note']}")
    for found in facts["duplicates"]:
        across = found["across_classes"]
        say(
            f"{found['kind']:<8} {found['pairs']} pairs in {found['where']}"
            + (f", {across} of them across classes" if across else "")
        )
        for pair in found["first"][:5]:
            say(f"         {pair['paths'][0]}  =  {pair['paths'][1]}")
    images = ", ".join(f"{count} {part}" for part, count in facts["images"].items())
    small, large = facts["smallest_class"], facts["largest_class"]
    say(f"{images} images, {len(facts['classes'])} classes of {small} to {large}")
    say(f"{len(facts['problems'])} problems")


def methods(name: Positional[str | None] = None) -> None:
    """List the methods, or every setting of one.

    Args:
        name: a method.
    """
    from reta.config import describe
    from reta.errors import unknown
    from reta.methods import METHODS

    if name is None:
        table = Table("method", "what it does", "source", box=None)
        for method, recipe in METHODS.items():
            table.add_row(method, recipe.summary, recipe.source)
        out.print(table)
        return
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    say(yaml.safe_dump(describe(METHODS[name]), sort_keys=False).rstrip())


def presets() -> None:
    """List the presets: settings of the paper's tables and of small trials, for --preset NAME."""
    from reta.config import preset_names, preset_title

    table = Table("preset", "what it is", box=None)
    for name in preset_names():
        table.add_row(name, preset_title(name))
    out.print(table)
    say("use one:  reta distill DATA --preset NAME    try it first:  … --effort smoke")


def _print_metrics(metrics: dict[str, Any]) -> None:
    rows = {
        "student": f"{metrics['student']}, seeds 0 to {len(metrics['students']) - 1}",
        "accuracy": _accuracy(metrics),
        "protocol": _protocol(metrics),
        "κ": f"{metrics['kappa_mean']:.3f}",
        "cost": f"{metrics['seconds_per_image']:.2f} s/image",
        "size": f"images {bytes_(metrics['bytes_images'])}, "
        f"labels {bytes_(metrics['bytes_labels'])}",
    }
    for name, value in rows.items():
        say(f"{name:<14} {value}")
    others = [row for row in metrics["accuracies"] if row["students"] != metrics["students"]]
    for row in others:
        say(f"{'also':<14} {_accuracy({'accuracy': row})}: {row['architecture']}, {_protocol(row)}")


def _accuracy(metrics: dict[str, Any]) -> str:
    figures = {name: f"{100 * value:.1f}" for name, value in metrics["accuracy"].items()
               if name.endswith(("_mean", "_std"))}  # fmt: skip
    return (
        f"{figures['last_mean']} ± {figures['last_std']} % at the last epoch, "
        f"{figures['best_mean']} ± {figures['best_std']} % at the best"
    )


def _protocol(metrics: dict[str, Any]) -> str:
    protocol = metrics["protocol"]
    return (
        f"{protocol['title']}, {protocol['labels']} labels, {protocol['epochs']} epochs, "
        f"learning rate {protocol['learning_rate']:g}, η {protocol['stretch']:g}"
    )


COMMANDS: dict[str, Callable[..., Any]] = {
    "distill": distill,
    "squeeze": squeeze,
    "plan": plan,
    "train": train,
    "evaluate": evaluate,
    "evaluations": evaluations,
    "compare": compare,
    "report": report,
    "gallery": gallery,
    "export": export,
    "push": push,
    "verify": verify,
    "unlock": unlock,
    "scan": scan,
    "methods": methods,
    "presets": presets,
    "adopt": adopt,
    "demo": demo,
    "bench": bench,
}


def _commands(arguments: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """Return the commands; where a preset is named, their settings begin with it."""
    words = [word for word in arguments if word == "--preset" or word.startswith("--preset=")]
    if not words:
        return COMMANDS
    following = list(arguments)[list(arguments).index(words[-1]) + 1 :]
    name = words[-1].partition("=")[2] or (following[0] if following else "")
    base = preset(name)
    return {word: _beginning_with(command, base) for word, command in COMMANDS.items()}


def _beginning_with(command: Callable[..., Any], base: Config) -> Callable[..., Any]:
    """Return a command whose settings, if it has any, default to a preset's."""
    signature = inspect.signature(command)
    if "config" not in signature.parameters:
        return command

    @functools.wraps(command)
    def begun(*args: Any, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    given = signature.parameters["config"].replace(default=base)
    parameters = [given if p.name == "config" else p for p in signature.parameters.values()]
    begun.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return begun


def _fail(message: str) -> None:
    progress.console.print("error:", style="bold red", end=" ")
    progress.console.print(message, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors a user can act on are one message and an exit code."""
    # Read by OpenMP when a command first imports torch: threads that wait by spinning make
    # everything some ten times slower as soon as another program wants the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=progress.console, show_path=False, show_time=False)],
    )
    progress.show_progress(True)
    if list(arguments or sys.argv[1:]) == ["--version"]:
        say(f"reta {__version__}")
        return
    try:
        with stopping_on_signals():
            tyro.extras.subcommand_cli_from_dict(
                _commands(sys.argv[1:] if arguments is None else arguments),
                args=arguments,
                prog="reta",
                description=_DESCRIPTION,
                config=(tyro.conf.DisallowNone,),
            )
    except RetaError as error:
        _fail(str(error))
        sys.exit(error.exit_code)
    except (RuntimeError, MemoryError) as error:  # torch has an error of its own only on a GPU
        if not out_of_memory(error):
            raise
        _fail("out of memory: try a lower --images-per-pass or --image-size, then continue")
        sys.exit(MemoryLimitError.exit_code)
    except Interrupted as stopped:
        progress.console.print(str(stopped))
        sys.exit(stopped.exit_code)


_DESCRIPTION = """\
Dataset distillation: turn a large set of labelled images into a few synthetic images per class.

  reta demo                          the whole thing on handwritten digits
  reta distill ./photos --ipc 10     distil a folder with one sub-folder per class
  reta train runs/photos-reta-ipc10  train models on the distilled set alone

An interrupted command continues when it is run again. Exit codes: 0 done, 2 usage, 3 data or
damage, 4 diverged, 5 disk, 6 units given up, 7 memory, 130 SIGINT, 143 SIGTERM.
"""
