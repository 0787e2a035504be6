"""CaO2: choice and refinement against plain loops, a small model that learns, others' pipelines."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reta.errors import DivergedError, UsageError
from reta.methods import METHODS
from reta.models import Classifier
from reta.synthesis.cao2 import ConditionAware, chosen, condition_loss
from reta.synthesis.diffusion import Denoiser, load_pipeline, own_denoiser, train_denoiser
from reta.synthesis.engine import Settings, Work
from reta.synthesis.loop import recover
from reta.synthesis.pool import Pool
from small_world import CLASSES, SIZE

diffusers = pytest.importorskip("diffusers")
ENGINE = ConditionAware(steps=3, sampling=8, training=2, batch=6, width=8, latent_rate=0.05)


@pytest.fixture
def work(committee: list[Classifier], pool: Pool) -> Work:
    return Work(committee, pool, range(CLASSES), Settings(2), METHODS["cao2"].start)


@pytest.mark.parametrize("least", [False, True])
def test_the_recognised_come_first(least: bool) -> None:
    """Breaks when an image of a wrong class is kept while a right one is left out."""
    rng = np.random.default_rng(0)
    probability = rng.dirichlet([0.5] * 4, size=30)
    found = chosen(torch.from_numpy(probability), 2, 12, least=least).tolist()
    right = [i for i in range(30) if probability[i].argmax() == 2]
    wrong = [i for i in range(30) if probability[i].argmax() != 2]
    sign = 1 if least else -1
    right.sort(key=lambda i: sign * probability[i, 2])
    wrong.sort(key=lambda i: -probability[i, 2])
    assert 0 < len(right) < 12
    assert found == [*right, *wrong][:12]


def test_the_loss_is_the_mean_square_and_the_largest_error() -> None:
    """Breaks when the two errors are taken over the batch, or weighted otherwise."""
    rng = np.random.default_rng(0)
    noise, seen = rng.normal(size=(3, 2, 4, 4)), rng.normal(size=(3, 2, 4, 4))
    found = condition_loss(torch.from_numpy(noise), torch.from_numpy(seen), 10.0)
    for image in range(3):
        errors = [abs(a - b) for a, b in zip(noise[image].flat, seen[image].flat, strict=True)]
        expected = sum(error**2 for error in errors) / 32 + 10 * max(errors)
        assert np.isclose(float(found[image]), expected)


class Exact(torch.nn.Module):
    """The best denoiser there is for data that are one known image per class."""

    def __init__(self, known: torch.Tensor, shares: torch.Tensor) -> None:
        super().__init__()
        self.known, self.shares = known, shares

    def forward(self, latents, times, class_labels):
        kept = self.shares[times][:, None, None, None]
        noise = (latents - kept.sqrt() * self.known[class_labels]) / (1 - kept).sqrt()
        return type("Answer", (), {"sample": noise})


def exact(pool: Pool) -> tuple[Denoiser, torch.Tensor]:
    known = pool.pixels(torch.stack([pool.members(label)[0] for label in range(CLASSES)])) * 2 - 1
    scheduler = diffusers.DDIMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    model = Exact(known, scheduler.alphas_cumprod)
    return Denoiser(model, scheduler, (3, SIZE, SIZE), None, range(CLASSES)), known


def test_samples_and_refinement_go_where_the_model_says(work: Work) -> None:
    """Breaks when noise schedule, sampler or gradient are wrong: the answer is known exactly."""
    denoiser, known = exact(work.pool)
    noise = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    made = denoiser.sample(noise, 1, 8, 1.0)
    assert torch.allclose(made, known[1].expand_as(made), atol=0.02)
    images = denoiser.decode(made, SIZE)
    assert torch.allclose(images, (known[1] / 2 + 0.5).expand_as(images), atol=0.02)
    assert denoiser.decode(made, 24).shape == (2, 3, 24, 24)
    astray = known[2].expand(2, -1, -1, -1) + 0.3 * noise
    engine = replace(ENGINE, steps=60, sampling=50, latent_rate=0.02)
    back, course = engine.refine(work, denoiser, astray, 2)
    assert (back - known[2]).abs().mean() < 0.5 * (astray - known[2]).abs().mean()
    assert course[-10:].mean() < 0.6 * course[:10].mean()


def test_refinement_is_adam_on_the_loss(work: Work) -> None:
    """Breaks when images of a class disturb each other, or times and noise are drawn anew."""
    denoiser = own_denoiser(work, CLASSES, 8)
    denoiser.model.eval().requires_grad_(False)
    latents = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    both, _ = ENGINE.refine(work, denoiser, latents, 0)
    assert 0 < (both - latents).abs().max() <= 3.01 * ENGINE.latent_rate  # Adam's three steps
    seen: list[torch.Tensor] = []

    class Listening(torch.nn.Module):
        def forward(self, noised, times, class_labels):
            seen.append(torch.cat([times, class_labels]))
            return denoiser.model(noised, times, class_labels=class_labels)

    for condition, number in (("class", 3), ("null", CLASSES)):
        engine = replace(ENGINE, condition=condition, sampling=50)
        engine.refine(work, replace(denoiser, model=Listening()), latents, 3)
        assert all(row[2:].tolist() == [number, number] for row in seen[-3:])
        times = torch.stack(seen[-3:])[:, :2]
        assert int(times.min()) >= 20
        assert int(times.max()) <= 220


def test_the_small_model_learns(work: Work) -> None:
    """Breaks when training leads nowhere, or ignores the class."""

    def error(denoiser: Denoiser, shift: int) -> float:
        images = work.pool.pixels(torch.arange(36)) * 2 - 1
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
        times = torch.full((36,), 600)
        classes = (work.pool.labels + shift) % CLASSES
        with torch.no_grad():
            seen = denoiser.noise(denoiser.noised(images, noise, times), times, classes)
        return float((seen - noise).square().mean())

    fresh = own_denoiser(work, CLASSES, 8)
    trained = own_denoiser(work, CLASSES, 8, train_denoiser(work, 100, 16, 8))
    assert error(trained, 0) < 0.5 * error(fresh, 0)
    assert error(trained, 0) < error(trained, 1)


def test_a_whole_recipe_starts_from_samples(work: Work) -> None:
    """Breaks when what is refined is not what was selected, or colours appear in grey data."""
    recipe = replace(METHODS["cao2"], engine=ENGINE)
    result = recover(recipe, work.committee, work.pool, [1, 3], Settings(2), laid=None)
    assert result.images.shape == (2, 2, 3, SIZE, SIZE)
    assert len(result.frames) == 2
    assert result.anchors == []
    still = replace(recipe, engine=replace(ENGINE, steps=0))
    plain = recover(still, work.committee, work.pool, [1, 3], Settings(2))
    assert torch.equal(plain.images, result.frames[0])
    assert plain.steps == []
    grey = replace(work.pool, grey=True)
    shown = recover(recipe, work.committee, grey, [0], Settings(1)).images
    assert torch.equal(shown[:, :, 0], shown[:, :, 2])


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DiT pipeline of three classes with random weights, as its library saves one."""
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
    )
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
    )
    path = tmp_path_factory.mktemp("dit")
    diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler()).save_pretrained(path)
    index = path / "model_index.json"
    names = {"0": "tench", "1": "goldfish, carp", "2": "class1", "3": "class0", "4": "class2"}
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": names}))  # as DiT's
    return path


