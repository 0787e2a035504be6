"""The examples for clusters: each is run as far as one machine with two cores allows."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from reta import cli
from reta.storage import RunFolder

pytest.importorskip("ray")

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "cluster"
QUICK = shlex.split(
    "--classes 2 --per-class 20 --ipc 1 --effort smoke --teachers convnet3 --teacher-epochs 1 "
    "--steps 4 --label-epochs 2 --students 1 --student convnet3"
)


def environment(tmp_path: Path, **stubs: str) -> dict[str, str]:
    """Return an environment with `reta` and other commands as shell scripts."""
    programs = tmp_path / "bin"
    programs.mkdir()
    stubs["reta"] = f'exec {sys.executable} -m reta "$@"'
    for name, script in stubs.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (programs / name).chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    source = str(ROOT / "src")
    return os.environ | {"PATH": path, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}


def run(script: str, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(EXAMPLES / script), *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_laptop_runs(tmp_path):
    """Breaks when the first thing to try with a cluster does not work."""
    env = environment(tmp_path) | {"OUT": str(tmp_path / "run")}
    done = run("laptop.sh", *QUICK, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "intact" in done.stdout


RECORDING = 'echo "{0} $*" >> "$CALLS"'


def recorded(script: str, tmp_path: Path, *arguments: str, **more: str) -> list[str]:
    """Run a script whose commands only write down how they were called."""
    names = ("srun", "ray", "sleep")
    env = environment(tmp_path, **{name: RECORDING.format(name) for name in names})
    env |= {"CALLS": str(tmp_path / "calls"), "DATA": "digits", "OUT": str(tmp_path / "run")}
    (tmp_path / "bin/reta").write_text("#!/usr/bin/env bash\n" + RECORDING.format("reta"))
    (tmp_path / "bin/scontrol").write_text("#!/usr/bin/env bash\nprintf 'node1\\nnode2\\n'")
    (tmp_path / "bin/scontrol").chmod(0o755)
    done = run(script, *arguments, env=env | more)
    assert done.returncode == 0, done.stderr
    return (tmp_path / "calls").read_text().splitlines()


def parsed(calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the command line read every reta command that was called, and return the names."""
    commands = [shlex.split(call)[1:] for call in calls if call.startswith("reta ")]
    for command in commands:
        monkeypatch.setitem(cli.COMMANDS, command[0], _told(cli.COMMANDS[command[0]]))
        with pytest.raises(Understood):
            cli.main(command)
    return [command[0] for command in commands]


class Understood(Exception):
    """The command line was read without a mistake."""


def _told(command):
    import functools

    @functools.wraps(command)
    def read(*_arguments, **_options):
        raise Understood

    return read


def test_eight_gpus_are_asked_for_rightly(tmp_path, monkeypatch):
    """Breaks when an option in the script was renamed."""
    calls = recorded("eight-gpus.sh", tmp_path)
    assert parsed(calls, tmp_path, monkeypatch) == ["distill", "train", "verify"]
    assert all("--cluster auto" in call for call in calls[:2])


def test_slurm_starts_ray_on_every_node_and_the_driver_once(tmp_path, monkeypatch):
    """Breaks when a node is left idle, or an option in the script was renamed."""
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}
    calls = recorded("slurm.sh", tmp_path, **slurm)
    steps = [call for call in calls if call.startswith("srun")]
    assert len(steps) == 2
    assert any("-w node1 ray start --head" in call and "--port=10007" in call for call in steps)
    assert any("--nodes=1" in call and "--address=node1:10007" in call for call in steps)
    assert parsed(calls, tmp_path, monkeypatch) == ["distill", "train"]
    assert sum("--cluster node1:10007" in call for call in calls) == 2


def test_kuberay_is_a_rayjob_with_a_command_that_runs(tmp_path, monkeypatch):
    """Breaks when the YAML is no RayJob, or its entrypoint is not understood."""
    job = yaml.safe_load((EXAMPLES / "kuberay.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["OMP_NUM_THREADS"]
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {
        container["image"]
        for group in groups
        for container in group["template"]["spec"]["containers"]
    }
    assert len(images) == 1  # the same versions everywhere
    assert parsed([spec["entrypoint"]], tmp_path, monkeypatch) == ["distill"]


@pytest.mark.slow
def test_the_entrypoint_of_kuberay_runs(tmp_path):
    """Breaks when a run on a cluster cannot write to a URL."""
    job = yaml.safe_load((EXAMPLES / "kuberay.yaml").read_text(encoding="utf-8"))
    url = (tmp_path / "bucket/photos").as_uri()
    entrypoint = job["spec"]["entrypoint"].replace("s3://bucket/runs/photos", url)
    entrypoint = entrypoint.replace("/data/photos --ipc 10", "digits " + " ".join(QUICK))
    env = environment(tmp_path) | {"RETA_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        shlex.split(entrypoint), env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert RunFolder(tmp_path / "bucket/photos").verify() == []
