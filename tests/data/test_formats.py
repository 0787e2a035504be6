"""Formats of logits: what each keeps, to the bit or to a known error, and what it costs."""

from __future__ import annotations

import math
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from reta.config import Config
from reta.data.formats import (
    FORMATS,
    ONLINE,
    Bytes,
    Halves,
    LabelFormat,
    Nibbles,
    Top,
    bytes_per_row,
    dequantize,
    information_lost,
    label_format,
    quantize,
)
from reta.errors import UsageError

STORED = [Halves(), Bytes(), Nibbles(), Top(3), Top(100)]
ROWS = arrays.arrays("float32", (3, 17), elements=st.floats(-200, 200, width=32))


def some_logits(*shape: int, spread: float = 2.0) -> torch.Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def there_and_back(form: LabelFormat, logits: torch.Tensor) -> torch.Tensor:
    return form.decode(form.encode(logits), logits.shape[-1])


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from([16, 256]))
def test_quantisation_error_is_bounded(values: np.ndarray, levels: int) -> None:
    """Half a step; only the two ends may be off by what float16 loses of them (2⁻¹¹ each)."""
    logits = torch.from_numpy(values)
    codes, low, step = quantize(logits, levels)
    error = (dequantize(codes, low, step) - logits).abs().double()
    low, step = low.double()[:, None], step.double()[:, None]
    inside = (logits >= low) & (logits <= low + (levels - 1) * step)
    assert (error <= 0.5 * step + 1e-4).where(inside, True).all()
    span = logits.amax(1) - logits.amin(1)
    ends = 2.0**-11 * (span + 2 * logits.abs().amax(1)) + 1e-4
    assert (error <= 0.5 * step + ends[:, None]).all()
    assert (step[:, 0] <= (span + ends) / (levels - 1) * (1 + 2.0**-9)).all()
    assert codes.dtype == torch.uint8
    assert int(codes.max()) < levels


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(1, 17))
def test_packing_loses_nothing_of_the_codes(values: np.ndarray, classes: int) -> None:
    """A nibble in its neighbour's place, or the last class of an odd number lost."""
    logits = torch.from_numpy(values)[:, :classes]
    assert torch.equal(there_and_back(Nibbles(), logits), dequantize(*quantize(logits, 16)))
    assert torch.equal(there_and_back(Bytes(), logits), dequantize(*quantize(logits)))
    assert torch.equal(there_and_back(Halves(), logits), logits.half().float())


@pytest.mark.parametrize("value", [0.0, 3.25, -7.0])
@pytest.mark.parametrize("form", STORED, ids=repr)
def test_equal_logits_survive(value: float, form: LabelFormat) -> None:
    """A step of zero must not divide by zero, nor a rest without classes be infinite."""
    logits = torch.full((2, 5), value)
    torch.testing.assert_close(there_and_back(form, logits), logits, rtol=0, atol=4e-3)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 20))
def test_the_largest_are_kept_in_their_places(values: np.ndarray, count: int) -> None:
    """Against a sort of each row by hand: a class out of place, or one kept for a larger one."""
    logits = torch.from_numpy(values)
    back = there_and_back(Top(count), logits)
    for row, decoded in zip(values.tolist(), back, strict=True):
        ranked = sorted(row, reverse=True)
        kept = min(count, len(row))
        exactly = [i for i, v in enumerate(row) if kept == len(row) or v > ranked[kept]]
        for index in exactly:  # beyond ties at the border, which may go either way
            assert decoded[index] == np.float16(row[index])
        below = [i for i, v in enumerate(row) if v < ranked[kept - 1]]
        assert len({float(decoded[index]) for index in below}) <= 1


