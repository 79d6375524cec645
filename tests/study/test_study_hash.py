"""The hash that sites approve: the same for the same meaning, another for any other."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_text import TEXT

from medfed.errors import StudyError
from medfed.study import parse_study, study_from_dict, study_from_json
from medfed.study.schema import Parts

STUDY = parse_study(TEXT)
# Where the order of keys is the order of features and of their levels.
ORDERED = {("variables",), ("variables", "event", "codes")}


def shuffled(value: Any, order: random.Random, path: tuple[str, ...] = ()) -> Any:
    """The same tree with the keys of every mapping in another order, but for those whose order has a meaning."""
    if not isinstance(value, dict):
        return value
    keys = list(value)
    if path not in ORDERED:
        order.shuffle(keys)
    return {key: shuffled(value[key], order, (*path, key)) for key in keys}


@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_change_the_hash(order: random.Random) -> None:
    declared = shuffled(json.loads(STUDY.model_dump_json()), order)
    study = study_from_dict(declared)
    assert study.hash == STUDY.hash
    assert study.table_hash == STUDY.table_hash


@given(st.lists(st.integers(0, 26), max_size=6), st.text("abc é#女", max_size=12))
def test_remarks_blank_lines_and_trailing_spaces_do_not_change_the_hash(places: list[int], remark: str) -> None:
    lines = TEXT.splitlines()
    for place in sorted(places, reverse=True):
        lines[place] += "  "
        lines.insert(place, f"# {remark}")
        lines.insert(place, "")
    assert parse_study("\n".join(lines)).hash == STUDY.hash


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{en: An example, zh: 例}", "{zh: '例', en: \"An example\"}"),
        ("[18, 110]", "[18.0, 1.1e2]"),
        ("codes: {no: No, yes: Yes}", 'codes: {"no": No, "yes": Yes}'),
        ("parts: {kind: folds, folds: 5}", "parts:\n  folds: 5\n  kind: folds"),
        ("medfed: 1\n", "medfed: 1\nseed: 1\n"),
    ],
)
def test_another_spelling_of_the_same_value_does_not_change_the_hash(old: str, new: str) -> None:
    assert old in TEXT
    assert parse_study(TEXT.replace(old, new)).hash == STUDY.hash


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{en: An example, zh: 例}", "Another"),
        ("[18, 110]", "[19, 110]"),
        ("at_least: 18", "at_least: 19"),
        ("event: yes", "event: no"),
        ("{tolerance: 1e-8}", "{tolerance: 1e-9}"),
        ("folds: 5", "folds: 4"),
        ("minimum: 2", "minimum: 3"),
        ("[a, b, c]", "[a, c, b]"),
        ("medfed: 1\n", "medfed: 1\nseed: 2\n"),
    ],
)
def test_any_other_meaning_is_another_hash(old: str, new: str) -> None:
    assert old in TEXT
    assert parse_study(TEXT.replace(old, new)).hash != STUDY.hash


def test_two_studies_of_one_hash_have_the_same_features_and_levels() -> None:
    """Otherwise two sites could approve one hash and add up different columns."""
    variables = json.loads(STUDY.model_dump_json())["variables"]
    variables["weight"] = variables["age"]
    event = variables["event"] | {"codes": {"yes": "Yes", "no": "No"}}
    declared = json.loads(STUDY.model_dump_json())
    study, turned, turned_codes = (
        study_from_dict(declared | {"variables": other})
        for other in (variables, dict(reversed(variables.items())), variables | {"event": event})
    )
    assert turned.design != study.design
    assert list(turned_codes.variables["event"].codes or ()) != list(study.variables["event"].codes or ())
    assert len({study.hash, turned.hash, turned_codes.hash}) == 3
    assert len({study.table_hash, turned.table_hash, turned_codes.table_hash}) == 3


def test_a_changed_copy_is_another_study() -> None:
    """Pydantic's copy takes along what was worked out before; two studies would then be approved by one hash."""
    study = parse_study(TEXT)
    before = (study.hash, study.table_hash, study.sizes["folds"], study.design)
    copied = study.model_copy(update={"seed": 2, "parts": {"kind": "folds", "folds": 4}})
    assert (copied.seed, copied.sizes["folds"]) == (2, (4,))
    assert copied.hash == study_from_dict(json.loads(copied.model_dump_json())).hash
    assert copied.hash != before[0]
    assert copied.table_hash != before[1]
    assert (study.hash, study.table_hash, study.sizes["folds"], study.design) == before
    assert study.model_copy().hash == study.hash
    assert study.model_copy(update={"parts": Parts(kind="folds", folds=3)}).parts.folds == 3


def test_a_changed_copy_is_checked_as_a_file_is() -> None:
    with pytest.raises(StudyError, match=r"sites\.minimum: 9 sites are needed but only 2 are invited"):
        STUDY.model_copy(update={"sites": {"invited": ["a", "b"], "minimum": 9}})


def test_a_runs_record_is_the_study_itself() -> None:
    restored = study_from_json(STUDY.model_dump_json())
    assert restored.hash == STUDY.hash
    assert restored.design == STUDY.design


def test_a_title_does_not_ask_for_another_table() -> None:
    assert parse_study(TEXT.replace("An example", "Another")).table_hash == STUDY.table_hash
