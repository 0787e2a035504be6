"""Methods with an engine of their own, from the command's settings to a sealed, verified folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from reta import cli
from reta.config import Config
from reta.pipeline import distill
from reta.planning import outline, plan
from reta.preparation import open_data, recipe_of
from reta.storage import RunFolder, read_json
from reta.students import train
from reta.tensors import read_tensors

FAST = {
    "engine.experts": 2,
    "engine.last_start": 2,
    "engine.expert_epochs": 1,
    "engine.student_steps": 2,
    "engine.width": 4,
}


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Three classes of eight coloured images."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    images = rng.integers(0, 100, (24, 16, 16, 3)) + 70 * labels[:, None, None, None]
    np.savez(tmp_path / "data.npz", images=images.astype(np.uint8), labels=labels)
    return str(tmp_path / "data.npz")


def settings(data: str, **changes: object) -> Config:
    quick = {"teachers": ("convnet3",), "teacher_epochs": 1, "label_epochs": 1, "students": 1}
    given = {"method": "mtt", "ipc": 1, "steps": 2, "options": FAST, "student": "convnet3_in"}
    return Config(data, **(quick | given | changes))


def test_groundwork_is_kept_sealed_and_not_done_twice(data: str, tmp_path: Path) -> None:
    """Breaks when experts are lost, trained again for every block, or missing from the manifest."""
    config = settings(data, block=2)  # all classes are needed together, whatever is asked for
    folder = distill(config, tmp_path / "run")
    run = RunFolder(folder)
    assert run.verify() == []
    records = run.records()
    assert [name for name in records if name.startswith("recover")] == ["recover-000"]
    files = [folder / f"groundwork/{number:03d}.safetensors" for number in range(2)]
    assert all(file.name and read_tensors(file)[0]["trajectory"].shape[0] == 3 for file in files)
    assert len(records) == outline(config, open_data(config), tmp_path / "x").units
    assert train(folder)["accuracy"]
    before = [file.stat().st_mtime_ns for file in files]
    image = sorted((folder / "images").rglob("*.png"))[0]
    bytes_before = image.read_bytes()
    image.unlink()
    distill(config, tmp_path / "run")
    assert [file.stat().st_mtime_ns for file in files] == before
    assert image.read_bytes() == bytes_before
    files[0].write_bytes(b"damaged")
    assert run.verify()
    image.unlink()
    distill(config, tmp_path / "run")  # the expert is made again, with the same bytes
    assert run.verify() == []
    assert image.read_bytes() == bytes_before


def test_settings_reach_the_engine(data: str) -> None:
    """Breaks when --effort, --steps or --set does nothing to a method with an engine."""
    small = recipe_of(settings(data, steps=None, options={}))
    assert small.steps == 1000
    given = recipe_of(settings(data, steps=7, options={"engine.experts": 3}))
    assert given.engine is not None
    assert (given.steps, given.engine.groundwork) == (7, 3)
    assert recipe_of(settings(data, effort="paper", steps=None, options={})).steps == 5000


def test_a_plan_knows_of_an_engines_work(data: str, tmp_path: Path) -> None:
    """Breaks when experts are left out of time or disk, or a model nobody asked is timed."""
    config = settings(data)
    made = plan(config, tmp_path / "run")
    times = {stage.name: stage.seconds for stage in made.stages}
    assert all(times[name] for name in ("groundwork", "recover"))
    folder = distill(config, tmp_path / "run")
    written = sum(file.stat().st_size for file in (folder / "groundwork").iterdir())
    assert made.bytes["groundwork"] == pytest.approx(written, rel=0.01, abs=4000)
    given = settings(data, method="cao2", options={"engine.weights": "somewhere"})
    other = {stage.name: stage.seconds for stage in plan(given, tmp_path / "run").stages}
    assert "groundwork" not in other
    assert other["recover"] is None


def test_a_method_with_an_engine_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when `reta methods NAME` shows parts that the method does not use, or not its own."""
    cli.main(["methods", "mtt"])
    said = capsys.readouterr().out
    assert "CVPR 2022" in said
    assert "expert_rate: 0.01" in said
    assert "Ours:" in said
    assert "bn_weight" not in said


def test_other_weights_at_the_same_place_make_the_images_anew(data: str, tmp_path: Path) -> None:
    """Breaks when a run whose diffusion model was exchanged keeps the images of the old one."""
    diffusers = pytest.importorskip("diffusers")

    def save(seed: int) -> None:
        torch.manual_seed(seed)
        unet = diffusers.UNet2DModel(
            sample_size=16,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
            layers_per_block=1,
            num_class_embeds=4,
        )
        diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler()).save_pretrained(tmp_path / "model")

    own = {"engine.weights": str(tmp_path / "model"), "engine.sampling": 4, "engine.candidates": 1}
    config = settings(data, method="cao2", options=own)
    save(0)
    run = RunFolder(distill(config, tmp_path / "run"))
    record = run.record_path("recover-000")
    first = record.read_bytes()
    distill(config, tmp_path / "run")
    assert record.read_bytes() == first
    save(1)
    distill(config, tmp_path / "run")
    assert read_json(record)["files"] != json.loads(first)["files"]
    assert run.verify() == []