def test_a_dit_pipeline_is_used(dit: Path, work: Work) -> None:
    """Breaks when CaO2 cannot be run with the model of its paper."""
    device = torch.device("cpu")
    found = load_pipeline(str(dit), ["class0", "goldfish"], None, device)
    assert list(found.classes) == [3, 1]
    assert (found.null, found.shape) == (5, (4, 8, 8))
    ids = (4, 0, 1, 2)
    engine = replace(ENGINE, weights=str(dit), class_ids=ids)
    assert engine.groundwork == 0
    recipe = replace(METHODS["cao2"], engine=engine)
    result = recover(recipe, work.committee, work.pool, [0, 2], Settings(1))
    assert result.images.shape == (2, 1, 3, SIZE, SIZE)
    with pytest.raises(UsageError, match="does not know class 'class3' by name"):
        recover(
            replace(recipe, engine=replace(engine, class_ids=None)),
            work.committee,
            work.pool,
            [0],
            Settings(1),
        )
    with pytest.raises(UsageError, match="2 numbers for 1 classes"):
        load_pipeline(str(dit), ["class0"], [1, 2], device)
    with pytest.raises(UsageError, match="not a pipeline of diffusers"):
        load_pipeline(str(dit / "vae"), ["class0"], None, device)


def test_other_weights_at_the_same_place_are_seen(dit: Path, tmp_path: Path) -> None:
    """Breaks when a run goes on with images of another model than the one that is there now."""
    place = shutil.copytree(dit, tmp_path / "dit")
    engine = replace(ENGINE, weights=str(place))
    before = dict(engine.given())
    assert any(name.endswith(".safetensors") for name in before)
    weights = place / "transformer" / "diffusion_pytorch_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    after = dict(engine.given())
    differing = {name for name in before if before[name] != after[name]}
    assert differing == {weights.relative_to(place).as_posix()}
    assert dict(ENGINE.given()) == {}
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="not a pipeline of diffusers"):
        replace(ENGINE, weights=str(empty)).given()


def test_a_unet_pipeline_is_used(tmp_path: Path) -> None:
    """Breaks when only transformers are taken, or a model without classes is."""

    def saved(name: str, **settings: int) -> str:
        unet = diffusers.UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
            layers_per_block=1,
            **settings,
        )
        diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler()).save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    device = torch.device("cpu")
    one = load_pipeline(saved("classes", num_class_embeds=3), ["a", "b"], None, device)
    assert (list(one.classes), one.null, one.decoder) == ([0, 1], 2, None)
    assert load_pipeline(saved("full", num_class_embeds=2), ["a", "b"], None, device).null is None
    with pytest.raises(UsageError, match="not class-conditional"):
        load_pipeline(saved("plain"), ["a", "b"], None, device)


def test_a_classifier_without_answers_is_told(work: Work) -> None:
    """Breaks when images are chosen by NaN."""
    denoiser, _ = exact(work.pool)
    nothing = torch.full((CLASSES, 3, SIZE, SIZE), torch.nan)
    blind = replace(denoiser, model=Exact(nothing, denoiser.scheduler.alphas_cumprod))
    with pytest.raises(DivergedError, match="no probabilities"):
        ENGINE.select(work, blind, 0)


def test_settings_that_mean_nothing_are_refused() -> None:
    """Breaks when no candidates are asked for, or a network that cannot be built."""
    for wrong in ({"candidates": 0}, {"sampling": 0}, {"steps": -1}, {"width": 6}):
        with pytest.raises(UsageError):
            replace(ENGINE, **wrong)
