"""The study table: what columns become, parts, read-only arrays, versions, pieces from memory and from disk."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.data import table as table_module
from medfed.data.build import pseudonym
from medfed.data.stored import ParquetColumns
from medfed.data.table import StudyTable
from medfed.errors import MappingError
from medfed.study import study_from_dict

NAMES = ("features", "outcome", "arm", "fold", "age", "sex", "note")


def make_study(**changes):
    declared = {
        "medfed": 1,
        "name": "example",
        "title": "An example",
        "question": "Does it help?",
        "variables": {
            "event": {"meaning": "e", "type": "code", "role": "outcome", "codes": {"no": "n", "yes": "y"}, "event": "yes"},
            "drug": {"meaning": "d", "type": "code", "role": "arm", "codes": {"new": "n", "old": "o"}, "reference": "old"},
            "age": {"meaning": "a", "type": "number", "role": "covariate", "unit": "year", "range": [0, 120], "missing": "mean"},
            "sex": {"meaning": "s", "type": "code", "role": "covariate", "codes": {"f": "F", "m": "M"}, "missing": "unknown"},
            "note": {"meaning": "n", "type": "text", "role": "cohort"},
        },
        "task": {"kind": "treatment_effect"},
        "method": {"use": "medfed:medfed.methods.treatment_effect.TreatmentEffect"},
        "parts": {"kind": "folds", "folds": 3},
        "sites": {"invited": ["a", "b"], "minimum": 1},
    }  # fmt: skip
    return study_from_dict(declared | changes)


STUDY = make_study()


def columns(rows: int = 30):
    rng = np.random.default_rng(4)
    return {
        "event": rng.choice(["no", "yes"], rows).tolist(),
        "drug": rng.choice(["new", "old"], rows).tolist(),
        "age": np.where(rng.random(rows) < 0.1, np.nan, rng.integers(20, 90, rows)),
        "sex": [None if draw < 0.1 else "f" if draw < 0.5 else "m" for draw in rng.random(rows)],
        "note": ["x" * int(length) for length in rng.integers(0, 9, rows)],
    }


def people(rows: int):
    return np.arange(rows, dtype=np.uint64) + np.uint64(10)


def on_disk(table: StudyTable, path) -> StudyTable:
    stored = {"pseudonym": table.row_pseudonyms, "part": table.part_index}
    stored |= {f"v_{name}": table.columns[name] for name in table.study.variables}
    pa_parquet.write_table(
        pa.table({name: pa.array(column) for name, column in stored.items()}), path, row_group_size=7
    )
    read = ParquetColumns(table.study, path)
    return StudyTable(table.study, read, *read.head())


def test_columns_become_features_in_the_designs_order():
    given_rows = {
        "event": ["yes", "no"],
        "drug": ["new", "old"],
        "age": [50, np.nan],
        "sex": ["m", None],
        "note": ["", "b"],
    }
    table = StudyTable.from_columns(STUDY, given_rows, pseudonyms=people(2))
    first = int(np.flatnonzero(table.row_pseudonyms == 10)[0])
    features, outcome, arm = table.on("all").arrays("features", "outcome", "arm")
    names = [column.name for column in STUDY.design.columns]
    assert names == ["intercept", "drug=new", "age", "sex=m", "sex=unknown"]
    assert features[first].tolist() == [1, 1, 50, 1, 0]
    assert np.array_equal(features[1 - first], [1, 0, np.nan, 0, 1], equal_nan=True)
    assert (outcome[first], outcome[1 - first]) == (1.0, 0.0)
    assert (arm[first], arm[1 - first]) == (1, 0), "the reference is arm 0, wherever it stands among the codes"


def test_the_order_in_which_rows_arrive_does_not_matter():
    whole, order = columns(), np.random.default_rng(1).permutation(30)
    turned = {name: [column[index] for index in order] for name, column in whole.items()}
    one = StudyTable.from_columns(STUDY, whole, pseudonyms=people(30))
    other = StudyTable.from_columns(STUDY, turned, pseudonyms=people(30)[order])
    assert one.version == other.version


@pytest.mark.parametrize(
    "name, value", [("event", "yes"), ("age", 51.0), ("sex", "f"), ("note", "another"), ("drug", "old")]
)
def test_every_value_counts_in_the_version(name, value):
    whole = columns()
    changed = whole | {name: [value if index == 3 else old for index, old in enumerate(whole[name])]}
    if list(changed[name]) == list(whole[name]):
        changed[name][3] = {"event": "no", "sex": "m", "drug": "new"}[name]
    assert StudyTable.from_columns(STUDY, whole).version != StudyTable.from_columns(STUDY, changed).version


def test_parts_and_the_studys_declaration_count_in_the_version():
    versions = {
        StudyTable.from_columns(STUDY, columns(), parts=np.zeros(30)).version,
        StudyTable.from_columns(STUDY, columns(), parts=np.ones(30)).version,
        StudyTable.from_columns(make_study(unit="visit"), columns(), parts=np.zeros(30)).version,
    }
    assert len(versions) == 3


def test_a_title_does_not_count_in_the_version():
    renamed = make_study(title="Another title")
    assert StudyTable.from_columns(STUDY, columns()).version == StudyTable.from_columns(renamed, columns()).version


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["all", "test:1"])
def test_arrays_are_read_only_contiguous_and_cached(name, part):
    view = StudyTable.from_columns(STUDY, columns()).on(part)
    (array,) = view.arrays(name)
    assert not array.flags.writeable
    assert array.flags.c_contiguous
    assert view.arrays(name)[0] is array
    assert not view.row_pseudonyms.flags.writeable
    assert not view.pseudonyms.flags.writeable


def test_an_array_above_the_stated_size_is_refused_and_pieces_still_work(monkeypatch):
    view = StudyTable.from_columns(STUDY, columns()).on("all")
    monkeypatch.setattr(table_module, "ARRAYS_AT_MOST", 8 * 30 * 2)
    view.arrays("age")
    with pytest.raises(MappingError, match=r"read it in pieces with batches\(\)"):
        view.arrays("features")
    assert sum(len(features) for (features,) in view.batches(["features"], 4)) == 30


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 40),
    piece=st.integers(1, 11),
    part=st.sampled_from(["all", "train:0", "test:2"]),
    disk=st.booleans(),
)
def test_pieces_joined_are_the_arrays_from_memory_and_from_disk(tmp_path_factory, size, piece, part, disk):
    table = StudyTable.from_columns(STUDY, columns())
    if disk:
        table = on_disk(table, tmp_path_factory.mktemp("pieces") / "t.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "PIECE", piece)
        batches = list(table.on(part).batches(NAMES, size))
    assert [len(batch[0]) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    for name, pieces in zip(NAMES, zip(*batches, strict=True), strict=True):
        joined, (whole,) = np.concatenate(pieces), table.on(part).arrays(name)
        assert np.array_equal(joined, whole, equal_nan=joined.dtype.kind == "f"), name
        assert not pieces[0].flags.writeable


def test_a_table_on_disk_has_the_version_of_the_one_in_memory_and_pieces_keep_no_column(tmp_path):
    table = StudyTable.from_columns(STUDY, columns())
    stored = on_disk(table, tmp_path / "t.parquet")
    assert stored.version == table.version
    list(stored.on("train:1").batches(["features", "note"], 5))
    assert stored.columns._whole == {}


def test_a_file_that_changes_while_it_is_in_use_is_refused(tmp_path):
    stored = on_disk(StudyTable.from_columns(STUDY, columns()), tmp_path / "t.parquet")
    with (tmp_path / "t.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(MappingError, match="was changed while it was in use"):
        stored.on("all").arrays("age")


def test_train_and_test_of_a_fold_are_everybody_once():
    table = StudyTable.from_columns(STUDY, columns(), pseudonyms=people(30))
    for fold in range(3):
        train, test = table.on(f"train:{fold}"), table.on(f"test:{fold}")
        assert set(train.pseudonyms) | set(test.pseudonyms) == set(people(30))
        assert not set(train.pseudonyms) & set(test.pseudonyms)
        assert set(test.arrays("fold")[0]) == {fold}
    assert table.on("train").rows == 30


@pytest.mark.parametrize("part", ["train:3", "test:x", "all:1", "test:", "valid", "every", "test:-1"])
def test_a_part_that_the_study_does_not_have_is_refused(part):
    with pytest.raises(MappingError, match="has no part"):
        StudyTable.from_columns(STUDY, columns()).on(part)


def test_parts_by_variable_take_valid_out_of_train_only():
    split = {"meaning": "s", "type": "code", "role": "part", "codes": {"train": "t", "test": "u"}}
    study = make_study(
        variables=STUDY.model_dump(mode="json")["variables"] | {"split": split},
        parts={"kind": "variable", "variable": "split", "valid_fraction": 0.2},
    )
    table = StudyTable.from_columns(study, columns() | {"split": ["train"] * 20 + ["test"] * 10}, pseudonyms=people(30))
    sizes = {part: table.on(part).rows for part in ("train", "valid", "test")}
    assert sizes["test"] == 10
    assert sizes["train"] + sizes["valid"] == 20
    assert 3 <= sizes["valid"] <= 5
    assert set(table.on("test").pseudonyms) == set(people(30)[20:])


@pytest.mark.parametrize("change, words", [
    ({"event": [None] + ["no"] * 29}, "1 of 30 values are missing"),
    ({"drug": ["", np.nan] + ["new"] * 28}, "2 of 30 values are missing"),
    ({"event": ["maybe"] + ["no"] * 29}, "'maybe' is not a code"),
    ({"drug": np.array([2] + [0] * 29)}, "a level index is from 0 to 1"),
    ({"age": [1.0] * 29}, "'age' has 29 rows where others have 30"),
])  # fmt: skip
def test_columns_that_would_be_misread_are_refused(change, words):
    with pytest.raises(MappingError, match=words):
        StudyTable.from_columns(STUDY, columns() | change)


def test_a_variable_that_is_not_given_is_named():
    with pytest.raises(MappingError, match="'age' is not among the columns"):
        StudyTable.from_columns(STUDY, {name: column for name, column in columns().items() if name != "age"})


def test_parts_outside_the_studys_are_refused():
    with pytest.raises(MappingError, match="parts are numbers from 0 to 2"):
        StudyTable.from_columns(STUDY, columns(), parts=np.full(30, 3))


@given(st.text(max_size=12), st.binary(min_size=16, max_size=32), st.binary(min_size=16, max_size=32))
def test_a_patient_has_another_pseudonym_under_another_sites_key_or_name(patient, key, other):
    own = pseudonym("clinic", patient, key)
    assert 0 <= own < 2**64
    assert own == pseudonym("clinic", patient, key)
    assert own != pseudonym("other", patient, key)
    if key.rstrip(b"\0") != other.rstrip(b"\0"):
        assert own != pseudonym("clinic", patient, other)


def test_what_is_worked_out_for_all_rows_is_kept_once_where_every_part_has_them():
    table = StudyTable.from_columns(make_study(parts={"kind": "all"}), columns())
    everybody, train = table.on("all"), table.on("train")
    assert train.pseudonyms is everybody.pseudonyms
    assert train.arrays("features")[0] is everybody.arrays("features")[0]
    assert not table.stored("fold").any()
    assert len(table.stored("fold")) == table.rows
    fractions = StudyTable.from_columns(
        make_study(parts={"kind": "fractions", "train": 0.5, "valid": 0.25, "test": 0.25}), columns()
    )
    assert fractions.on("train").patients < fractions.on("all").patients
