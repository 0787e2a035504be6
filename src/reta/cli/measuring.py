"""Commands that say what a distilled set is worth."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

from rich.table import Table
from tyro.conf import OmitArgPrefixes, Positional, arg

from reta.api import default_folder
from reta.api import report as make_report
from reta.cli.terminal import Folder, Out, bytes_, out, say
from reta.cli.words import Cluster, Preset, Set, Sweeps, Track, asked, options_of, sweeps_of
from reta.config import Config, preset
from reta.errors import UsageError
from reta.protocols import Regime
from reta.tracking import tracking

Evaluations = Annotated[tuple[str, ...], arg(metavar="EVALUATION")]


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
        options=options_of(set_),
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
    force: bool = False,
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
      reta compare ./photos --methods fadrm+ reta "reta topology.weight=1 connection.alpha=0.7"
      reta compare ./photos --methods reta --sweep connection.trade_off=0,0.1,0.3,1   (Fig. 4)

    Args:
        config: settings.
        methods: names of `reta methods`; in quotes, a name with settings of its own, as above.
        evaluations: what is measured of every set; names of `reta evaluations`.
        seeds: distillation seeds per method.
        sweep: a setting and its values, for every method that has it; each --sweep is varied by
            itself; may be repeated.
        baseline: the row that others are held against; fadrm+ if it is there, else the first.
        out_folder: comparison folder; runs/DATA-compare-ipcN by default.
        device: auto, cpu, cuda, cuda:1 …
        cluster: do the units of work on Ray: auto (the cluster of this machine, or a new one on
            it) or an address. Needs `pip install 'reta[ray]'`.
        force: if DIR was begun with other settings, use DIR-2, DIR-3 … beside it; nothing is mixed.
        preset_: settings to begin with: a name of `reta presets` or a .yaml file; DATA and options
            override it.
        track: also send losses and accuracy to tensorboard, wandb or trackio.
        set_: a setting of the methods that have that part, such as topology.weight=1, or of an
            evaluation, such as corruptions.severities=[1,3,5]; may be repeated.
    """
    if config.method != "reta":
        raise UsageError(f"compare takes several: --methods random {config.method} …")
    own = [pair for pair in set_ if pair.partition(".")[0] in evaluations]
    config = asked(config, [pair for pair in set_ if pair not in own])
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
            options=options_of(own),
            sweep=sweeps_of(sweep),
            baseline=baseline,
            force=force,
        )


def demo(
    out_folder: Annotated[Path, arg(name="out", metavar="DIR")] = Path("runs/demo"),
    device: str = "auto",
    force: bool = False,
) -> None:
    """Run the whole thing on scikit-learn's handwritten digits, in a few minutes on a laptop.

    Args:
        out_folder: comparison folder.
        device: auto, cpu, cuda, cuda:1 …
        force: if DIR was begun with other settings, use DIR-2, DIR-3 … beside it; nothing is mixed.
    """
    _compare(preset("demo"), ("random", "fadrm+", "reta"), out_folder, device, force=force)


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
    folder = Path(result["folder"])  # another one with --force
    table = Table(title=f"{result['title']}: students on unseen real images", box=None)
    for heading in ("method", "accuracy", "best epoch", "κ", "s/image", "images", "labels"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    seeds, students = result["seeds"], result["students"]
    for row in result["rows"]:
        table.add_row(
            row["method"],
            *(_share(row, which, seeds * students > 1) for which in ("last", "best")),
            f"{row['kappa_mean']:.3f}",
            f"{row['seconds_per_image']:.2f}",
            bytes_(row["bytes_images"]),
            bytes_(row["bytes_labels"]),
        )
    out.print(table)
    over = f"{seeds} distillation seeds" if seeds > 1 else f"{students} students of one set"
    said = f"mean ± std over {over}" if seeds * students > 1 else "one student of one set"
    say(f"{said}; κ 0: nothing lost")
    for name, measured in result["evaluations"].items():
        if name != "accuracy":
            _print_evaluation(name, measured, result["methods"])
    for name in (name for names in result["runs"].values() for name in names):
        make_report(folder / name)
    say(f"tables  {folder / 'tables'}\nreport  {make_report(folder)}")


def _print_metrics(metrics: dict[str, Any]) -> None:
    last = len(metrics["students"]) - 1
    rows = {
        "student": f"{metrics['student']}, {f'seeds 0 to {last}' if last else 'seed 0'}",
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
        accuracy = _accuracy(row | {"accuracy": row})
        say(f"{'also':<14} {accuracy}: {row['architecture']}, {_protocol(row)}")


def _accuracy(metrics: dict[str, Any]) -> str:
    found, several = metrics["accuracy"], len(metrics["students"]) > 1
    last, best = (_share(found, which, several) for which in ("last", "best"))
    return f"{last} at the last epoch, {best} at the best"


def _share(found: Mapping[str, Any], which: str, several: bool) -> str:
    """Return a mean in percent, ± its standard deviation where there is more than one value."""
    spread = f" ± {100 * found[f'{which}_std']:.1f}" if several else ""
    return f"{100 * found[f'{which}_mean']:.1f}{spread} %"


def _protocol(metrics: dict[str, Any]) -> str:
    protocol = metrics["protocol"]
    return (
        f"{protocol['title']}, {protocol['labels']} labels, {protocol['epochs']} epochs, "
        f"learning rate {protocol['learning_rate']:g}, η {protocol['stretch']:g}"
    )


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
