"""Attacks on a site's gate. Each works when its rule is switched off, and is held when it is on."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import GENEROUS, fixed_keys, synthetic_columns, synthetic_study, synthetic_tables
from medfed_test_plugin import hostile

from medfed.data.table import StudyTable
from medfed.engines.what_if import what_if
from medfed.federation import gate
from medfed.federation.admission import ENOUGH_CALLS, NOT_APPROVED_STEP, PACKAGE_CHANGED, TOO_MANY_MODELS
from medfed.federation.call import Answer, Call, Failure, Own
from medfed.federation.door import OTHER_QUESTION, Doors
from medfed.federation.execution import STEP_RAISED
from medfed.federation.packages import find_method, step_name
from medfed.federation.policy import Policy
from medfed.federation.step import Step
from medfed.methods import newton, standardise
from medfed.methods.treatment_effect import arm_by_outcome
from medfed.study import Study, study_from_dict

PLUGIN = {"packages": {"medfed": {}, "medfed-test-plugin": {}}, "steps": ["medfed:*", "medfed-test-plugin:*"]}
DEFAULT = Policy.model_validate(PLUGIN)
ANY_SLOPE = DEFAULT.model_copy(update={"steepest": 1e12})
OPEN = Policy.model_validate(
    {
        **PLUGIN,
        **dict(minimum_cell=1, minimum_patients=1, values_per_patient=GENEROUS, site_terms_visible=True, steepest=1e12),
    }
)


def ask(doors: Doors, asked: Step, *, study: Study | None = None, part: str = "train", round_: int = 1, ordinal: int = 0,
        own: Own | None = None, roster: tuple[str, ...] | None = None, **inputs: Any) -> Answer | Failure:  # fmt: skip
    """One call to the first site."""
    site = next(iter(doors.sites))
    call = Call(
        study=(study or doors.study).hash, run="main", round=round_, step=step_name(asked), ordinal=ordinal, part=part,
        roster=roster or doors.study.sites.invited, inputs={k: np.asarray(v) for k, v in inputs.items()},
    )  # fmt: skip
    return doors.answer(call, {site: own or Own()})[site]


def doors_for(
    tmp_path: Path, study: Study, asked: list[Step], policy: Policy = DEFAULT, rows: int = 120, **options: Any
) -> Doors:
    tables = synthetic_tables(study, [rows, rows])
    engine, _ = what_if(
        tmp_path,
        tables,
        study,
        [find_method(study)],
        policy=policy,
        steps=asked,
        keys=fixed_keys(list(tables)),
        **options,
    )
    return engine.doors[0]


def reason(answer: Answer | Failure) -> str:
    assert isinstance(answer, Failure), "the gate let it through"
    return answer.reason


@pytest.fixture
def study() -> Study:
    return synthetic_study(["a", "b"])


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (hostile.returns_a_row, gate.PATIENT_ROW),
        (hostile.returns_undeclared, gate.WRONG_SHAPE),
        (hostile.returns_wrong_shape, gate.WRONG_SHAPE),
        (hostile.returns_nan, gate.OVER_LIMIT),
        (hostile.returns_too_large, gate.OVER_LIMIT),
        (hostile.returns_text, gate.WRONG_SHAPE),
        (hostile.reads_another_part, STEP_RAISED),
        (hostile.writes_into_the_table, STEP_RAISED),
        (hostile.counts_of_three, gate.SMALL_COUNT),
        (hostile.not_a_count, gate.SMALL_COUNT),
        (hostile.reply_not_listed, gate.REPLY_NOT_LISTED),
        (hostile.returns_many_values, gate.TOO_MANY_VALUES),
    ],
    ids=lambda value: value.name.rpartition(".")[2] if isinstance(value, Step) else "",
)
def test_a_release_that_breaks_its_declaration_is_held(
    tmp_path: Path, study: Study, asked: Step, expected: str
) -> None:
    doors = doors_for(tmp_path, study, [asked])
    before = doors.store.db.execute("select count(*) from ledger").fetchone()
    assert reason(ask(doors, asked)) == expected
    releases = doors.store.db.execute("select count(*) from ledger where kind='release'").fetchone()
    assert releases == (0,), "nothing is released"
    assert doors.store.db.execute("select count(*) from ledger").fetchone()[0] == before[0] + 1, (
        "the refusal is counted"
    )


def test_a_row_leaves_where_the_watch_is_switched_off(tmp_path: Path, study: Study) -> None:
    """The attack is real: with a minimum cell of 1 nobody is protected and the row comes out."""
    study = synthetic_study(["a", "b"], privacy={"sums": "strongest", "minimum_cell": 1})
    doors = doors_for(tmp_path, study, [hostile.returns_a_row], OPEN)
    assert isinstance(ask(doors, hostile.returns_a_row), Answer)


def test_a_steps_own_error_text_stays_at_the_site(tmp_path: Path, study: Study) -> None:
    doors = doors_for(tmp_path, study, [hostile.raises_with_a_record])
    answer = ask(doors, hostile.raises_with_a_record)
    assert isinstance(answer, Failure)
    assert answer.kind == "failed"
    assert "Smith" not in answer.reason


def newton_inputs(study: Study, beta: Any) -> dict[str, Any]:
    p = len(study.design.columns)
    return {"beta": np.broadcast_to(np.asarray(beta, float), (p,)), "centre": np.zeros(p), "scale": np.ones(p)}


def test_an_extreme_input_is_refused_by_the_steps_limit(tmp_path: Path, study: Study) -> None:
    doors = doors_for(tmp_path, study, [])
    assert "limit" in reason(ask(doors, newton.logistic_terms, **newton_inputs(study, 1e6)))
    assert "limit" in reason(ask(doors, newton.logistic_terms, **newton_inputs(study, np.nan)))


def test_a_site_may_set_a_stricter_input_limit(tmp_path: Path, study: Study) -> None:
    doors = doors_for(tmp_path, study, [], Policy(input_limits={"beta": 0.5}))
    assert "limit of 0.5" in reason(ask(doors, newton.logistic_terms, **newton_inputs(study, 0.8)))
    assert isinstance(ask(doors, newton.logistic_terms, ordinal=1, **newton_inputs(study, 0.3)), Answer)


def isolating(study: Study, doors: Doors) -> dict[str, Any]:
    """Inputs within every limit whose weights leave little but the patient with the largest x0."""
    (features,) = next(iter(doors.sites.values())).table.on("train").arrays("features")
    p = len(study.design.columns)
    centre = np.zeros(p)
    centre[1] = features[:, 1].max()
    beta = np.zeros(p)
    beta[1] = 20.0
    return {"beta": beta, "centre": centre, "scale": np.ones(p)}


def test_a_model_as_steep_as_a_threshold_is_refused_from_public_numbers(tmp_path: Path, study: Study) -> None:
    doors = doors_for(tmp_path, study, [])
    assert "so steep" in reason(ask(doors, newton.logistic_terms, **isolating(study, doors)))
    # A site that has passed calls of this kind looks at what each brings all the same.
    harmless = {
        name: np.zeros_like(value) if name == "beta" else value for name, value in isolating(study, doors).items()
    }
    for ordinal in range(4):
        assert isinstance(ask(doors, newton.logistic_terms, ordinal=1 + ordinal, **harmless), Answer)
    assert "so steep" in reason(ask(doors, newton.logistic_terms, ordinal=9, **isolating(study, doors)))
    tiny = newton_inputs(study, 0.0) | {"scale": np.array([1.0, 1e-308, 1, 1, 1])}
    assert "blows features up" in reason(ask(doors, newton.logistic_terms, **tiny))
    assert doors.store.db.execute("select count(*) from ledger where kind<>'approval'").fetchone()[0] == 4


def test_a_call_that_lacks_an_input_is_refused_also_after_others_have_passed(tmp_path: Path, study: Study) -> None:
    doors = doors_for(tmp_path, study, [])
    whole = newton_inputs(study, 0.0)
    for ordinal in range(4):
        assert isinstance(ask(doors, newton.logistic_terms, ordinal=ordinal, **whole), Answer)
    for ordinal, name in enumerate(whole, start=4):
        less = {other: value for other, value in whole.items() if other != name}
        assert f"lacks the input '{name}'" in reason(ask(doors, newton.logistic_terms, ordinal=ordinal, **less))


def test_a_question_that_isolates_a_patient_is_held(tmp_path: Path, study: Study) -> None:
    doors = doors_for(tmp_path, study, [], ANY_SLOPE)
    assert reason(ask(doors, newton.logistic_terms, **isolating(study, doors))) == gate.CONCENTRATED


def test_without_the_rule_the_isolating_question_gives_a_patients_features(tmp_path: Path) -> None:
    study = synthetic_study(["a", "b"], privacy={"sums": "strongest", "minimum_cell": 1})
    doors = doors_for(tmp_path, study, [], OPEN)
    answer = ask(doors, newton.logistic_terms, **isolating(study, doors))
    assert isinstance(answer, Answer)
    from medfed.federation.ring import decode

    spec = newton.logistic_terms.releases["information"]
    limbs = spec.limbs(rows_at_most=study.rows_at_most, sites_at_most=study.sites_at_most)
    information = newton.symmetric(decode(answer.values["information"], limbs), len(study.design.columns))
    (features,) = next(iter(doors.sites.values())).table.on("train").arrays("features")
    victim = features[features[:, 1].argmax()]
    stolen = information[0] / information[0, 0]
    assert np.allclose(stolen[2:], victim[2:], atol=0.05), "the first row of the information is the patient"


def small_effect_study(**changes: Any) -> Study:
    arm = {
        "meaning": "Arm",
        "type": "code",
        "role": "arm",
        "codes": {"control": "c", "treated": "t"},
        "reference": "control",
    }
    base = synthetic_study(["a", "b"])
    declared = base.model_dump(mode="json")
    declared["variables"] = {**declared["variables"], "arm": arm}
    declared["task"] = {"kind": "treatment_effect", "coding": "reference"}
    declared["method"] = {"use": "medfed:medfed.methods.treatment_effect.TreatmentEffect", "settings": {}}
    return study_from_dict({**declared, **changes})


def effect_table(study: Study, cells: list[list[int]]) -> StudyTable:
    """cells[arm][event]: patients."""
    arm = [("control", "treated")[i] for i in (0, 1) for j in (0, 1) for _ in range(cells[i][j])]
    event = [("no", "yes")[j] for i in (0, 1) for j in (0, 1) for _ in range(cells[i][j])]
    columns = synthetic_columns(len(arm), 4, 5) | {"arm": np.array(arm), "event": np.array(event)}
    return StudyTable.from_columns(study, columns)


@pytest.mark.parametrize(
    ("cells", "held"),
    [
        ([[62, 25], [66, 11]], False),
        ([[62, 25], [66, 9]], True),
        ([[11, 1], [9, 1]], True),
        ([[62, 0], [66, 30]], True),
    ],
)
def test_arm_by_outcome_cells_decide_whether_a_site_contributes(
    tmp_path: Path, cells: list[list[int]], held: bool
) -> None:
    study = small_effect_study()
    tables = {"a": effect_table(study, cells), "b": effect_table(study, [[50, 50], [50, 50]])}
    engine, _ = what_if(tmp_path, tables, study, [find_method(study)], keys=fixed_keys(["a", "b"]))
    for asked in (arm_by_outcome, standardise.moments):
        answer = ask(engine.doors[0], asked)
        assert isinstance(answer, Failure) is held
        if held:
            assert reason(answer) in (gate.SMALL_CELL, gate.FEW_PATIENTS)


def test_products_of_binary_covariates_are_counts(tmp_path: Path) -> None:
    """A covariate held by 5 patients would stand in the information matrix at beta = 0."""
    base = synthetic_study(["a", "b"]).model_dump(mode="json")
    base["variables"]["rare"] = {
        "meaning": "Rare",
        "type": "code",
        "role": "covariate",
        "codes": {"no": "n", "yes": "y"},
    }
    study = study_from_dict(base)
    for carriers, held in ((5, True), (60, False)):
        columns = synthetic_columns(200, 4, 3) | {"rare": np.where(np.arange(200) % 200 < carriers, "yes", "no")}
        table = StudyTable.from_columns(study, columns)
        engine, _ = what_if(tmp_path / str(carriers), {"a": table, "b": table}, study, [find_method(study)])
        answer = ask(engine.doors[0], newton.logistic_terms, **newton_inputs(study, 0.0))
        assert (isinstance(answer, Failure) and answer.reason == gate.SMALL_CELL) is held


def test_a_count_of_three_by_subtraction_of_two_cohorts_is_refused(tmp_path: Path) -> None:
    """Two approved studies whose cohorts differ by 3 patients: the second is refused, whichever comes second."""
    everyone = synthetic_study(["a", "b"])
    fewer = synthetic_study(["a", "b"], name="fewer")
    columns = synthetic_columns(150, 4, 3)
    pseudonyms = np.arange(150, dtype=np.uint64) + np.uint64(10)
    keys = fixed_keys(["a", "b"])
    policies = {"on": Policy(), "off": OPEN}
    for rule, policy in policies.items():
        answers = []
        for study, rows in ((everyone, 150), (fewer, 147)):
            if rule == "off":
                study = with_minimum_cell_of_one(study)
            table = StudyTable.from_columns(
                study, {k: v[:rows] for k, v in columns.items()}, pseudonyms=pseudonyms[:rows]
            )
            engine, _ = what_if(
                tmp_path / rule, {"a": table, "b": table}, study, [find_method(study)], policy=policy, keys=keys
            )
            answers.append(ask(engine.doors[0], standardise.moments))
            engine.doors[0].store.db.close()
        assert isinstance(answers[0], Answer)
        if rule == "on":
            assert reason(answers[1]) == gate.SMALL_DIFFERENCE
        else:
            known = [a.values["known"] for a in answers]
            assert (np.abs(known[0] - known[1]).ravel() > 0).any(), "switched off, the difference shows the three"


def with_minimum_cell_of_one(study: Study) -> Study:
    return study_from_dict({**study.model_dump(mode="json"), "privacy": {"sums": "strongest", "minimum_cell": 1}})


def test_a_cohort_that_differs_by_many_is_answered_unless_their_outcomes_are_few(tmp_path: Path) -> None:
    columns = synthetic_columns(150, 4, 3)
    order = np.argsort(columns["event"], kind="stable")
    columns = {k: v[order] for k, v in columns.items()}
    pseudonyms = np.arange(150, dtype=np.uint64) + np.uint64(10)
    base = synthetic_study(["a", "b"])
    table = StudyTable.from_columns(base, columns, pseudonyms=pseudonyms)
    whole, view = table.on("all"), table.on("all")
    without_forty = pseudonyms[40:]
    assert columns["event"][:40].tolist() == ["no"] * 40
    assert gate.judge_rows(whole, view, base, Policy(), "plain", [without_forty]) == gate.SMALL_DIFFERENCE
    mixed = np.sort(np.concatenate([pseudonyms[:30], pseudonyms[-30:]]))
    rest = np.setdiff1d(pseudonyms, mixed)
    assert gate.judge_rows(whole, view, base, Policy(), "plain", [rest]) is None


def test_a_changed_study_is_refused(tmp_path: Path, study: Study) -> None:
    doors = doors_for(tmp_path, study, [])
    changed = synthetic_study(["a", "b"], seed=8)
    assert "hash differs" in reason(ask(doors, standardise.moments, study=changed))


def test_a_step_that_was_not_approved_is_refused(tmp_path: Path, study: Study) -> None:
    doors = doors_for(tmp_path, study, [])
    assert reason(ask(doors, hostile.returns_nan)) == NOT_APPROVED_STEP


def test_a_part_that_a_step_does_not_read_is_refused(tmp_path: Path, study: Study) -> None:
    doors = doors_for(tmp_path, study, [])
    assert "part" in reason(ask(doors, standardise.moments, part="test"))


def test_another_question_under_the_same_key_is_refused_and_the_same_gives_the_same_bytes(
    tmp_path: Path, study: Study
) -> None:
    doors = doors_for(tmp_path, study, [])
    first = ask(doors, newton.logistic_terms, **newton_inputs(study, 0.0))
    again = ask(doors, newton.logistic_terms, **newton_inputs(study, 0.0))
    assert isinstance(first, Answer)
    assert isinstance(again, Answer)
    assert first.data == again.data
    assert doors.store.db.execute("select count(*) from ledger where kind='release'").fetchone()[0] == 1
    assert reason(ask(doors, newton.logistic_terms, **newton_inputs(study, 0.1))) == OTHER_QUESTION


def test_an_approval_ends_on_its_day_and_a_revocation_counts_at_once(tmp_path: Path, study: Study) -> None:
    from medfed.federation.approval import revoke
    from medfed.federation.ledger import open_store

    day = [datetime(2026, 1, 1, tzinfo=UTC)]
    doors = doors_for(tmp_path, study, [], clock=lambda: day[0])
    assert isinstance(ask(doors, standardise.moments), Answer)
    day[0] = datetime(9999, 12, 31, tzinfo=UTC)
    assert isinstance(ask(doors, standardise.moments, ordinal=1), Answer)
    other = open_store(tmp_path / "sites.db", "process")
    revoke(other, site="a", study_hash=study.hash, key=doors.sites["a"].key, at="2026-01-02")
    assert "withdrawn" in reason(ask(doors, standardise.moments, ordinal=2))


def test_another_table_than_the_approved_one_is_refused(tmp_path: Path, study: Study) -> None:
    doors = doors_for(tmp_path, study, [])
    other = synthetic_tables(study, [120, 120], seed=99)["a"]
    doors.sites["a"] = dataclasses.replace(doors.sites["a"], table=other)
    assert "version that was approved" in reason(ask(doors, standardise.moments))


def test_a_sum_of_one_site_needs_its_policys_word(tmp_path: Path, study: Study) -> None:
    doors = doors_for(tmp_path, study, [])
    assert "alone" in reason(ask(doors, standardise.moments, roster=("a",)))
    open_doors = doors_for(tmp_path / "open", study, [], Policy(site_terms_visible=True))
    assert isinstance(ask(open_doors, standardise.moments, roster=("a",)), Answer)


def test_a_package_whose_files_changed_is_refused(
    tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    import medfed.federation.admission as door

    doors = doors_for(tmp_path, study, [])
    real = door.installed_package
    monkeypatch.setattr(door, "installed_package", lambda d, n: dataclasses.replace(real(d, n), sha256="0" * 64))
    assert reason(ask(doors, standardise.moments)) == PACKAGE_CHANGED


def test_test_rows_are_opened_for_the_named_models_only(tmp_path: Path) -> None:
    from medfed.evaluation.steps import overall

    study = synthetic_study(["a", "b"], parts={"kind": "folds", "folds": 2}, evaluation={"design": "cross_validation"})
    doors = doors_for(tmp_path, study, [overall], rows=200)
    p = len(study.design.columns)
    answers = [
        ask(
            doors,
            overall,
            part="test",
            ordinal=k,
            models=np.full((2, p), k / 100),
            centres=np.zeros((2, p)),
            scales=np.ones((2, p)),
        )
        for k in range(study.test_models + 2)
    ]
    assert [isinstance(answer, Answer) for answer in answers] == [True] * study.test_models + [False] * 2
    assert reason(answers[-1]) == TOO_MANY_MODELS


def test_inputs_of_another_shape_are_refused(tmp_path: Path, study: Study) -> None:
    doors = doors_for(tmp_path, study, [])
    assert "shape" in reason(ask(doors, newton.logistic_terms, beta=np.zeros(2), centre=np.zeros(2), scale=np.ones(2)))
    assert "dimensions" in reason(
        ask(doors, newton.logistic_terms, beta=np.zeros((2, 2)), centre=np.zeros(5), scale=np.ones(5))
    )
    inputs = newton_inputs(study, 0.0)
    assert "does not declare" in reason(ask(doors, newton.logistic_terms, extra=np.zeros(1), **inputs))
    del inputs["scale"]
    assert "lacks the input" in reason(ask(doors, newton.logistic_terms, **inputs))


def test_a_call_that_claims_secure_sums_does_not_switch_the_counts_rule_off(tmp_path: Path) -> None:
    study = small_effect_study()
    tables = {"a": effect_table(study, [[11, 1], [9, 1]]), "b": effect_table(study, [[50, 50], [50, 50]])}
    engine, _ = what_if(tmp_path, tables, study, [find_method(study)], keys=fixed_keys(["a", "b"]))
    call = Call(study.hash, "main", 1, step_name(arm_by_outcome), 0, "train", ("a", "b"), {}, protection="secure")
    assert "sums in plain" in reason(engine.doors[0].answer(call, {"a": Own()})["a"])
    for phase in ("seal", "open"):
        answer = engine.doors[0].answer(dataclasses.replace(call, protection="plain", phase=phase), {"a": Own()})["a"]
        assert "sums in plain" in reason(answer)


@pytest.mark.parametrize("run", ["", "a b", "run/x/fit", "run/1", "../x", "a%", "run/1/fit/"])
def test_a_run_path_that_medfed_does_not_write_is_refused(tmp_path: Path, study: Study, run: str) -> None:
    doors = doors_for(tmp_path, study, [])
    call = Call(study.hash, run, 1, step_name(standardise.moments), 0, "train", ("a", "b"), {})
    assert "as medfed writes them" in reason(doors.answer(call, {"a": Own()})["a"])


def test_a_site_answers_no_more_calls_than_it_approved(tmp_path: Path, study: Study) -> None:
    doors = doors_for(tmp_path, study, [], most_calls=3)
    answers = [ask(doors, standardise.moments, ordinal=k) for k in range(5)]
    assert [isinstance(answer, Answer) for answer in answers] == [True] * 3 + [False] * 2
    assert reason(answers[-1]) == ENOUGH_CALLS
    doors.store.db.close()
    again = doors_for(tmp_path, study, [], most_calls=3)
    assert reason(ask(again, standardise.moments, ordinal=9)) == ENOUGH_CALLS, "counted from the ledger after a restart"
    assert isinstance(ask(again, standardise.moments, ordinal=0), Answer), "what is sealed is sent again"


def test_local_training_from_a_model_that_isolates_a_patient_is_held(tmp_path: Path) -> None:
    from medfed.methods.fedavg import local_training

    study = synthetic_study(
        ["a", "b"], method={"use": "medfed:medfed.methods.fedavg.FedAvg", "settings": {"batch": 200}}
    )
    doors = doors_for(tmp_path, study, [], ANY_SLOPE)
    inputs = isolating(study, doors)
    model = inputs.pop("beta")
    assert reason(ask(doors, local_training, model=model, **inputs)) == gate.CONCENTRATED
    assert isinstance(ask(doors, local_training, ordinal=1, model=np.zeros_like(model), **inputs), Answer)


def test_a_calibration_line_as_steep_as_a_threshold_is_held(tmp_path: Path) -> None:
    from medfed.evaluation.steps import calibration_terms

    study = synthetic_study(["a", "b"], parts={"kind": "folds", "folds": 2}, evaluation={"design": "cross_validation"})
    doors = doors_for(tmp_path, study, [calibration_terms], ANY_SLOPE, rows=200)
    p = len(study.design.columns)
    model = np.tile(np.concatenate([[0.0], np.ones(p - 1)]), (2, 1))
    inputs = {"models": model, "centres": np.zeros((2, p)), "scales": np.ones((2, p)), "part": "test"}
    assert reason(ask(doors, calibration_terms, line=np.array([-20.0, 4.0]), **inputs)) == gate.CONCENTRATED
    assert isinstance(ask(doors, calibration_terms, ordinal=1, line=np.array([0.0, 1.0]), **inputs), Answer)


def test_a_calibration_line_makes_a_model_no_steeper_than_a_site_allows(tmp_path: Path) -> None:
    """A model that just passes, twenty times over, would be a threshold."""
    from medfed.methods.recalibration import line_terms

    study = synthetic_study(["a", "b"])
    doors = doors_for(tmp_path, study, [line_terms], rows=200)
    p = len(study.design.columns)
    inputs = {"model": np.concatenate([[0.0], np.full(p - 1, 2.4)]), "centre": np.zeros(p), "scale": np.ones(p)}
    assert isinstance(ask(doors, line_terms, line=np.array([0.0, 2.0]), **inputs), Answer)
    assert "so steep" in reason(ask(doors, line_terms, ordinal=1, line=np.array([0.0, 3.0]), **inputs))
    assert "so steep" in reason(ask(doors, line_terms, ordinal=2, line=np.array([0.0, -20.0]), **inputs))
