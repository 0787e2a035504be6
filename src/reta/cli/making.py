"""Commands that make a distilled set, and what goes before it."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from tyro.conf import OmitArgPrefixes, Positional, arg

from reta.api import default_folder
from reta.api import report as make_report
from reta.cli.terminal import Out, bytes_, out, say
from reta.cli.words import Cluster, Preset, Set, Track, asked
from reta.config import Config
from reta.errors import DataError, UsageError
from reta.storage import json_bytes
from reta.tracking import tracking

if TYPE_CHECKING:
    from reta.data.sources import Source
    from reta.planning import Plan


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

    config = asked(config, set_)
    out_folder = out_folder or default_folder(config)
    with tracking(track, out_folder):
        folder = run_distill(config, out_folder, device, executor_of(cluster), force, _announce)
    report = make_report(folder)
    say(f"distilled set  {folder}\nreport         {report}")
    say(f"next           reta train {shlex.quote(str(folder))}")


def _announce(config: Config, source: Source, folder: Path) -> None:
    """Print the short plan of a run."""
    from reta.planning import outline

    made = outline(config, source, folder)
    say("plan           " + "; ".join(f"{stage.name}: {stage.detail}" for stage in made.stages[1:]))
    _say_disk(made)


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

    config = asked(config, set_)
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


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def squeeze(
    config: OmitArgPrefixes[Config],
    out_folder: Out = None,
    device: str = "auto",
    force: bool = False,
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
        force: if DIR was begun with other settings, use DIR-2, DIR-3 … beside it; nothing is mixed.
        preset_: settings to begin with: a name of `reta presets` or a .yaml file.
        set_: a setting of the method, to be kept with the others; may be repeated.
    """
    from reta.pipeline import squeeze as run_squeeze
    from reta.team import leads

    config = asked(config, set_)
    folder = run_squeeze(config, out_folder or default_folder(config), device, force)
    if leads():
        say(f"teachers       {folder / 'teachers'}")
        say("next           reta distill, with the same settings")


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


def scan(
    data: Annotated[str, Positional, arg(metavar="DATA")],
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
