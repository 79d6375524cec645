"""Batched twins: equal to the step on ragged sites, missing values included, to 1e-12 of the largest entry."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.data.table import StudyTable
from medfed.engines.what_if import what_if
from medfed.federation.call import Call
from medfed.federation.packages import find_method, step_name
from medfed.federation.runner import Runner
from medfed.federation.step import Step, shape_of
from medfed.methods.fedavg import FedAvg, local_training
from medfed.methods.gradients import GradientAggregation, full_gradient
from medfed.methods.newton import Newton, logistic_terms
from medfed.methods.scaffold import Scaffold, corrected_training

sys.path.insert(0, str(Path(__file__).parent.parent / "federation"))
from consortium import fixed_keys, synthetic_columns, synthetic_study, synthetic_tables

TWINS = [
    (logistic_terms, "newton.Newton", {}),
    (local_training, "fedavg.FedAvg", {"batch": 7, "local_epochs": 2, "l2": 0.01}),
    (corrected_training, "scaffold.Scaffold", {"batch": 7, "local_epochs": 2}),
    (full_gradient, "gradients.GradientAggregation", {}),
]


def test_every_twin_is_in_this_list() -> None:
    declared = {s for method in (Newton(), FedAvg, Scaffold, GradientAggregation) for s in method.steps if s.twin}
    assert declared == {step for step, _, _ in TWINS}


@pytest.mark.parametrize(
    ("asked", "method", "chosen"), TWINS, ids=lambda v: v.name.rpartition(".")[2] if isinstance(v, Step) else ""
)
@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.integers(12, 60), min_size=2, max_size=6), seed=st.integers(0, 10_000), missing=st.booleans())
def test_a_twin_equals_its_step(
    tmp_path_factory, asked: Step, method: str, chosen: dict, rows: list[int], seed: int, missing: bool
) -> None:
    names = [f"s{i}" for i in range(len(rows))]
    study = synthetic_study(names, method={"use": f"medfed:medfed.methods.{method}", "settings": chosen})
    rng = np.random.default_rng(seed)
    tables = {}
    for index, (name, count) in enumerate(zip(names, rows, strict=True)):
        columns = synthetic_columns(count, 4, seed + index)
        if missing:
            columns["x1"] = np.where(rng.random(count) < 0.2, np.nan, columns["x1"])
        tables[name] = StudyTable.from_columns(study, columns)
    found = find_method(study)
    engine, _ = what_if(tmp_path_factory.mktemp("twin"), tables, study, [found], keys=fixed_keys(names))
    door = engine.doors[0]
    p = len(study.design.columns)
    inputs = {name: rng.normal(size=p) * 0.3 for name in asked.takes}
    inputs |= {"centre": rng.normal(size=p) * 0.1, "scale": 1 + rng.random(p)}
    inputs["centre"][0], inputs["scale"][0] = 0, 1
    call = Call(study.hash, "main", 3, step_name(asked), 0, "train", tuple(names), inputs)
    sizes = dict(study.sizes)
    kept = None
    if asked.keeps:
        kept = [{k: rng.normal(size=shape_of(v, sizes)) for k, v in asked.keeps.shapes.items()} for _ in names]
    stacked = door.execution.run_stacked(call, asked, sizes, names, kept)
    good, release, keep, _, rests_on, failed = door.execution.run_each(
        call, asked, sizes, names, dict.fromkeys(names, NO_OWN), kept
    )
    assert good == names
    assert not failed
    for name, one_by_one in release.items():
        assert np.abs(np.asarray(stacked.release[name]) - one_by_one).max() <= 1e-12 * max(np.abs(one_by_one).max(), 1)
    if keep is not None:
        for name in asked.keeps.shapes:
            alone = np.stack([own[name] for own in keep])
            assert np.abs(stacked.keep[name] - alone).max() <= 1e-12 * max(np.abs(alone).max(), 1)
    if rests_on.effective is not None:
        assert np.allclose(stacked.effective_patients, rests_on.effective[:, 0, 0], rtol=1e-9)
    if rests_on.ordinary is not None:
        assert np.allclose(stacked.ordinary_patients, rests_on.ordinary, rtol=1e-9)


class NO_OWN:  # noqa: N801
    each: dict = {}


@pytest.mark.parametrize("method", ["newton.Newton", "fedavg.FedAvg", "scaffold.Scaffold"])
def test_a_run_with_twins_gives_the_same_model(tmp_path: Path, method: str) -> None:
    names = ["a", "b", "c"]
    chosen = {} if method.startswith("newton") else {"rounds": 15, "participation": 0.7}
    study = synthetic_study(names, method={"use": f"medfed:medfed.methods.{method}", "settings": chosen})
    results = []
    for twins in (True, False):
        engine, public = what_if(
            tmp_path / str(twins) / "s",
            synthetic_tables(study, [80, 50, 33]),
            study,
            [find_method(study)],
            twins=twins,
            keys=fixed_keys(names),
        )
        runner = Runner(tmp_path / str(twins) / "c", engine, study, durability="process", public_keys=public)
        results.append(runner.execute(find_method(study))["coefficients"])
        runner.close()
    assert np.abs(results[0] - results[1]).max() < 1e-10
