"""Where, when and with what a run was made."""

from __future__ import annotations

from typing import Any

from reta.reporting import words
from reta.reporting.reading import Facts, Run, figure, part

Pairs = list[tuple[str, str]]


def method_facts(run: Run) -> Pairs:
    """Return what was done."""
    manifest = run.manifest
    summary = manifest.get("summary")
    return _known(
        ("Method", f"{manifest.get('method')}: {summary}" if summary else manifest.get("method")),
        ("Source", manifest.get("source")),
        ("Images per class", run.ipc),
        ("Seed", manifest.get("seed")),
        ("Made", manifest.get("created")),
    )


def data_facts(data: Facts) -> Pairs:
    """Return what it was done with."""
    size = data.get("image_size")
    counts = [words.count(figure(data, name)) for name in ("train", "test")]
    return _known(
        ("Data", " · ".join(str(data[key]) for key in ("name", "note") if data.get(key))),
        ("Real images", f"{counts[0]} for training, {counts[1]} for testing"),
        ("Image size", f"{size} × {size} pixels" if size else None),
        ("Data fingerprint", data.get("fingerprint")),
    )


def machine_facts(run: Run) -> Pairs:
    """Return where it was done."""
    hardware, device = part(run.manifest, "hardware"), part(run.manifest, "device")
    chosen, reason = device.get("name"), device.get("reason")
    cores, threads = hardware.get("cores"), hardware.get("threads")
    return _known(
        ("Device", f"{chosen} ({reason})" if chosen and reason else chosen),
        ("Processor", hardware.get("cpu")),
        ("Cores", f"{cores}, of which {threads} used" if cores and threads else cores),
        ("GPU", hardware.get("gpu")),
        ("System", hardware.get("system")),
        ("Python", hardware.get("python")),
        ("PyTorch", hardware.get("torch")),
        ("reta", run.manifest.get("reta")),
    )


def _known(*pairs: tuple[str, Any]) -> Pairs:
    return [(name, str(value)) for name, value in pairs if value not in (None, "")]
