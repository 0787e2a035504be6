"""Units of work: one that fails does not stop the others, and nothing that failed is forgotten."""

import pytest

from reta.errors import DivergedError, StorageError, UnfinishedError
from reta.executor import Serial


def work(shared: list[int], unit: int) -> None:
    if unit == 2:
        raise DivergedError("the loss became nan")
    if unit == 99:
        raise StorageError("the disk is full")
    shared.append(unit)


def test_a_unit_that_diverges_does_not_stop_the_others():
    """Breaks when one bad class block costs the others, or is forgotten at the end."""
    executor, done = Serial(), []
    assert executor.run("recover", work, done, [1, 2, 3]) == [2]
    assert done == [1, 3]
    with pytest.raises(DivergedError, match=r"recover 2: the loss became nan.*same command"):
        executor.check()
    executor.check()


def test_an_error_that_all_units_would_meet_stops_at_once():
    """Breaks when a full disk is met once per unit."""
    done = []
    with pytest.raises(StorageError, match="disk is full"):
        Serial().run("recover", work, done, [1, 99, 3])
    assert done == [1]


def test_mixed_failures_have_an_exit_code_of_their_own():
    """Breaks when a lost worker is reported as a divergence."""
    executor = Serial()
    executor.run("recover", work, [], [2])
    executor.failures["label 0"] = UnfinishedError("its worker died 4 times")
    with pytest.raises(UnfinishedError) as raised:
        executor.check()
    assert raised.value.exit_code == 6
