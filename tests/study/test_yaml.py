"""YAML as declarations use it: version 1.2's few kinds of values, the line of each key, nothing that can grow or run."""

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfed.declarations import read_yaml
from medfed.errors import StudyError


def read(text: str) -> dict[str, Any]:
    return read_yaml(text, "file.yaml", StudyError)[0]


def refusal(text: str) -> str:
    with pytest.raises(StudyError) as problem:
        read(text)
    assert "\n" not in str(problem.value)
    return str(problem.value)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *[(word, word) for word in ("yes", "no", "on", "off", "y", "n", "Yes", "NO", "True", "FALSE")],
        ("true", True), ("false", False), ("null", None), ("~", None), ("", None),
        ("7", 7), ("-9", -9), ("0", 0), ("1.5", 1.5), ("1e-8", 1e-8), (".5", 0.5), ("-2.5E3", -2500.0),
        ("007", "007"), ("01", "01"), ("+5", 5.0), ("1_000", "1_000"), ("0x1F", "0x1F"), ("12:30", "12:30"),
        ("2020-01-31", "2020-01-31"), ("1.2.3", "1.2.3"), (".inf", ".inf"), (".nan", ".nan"), ("1" * 200, float("1" * 200)),
        ('"7"', "7"), ("'true'", "true"), ('"\\t"', "\t"), ("女", "女"), ("[no, 01, 1]", ["no", "01", 1]), ("{1: no}", {"1": "no"}),
    ],
)  # fmt: skip
def test_a_value_is_what_a_person_wrote(written: str, value: object) -> None:
    """Codes are where YAML 1.1 does harm: `no` is Norway or a patient without the event, 007 is seven, 12:30 is 750."""
    found = read(f"key: {written}")["key"]
    assert found == value
    assert type(found) is type(value)


def test_a_key_is_text_whatever_it_looks_like() -> None:
    assert read("no: a\n1: b\n01: c\nnull: d\n2020-01-01: e\n") == {
        "no": "a", "1": "b", "01": "c", "null": "d", "2020-01-01": "e",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: 3\n", "file.yaml, line 3: the key 'a' stands twice; remove one of them"),
        ("a:\n  b: 1\n  b: 1\n", "file.yaml, line 3: the key 'b' stands twice; remove one of them"),
        ("a: {no: 1, no: 2}", "file.yaml, line 1: the key 'no' stands twice"),
        ("? [a, b]\n: c\n", "file.yaml, line 1: a key is a word, not a list; correct the line"),
        ("a: [1, 2\nb: 3\n", "file.yaml, line 2: this is not valid YAML"),
        ("a: 1\n\tb: 2\n", "file.yaml, line 2: this is not valid YAML"),
        ("a: 1\n---\nb: 2\n", "this is not valid YAML"),
        ("a: \x01", "file.yaml: this is not valid YAML (it holds a character that no text has)"),
        ("- a\n- b\n", "file.yaml: a file of `key: value` lines is expected here"),
        ("", "file.yaml: a file of `key: value` lines is expected here"),
        ("hello", "file.yaml: a file of `key: value` lines is expected here"),
        ("a: " + "[" * 5000, "file.yaml: this is nested too deeply for a declaration"),
    ],
)
def test_what_is_no_declaration_is_one_sentence_with_its_line(text: str, sentence: str) -> None:
    assert sentence in refusal(text)


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    "text", [BOMB, "a: &a [*a]", "a: &x 1\nb: *x\n", "a: !!python/object/apply:os.system [ls]", "a: !!int x", "a: !secret b"]
)  # fmt: skip
def test_a_study_from_outside_can_neither_grow_nor_name_a_python_object(text: str) -> None:
    assert refusal(text).startswith("file.yaml, line 1: this is not valid YAML (`&`, `*` and `!` have a meaning that")


def test_every_key_has_its_line() -> None:
    lines = read_yaml("a: 1\n# a remark\nb:\n  - c: 2\n    d: 3\n", "x", StudyError)[1]
    assert lines["a",] == 1
    assert lines["b", "0", "d"] == 5


words = st.text(string.ascii_letters + string.digits + " _-.:#'\"é女", max_size=8)
trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(words, trees, min_size=1, max_size=4), st.sampled_from([None, 2]))
def test_json_is_read_as_it_stands(tree: dict[str, Any], indent: int | None) -> None:
    assert read(json.dumps(tree, ensure_ascii=False, indent=indent)) == tree
