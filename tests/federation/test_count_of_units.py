"""A count of units holds for every fold or part, or for none: what lies between two sets of them may then be seen."""

import numpy as np
import pytest
from consortium import synthetic_study

from medfed.data.table import StudyTable
from medfed.federation import gate
from medfed.federation.policy import Policy
from medfed.federation.units import Layout

SITES = ["a", "b", "c"]


@pytest.mark.parametrize("small", [0, 1, 2])
def test_a_part_is_refused_where_another_part_is_small(small: int) -> None:
    """Everybody, in another study, less the other two parts would be the small one."""
    study = synthetic_study(SITES, parts={"kind": "folds", "folds": 3}, privacy={"minimum_cell": 10})
    layout = Layout(study, len(SITES))
    counts = np.full((layout.atoms, layout.cells), 40, dtype=np.int64)
    counts[:, 0] = 200

    def refuses(part: str) -> str | None:
        varied = np.full((layout.atoms, len(layout.numbers)), 40, dtype=np.int64)
        words = layout.words(counts, varied, lot=1, passing=True, showing=True, secret=b"s")
        return layout.read(words).refuses(part, 10, 10)

    parts = [f"{kind}:{fold}" for kind in ("train", "test") for fold in range(3)]
    assert {part: refuses(part) for part in parts} == dict.fromkeys(parts)
    counts[small, 0] = 9
    assert {refuses(part) for part in parts} == {gate.FEW_PATIENTS}
    counts[small] = 0  # nobody is in it: nothing is seen of nobody
    assert refuses(f"test:{small}") == gate.FEW_PATIENTS
    assert refuses(f"train:{small}") is None


def test_a_set_of_an_earlier_study_may_stand_beside_this_one_where_both_are_made_of_what_was_counted() -> None:
    """The three patients of a site: one in each fold, then all of them; and two of them, that nobody has counted."""
    study = synthetic_study(SITES, privacy={"minimum_cell": 10})
    columns = {f"x{index}": np.arange(3.0) for index in range(4)} | {"event": np.array(["no", "yes", "no"])}
    table = StudyTable.from_columns(study, columns, pseudonyms=np.arange(1, 4, dtype=np.uint64))
    whole = table.on("all")
    folds = [np.array([each], dtype=np.uint64) for each in (1, 2, 3)]
    two = np.array([1, 2], dtype=np.uint64)

    def judged(counted: list[list[np.ndarray]]) -> str | None:
        return gate.judge_rows(whole, whole, study, Policy(), "secure", [two], counted)

    own = [whole.pseudonyms]
    assert judged([own]) == gate.SMALL_DIFFERENCE
    assert judged([own, folds]) is None
    assert judged([own, [folds[0], np.array([2, 3], dtype=np.uint64)]]) == gate.SMALL_DIFFERENCE
