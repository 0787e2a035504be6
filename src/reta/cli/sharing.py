"""The commands that show a distilled set and pass it on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from reta.cli.terminal import Folder, bytes_, say
from reta.errors import UsageError

# Spelt out, so that the help of a command needs no torch; a test compares it with the table.
Format = Literal["imagefolder", "npz", "safetensors", "webdataset", "hf", "dd-ranking"]
Part = Literal["history", "pool", "report", "students", "teachers"]


def gallery(
    folder: Positional[Folder],
    out_file: Annotated[Path | None, arg(name="out", metavar="FILE")] = None,
    per_class: int = 10,
) -> None:
    """Write a contact sheet of the distilled images as one PNG: a row for each class.

    Args:
        folder: run folder of `reta distill`.
        out_file: where to; RUN/gallery.png by default.
        per_class: at most this many images of each class.
    """
    from reta.reporting import gallery_sheet

    if per_class < 1:
        raise UsageError(f"--per-class is {per_class}; it must be at least 1")
    say(gallery_sheet(folder, out_file, per_class))


def export(
    folder: Positional[Folder],
    format_: Annotated[Format, arg(name="format")] = "imagefolder",
    out_folder: Annotated[Path | None, arg(name="out", metavar="DIR")] = None,
) -> None:
    """Write a distilled set in another format, with its labels, class names and dataset card.

    imagefolder: PNG files in class folders, for torchvision and most tools. npz: NumPy arrays in
    one file. safetensors: tensors in one file, instead of .pt. webdataset: tar shards. hf: a
    Hugging Face data set (needs reta[hf]). dd-ranking: tensors and folders for DD-Ranking.

    Example: reta export runs/photos --format npz --out photos-npz

    Args:
        folder: run folder of `reta distill`.
        format_: imagefolder, npz, safetensors, webdataset, hf or dd-ranking.
        out_folder: a new or empty folder; RUN-FORMAT, beside the run, by default.
    """
    from reta.sharing import export as run_export

    folder = folder.resolve()
    say(run_export(folder, format_, out_folder or folder.with_name(f"{folder.name}-{format_}")))


def push(
    folder: Positional[Folder],
    target: Positional[Annotated[str, arg(metavar="hf:OWNER/NAME")]],
    dry_run: Annotated[bool, arg(name="dry-run")] = False,
    private: bool = False,
    include: tuple[Part, ...] = (),
) -> None:
    """Upload a distilled set and its card to the Hugging Face Hub (needs reta[hf]).

    Images, labels, settings and measurements are uploaded. What shows or describes single real
    images (history, report, pool) and weights (teachers, students) are only with --include. Fill in
    the licence at the top of RUN/README.md first.

    Example: reta push runs/photos hf:me/photos-distilled --dry-run

    Args:
        folder: run folder of `reta distill`.
        target: where to.
        dry_run: list what would be uploaded, and send nothing.
        private: make a new repository private.
        include: parts to upload as well: history, pool, report, students, teachers.
    """
    from reta.sharing import plan
    from reta.sharing import push as run_push

    upload = plan(folder, target, include)
    for name, size in upload.files.items() if dry_run else ():
        say(f"{bytes_(size):>9}  {name}")
    total = f"{len(upload.files)} files, {bytes_(sum(upload.files.values()))}"
    if upload.left_out:
        say(f"left out: {', '.join(upload.left_out)} (see --include)")
    if not upload.licensed:
        say(f"no licence is named yet: edit `license:` at the top of {folder / 'README.md'}")
    if dry_run:
        say(f"would upload {total} to https://huggingface.co/datasets/{upload.repository}")
        return
    say(f"uploading {total}")
    say(run_push(upload, private=private))
