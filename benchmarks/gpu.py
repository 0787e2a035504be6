"""All that needs a GPU, with one command, in under ten minutes on one H200 (not tried on one yet).

    python benchmarks/gpu.py --data cifar100 --teachers resnet18.safetensors densenet121.safetensors

runs the GPU suite, profiles a round of recover steps, and distils CIFAR-100 at 10 images per class
under teachers that are given, from pixels to a student's accuracy. It writes results/bench-gpu.json
and results/gpu-end-to-end.json. ``--smoke`` runs all of it in a minute on a CPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

import reta
from reta import bench
from reta.bench.measure import SIZES, commit, machine
from reta.bench.recovering import again, committee_of, noise_pool, recovery
from reta.progress import show_progress
from reta.runtime import choose_device

RESULTS = Path(__file__).parents[1] / "results"


def profiled(smoke: bool) -> list[dict[str, Any]]:
    """Return where a round of recover steps, one of each teacher, spends its time."""
    device = choose_device("auto").torch
    size = SIZES["smoke" if smoke else "gpu"]
    committee = committee_of(size, device)
    pool = noise_pool(size, 2 * size.ipc, committee[0])
    work = again(recovery("fadrm+", committee, pool, size, len(committee)))
    work()
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as trace:
        work()
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    # Of a GPU its kernels alone: their time is counted again in the calls that launched them.
    own = [event for event in trace.key_averages() if event.device_type.name == device.type.upper()]
    events = sorted(own, key=lambda event: -getattr(event, kind))
    return [
        {"name": event.key, "calls": event.count, "ms": getattr(event, kind) / 1e3}
        for event in events[:25]
    ]


def end_to_end(data: str, teachers: list[str], smoke: bool, out: Path) -> dict[str, Any]:
    """Return seconds and accuracy of one method from pixels to a student."""
    # A thousand images of 32 px in a pass, which changes speed and memory only: launches count.
    settings: dict[str, Any] = {"effort": "paper", "ipc": 10, "label_epochs": 300}
    settings["images_per_pass"] = 1000
    student = "resnet18"
    if smoke:
        settings, student = {"effort": "smoke", "ipc": 2, "label_epochs": 2}, "convnet3"
    if teachers:
        settings["teachers"] = tuple(teachers)
    start = time.perf_counter()
    run = reta.distill(data, out, method="reta-paper", **settings)
    distilled = time.perf_counter()
    metrics = reta.train(run, student=student, students=1)
    trained = time.perf_counter()
    units = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["facts"].get("seconds")
        for path in sorted((Path(run) / "units").glob("*.json"))
    }
    return {
        "data": Path(data).name,
        "settings": {name: value for name, value in settings.items() if name != "teachers"},
        "seconds": {"distill": distilled - start, "train": trained - distilled, "units": units},
        "accuracy": metrics["accuracy"],
    }


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="digits", help="CIFAR-100: a folder, .npz or .parquet")
    parser.add_argument("--teachers", nargs="*", default=[], help="files of `reta adopt`")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not (options.smoke or options.teachers):
        parser.error("--teachers: name files of `reta adopt`; training them here would take hours")
    show_progress(False)
    options.out.mkdir(parents=True, exist_ok=True)
    suite = bench.run("gpu", options.smoke)
    (options.out / "bench-gpu.json").write_text(json.dumps(suite, indent=1), encoding="utf-8")
    print(bench.table(suite))
    with tempfile.TemporaryDirectory() as folder:
        whole = end_to_end(options.data, options.teachers, options.smoke, Path(folder) / "run")
    whole |= {"profile": profiled(options.smoke), "commit": commit()}
    whole["machine"] = machine(choose_device("auto").torch)
    text = json.dumps(whole, indent=1, ensure_ascii=False)
    (options.out / "gpu-end-to-end.json").write_text(text, encoding="utf-8")
    print(f"end to end: {whole['seconds']}, accuracy {whole['accuracy']['last_mean']:.1%}")


if __name__ == "__main__":
    main()
