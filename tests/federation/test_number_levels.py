"""Numbers that behave like codes are found exactly, whatever the pieces they are read in."""

import numpy as np
from consortium import synthetic_columns, synthetic_study
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.data.table import StudyTable
from medfed.federation.gate import splits_safely
from medfed.federation.number_levels import majority, number_levels


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.5]), max_size=60))
def test_the_majority_is_the_value_that_more_than_half_have(values: list[float]) -> None:
    counts = {value: values.count(value) for value in values}
    expected = [value for value, count in counts.items() if 2 * count > len(values)]
    assert majority(np.array(values)) == (expected[0] if expected else None)


class _Pieces:
    """A view of one column, read in pieces of a given size."""

    def __init__(self, values: list[float], size: int) -> None:
        self.values, self.size = np.array(values), size

    def batches(self, names: list[str]) -> object:
        return (
            (self.values[start : start + self.size],) * len(names) for start in range(0, len(self.values), self.size)
        )


@settings(max_examples=300)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 7.0, np.nan]), min_size=1, max_size=80), st.integers(1, 90))
def test_levels_are_those_of_the_sorted_column(values: list[float], size: int) -> None:
    found = number_levels(_Pieces(values, size), ["x"])["x"]  # type: ignore[arg-type]
    known = [value for value in values if not np.isnan(value)]
    distinct = sorted(set(known))
    assert found.missing == (len(known) < len(values))
    assert found.all_values == (len(distinct) <= 2)
    if len(distinct) <= 2:
        assert list(found.values) == distinct
    else:
        assert list(found.values) == [value for value in distinct if 2 * known.count(value) > len(known)]


def test_a_share_of_the_rows_is_used_only_where_neither_it_nor_the_rest_shows_a_small_count() -> None:
    study = synthetic_study(["a"])
    columns = synthetic_columns(1000, 4, 3)
    table = StudyTable.from_columns(study, columns)
    assert splits_safely(table.on("train"), study, [100, 500], 10)
    assert not splits_safely(table.on("train"), study, [15, 500], 10)
    # The eight without an event lie in the first half or the second: either way one of the two shows a small count.
    columns["event"] = np.where(np.arange(1000) < 8, "no", "yes")
    assert not splits_safely(StudyTable.from_columns(study, columns).on("train"), study, [100, 500], 10)
    # A number that is 0 for most is judged like a code.
    columns = {**synthetic_columns(1000, 4, 3), "x0": np.where(np.arange(1000) < 12, np.arange(1000.0) / 100, 0.0)}
    assert not splits_safely(StudyTable.from_columns(study, columns).on("train"), study, [100, 500], 10)