@pytest.mark.parametrize("spread", [0.5, 2.0, 8.0])
def test_the_rest_keeps_its_probability_and_no_constant_is_better(spread: float) -> None:
    """Against a scan over constants in float64: the KL divergence at T = 20 must be least."""
    logits = some_logits(16, 40, spread=spread)
    back = there_and_back(Top(5), logits).double()
    top = logits.topk(5).indices
    mass = (logits.double() / 20).softmax(1).scatter(1, top, 0).sum(1)
    kept = (back / 20).softmax(1).scatter(1, top, 0).sum(1)
    torch.testing.assert_close(kept, mass, rtol=0, atol=1e-4)
    ours = information_lost(logits, back)
    for shift in np.linspace(-3, 3, 25):
        mask = torch.zeros_like(back).scatter(1, top, 1).bool()
        other = torch.where(mask, back, back + shift)
        assert information_lost(logits, other) >= ours - 1e-5


def test_many_classes_get_wider_indices() -> None:
    """int16 indices would wrap beyond 32,768 classes."""
    logits = torch.zeros(1, 2**15 + 1)
    logits[0, -1] = 5.0
    assert Top(1).encode(logits)["indices"].dtype == torch.int32
    assert there_and_back(Top(1), logits)[0, -1] == 5.0
    assert Top(1).encode(logits[:, 1:])["indices"].dtype == torch.int16
    assert there_and_back(Top(1), logits[:, 1:])[0, -1] == 5.0


@pytest.mark.parametrize("form", STORED, ids=repr)
@pytest.mark.parametrize("classes", [1, 2, 9, 10, 1000])
def test_layouts_tell_what_is_stored(form: LabelFormat, classes: int) -> None:
    """What is checked at load, and counted in tables, must be what `encode` writes."""
    logits = some_logits(2, 3, classes)
    encoded = form.encode(logits)
    layout = form.layout(classes)
    assert set(encoded) == set(layout)
    for name, (kind, shape) in layout.items():
        assert encoded[name].dtype == kind
        assert tuple(encoded[name].shape) == (2, 3, *shape)
    assert sum(tensor.nbytes for tensor in encoded.values()) == 6 * bytes_per_row(form, classes)
    assert form.decode(encoded, classes).shape == logits.shape


def test_bytes_of_a_thousand_classes() -> None:
    """The goals: at most 1.01 bytes a class in 8 bits and 0.51 in 4."""
    assert bytes_per_row(Bytes(), 1000) <= 1010
    assert bytes_per_row(Nibbles(), 1000) <= 510
    assert bytes_per_row(Halves(), 1000) == 2000
    assert bytes_per_row(Top(10), 1000) == 42


def test_information_lost_against_sums_by_hand() -> None:
    """KL the other way round, a mean of ratios for a ratio of means, or another temperature."""
    exact, decoded = some_logits(4, 6), some_logits(4, 6) + 0.3 * some_logits(6)
    lost = said = 0.0
    for a, b in zip(exact.tolist(), decoded.tolist(), strict=True):
        p = [math.exp(v / 7) for v in a]
        q = [math.exp(v / 7) for v in b]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        lost += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        said += sum(x * math.log(x * 6) for x in p)
    assert information_lost(exact, decoded, 7) == pytest.approx(lost / said, rel=1e-9)
    assert information_lost(exact, exact) == 0
    assert information_lost(exact, torch.zeros(4, 6)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("form", "most"), [(Halves(), 1e-6), (Bytes(), 2e-4), (Nibbles(), 0.03), (Top(100), 0.7)]
)
def test_information_lost_at_the_training_temperature(form: LabelFormat, most: float) -> None:
    """Labels coarser than these would cost accuracy unseen."""
    logits = some_logits(64, 1000)
    assert information_lost(logits, there_and_back(form, logits)) <= most


def test_formats_by_name() -> None:
    """A format that settings offer and the code does not have, or the reverse."""
    offered = get_args(get_type_hints(Config)["label_format"])
    assert set(offered) == set(FORMATS)
    for name in FORMATS:
        form = label_format(name, 5)
        assert (form is None) is (name == ONLINE)
        assert form is None or form.name == name
    with pytest.raises(UsageError, match="did you mean 'int8'"):
        label_format("int9", 5)
