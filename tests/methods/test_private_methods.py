"""Private methods: right without noise, near it with a large epsilon, and charged for every noisy sum they make."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm

from medfed.data.table import StudyTable
from medfed.engines.what_if import what_if
from medfed.errors import FederationError
from medfed.federation.budget import charged_events, over_all
from medfed.federation.here import Here, PooledView, fit
from medfed.federation.packages import find_method, step_name
from medfed.federation.policy import Policy
from medfed.federation.private import charges_of
from medfed.federation.runner import Runner
from medfed.federation.step import Out, Sum, step
from medfed.methods.private_describe import PrivateDescribe, noisy_mean
from medfed.methods.private_fedavg import noisy_training, noisy_weight
from medfed.methods.private_glm import PrivateGLM, average_of_last
from medfed.privacy.accounting import charged_epsilon
from medfed.study import Study, study_from_dict

sys.path.insert(0, str(Path(__file__).parent.parent / "federation"))
from consortium import fixed_keys, synthetic_columns, synthetic_study, synthetic_tables

METHODS = "medfed:medfed.methods."


def study_with(method: str, settings: dict[str, Any], epsilon: float | None, **changes: Any) -> Study:
    privacy = {"minimum_cell": 1} if epsilon is None else {"epsilon": epsilon}
    return synthetic_study(
        ["a", "b", "c"], 3, method={"use": METHODS + method, "settings": settings}, privacy=privacy, **changes
    )


def run(folder: Path, study: Study, tables: dict[str, StudyTable], budget: float = 100.0) -> tuple[Any, Any]:
    """The method's result, and the store of all sites."""
    method = find_method(study)
    engine, public = what_if(
        folder / "s", tables, study, [method], policy=Policy(budget=budget, minimum_cell=1, minimum_patients=1,
        values_per_patient={"sum": 100.0}), keys=fixed_keys(list(tables)),
    )  # fmt: skip
    runner = Runner(folder / "c", engine, study, durability="process", public_keys=public)
    try:
        return runner.execute(method), engine.doors[0].store
    finally:
        runner.close()


def outcome_study(kind: str, settings: dict[str, Any]) -> tuple[Study, dict[str, StudyTable], np.ndarray, np.ndarray]:
    """A study of a numeric outcome over two sites, and its pooled columns."""
    names = ["a", "b"]
    content = synthetic_study(names, 3).model_dump(mode="json")
    del content["privacy"]["epsilon"], content["privacy"]["delta"]
    content["variables"]["event"] = {
        "meaning": "Outcome", "type": "number", "role": "outcome", "unit": "1", "range": [0, 20],
    }  # fmt: skip
    for index in range(3):
        content["variables"][f"x{index}"]["range"] = [-5, 5]
    content["method"] = {"use": METHODS + "private_glm.PrivateGLM", "settings": {"family": kind, **settings}}
    content["privacy"]["minimum_cell"] = 1
    study = study_from_dict(content)
    rng = np.random.default_rng(3)
    tables, everyone = {}, []
    for index, name in enumerate(names):
        columns = synthetic_columns(400, 3, index)
        eta = 1.0 + 0.3 * columns["x0"] - 0.2 * columns["x1"]
        y = rng.poisson(np.exp(eta)).clip(0, 20) if kind == "poisson" else (8 + 2 * eta + rng.normal(size=400))
        tables[name] = StudyTable.from_columns(study, columns | {"event": y.astype(float)})
        everyone.append(np.column_stack([np.clip(y, 0, 20), *[columns[f"x{i}"].clip(-5, 5) for i in range(3)]]))
    pooled = np.concatenate(everyone)
    return study, tables, sm.add_constant(pooled[:, 1:]), pooled[:, 0]


@pytest.mark.parametrize(("kind", "family"), [("gaussian", sm.families.Gaussian()), ("poisson", sm.families.Poisson())])
def test_without_noise_and_clipping_it_is_the_glm_of_statsmodels(tmp_path: Path, kind: str, family: Any) -> None:
    settings = {"rounds": 4000, "rate": 0.5 if kind == "gaussian" else 0.1, "clipping_norm": 1000.0, "averaged": 0.001}
    study, tables, x, y = outcome_study(kind, {**settings, "momentum": 0.9})
    result = fit(find_method(study), Here(lambda part: PooledView([t.on(part) for t in tables.values()]), study))
    raw = np.asarray(result["coefficients"]) / result["scale"]
    raw[0] = result["coefficients"][0] - (np.asarray(result["coefficients"]) * result["centre"] / result["scale"]).sum()
    expected = sm.GLM(y, x, family).fit(tol=1e-12).params
    assert np.abs(raw - expected).max() < 1e-5


@pytest.mark.parametrize("local_steps", [1, 3])
def test_private_fedavg_is_near_the_model_without_noise(tmp_path: Path, local_steps: int) -> None:
    settings = {"rounds": 8, "local_steps": local_steps}
    bare = study_with("private_fedavg.PrivateFedAvg", settings, None)
    exact, _ = run(tmp_path / "0", bare, synthetic_tables(bare, [300, 250, 200], 3))
    study = study_with("private_fedavg.PrivateFedAvg", settings, 50.0)
    noisy, store = run(tmp_path / "1", study, synthetic_tables(study, [300, 250, 200], 3))
    assert 0 < np.abs(noisy["coefficients"] - exact["coefficients"]).max() < 0.1
    events = over_all(charged_events(store.db, "a"))
    assert sum(events.values()) == 1 + 8 * local_steps, "every local step is an event"
    assert 49.9 < charged_epsilon(events, 1e-5) == store.heads()["a"].spent <= 50.0


def test_a_poisson_sample_of_patients_is_scaled_and_charged_as_one(tmp_path: Path) -> None:
    """Gradients over a fifth of the patients: right on average, and cheaper than the same noise over all of them."""
    settings = {"rounds": 40, "sampling_rate": 0.2}
    bare = study_with("private_glm.PrivateGLM", {"rounds": 40}, None)
    exact, _ = run(tmp_path / "0", bare, synthetic_tables(bare, [600, 500, 400], 3))
    study = study_with("private_glm.PrivateGLM", settings, 20.0)
    noisy, store = run(tmp_path / "1", study, synthetic_tables(study, [600, 500, 400], 3))
    assert 0 < np.abs(noisy["coefficients"] - exact["coefficients"]).max() < 0.15
    events = over_all(charged_events(store.db, "a"))
    (sampled,) = [event for event in events if event.sampling_rate < 1]
    assert (sampled.sampling_rate, events[sampled]) == (0.2, 40)
    assert 19.9 < store.heads()["a"].spent <= 20.0
    assert charged_epsilon({type(sampled)(sampled.noise): 40}, 1e-5) > 2 * 20.0


def test_local_steps_on_one_site_are_the_gradient_steps_of_the_method_without_noise() -> None:
    """Three local steps with one site are three rounds of one step."""
    found = []
    for rounds, local_steps in ((9, 1), (3, 3)):
        study = study_with(
            "private_fedavg.PrivateFedAvg", {"rounds": rounds, "local_steps": local_steps, "averaged": 0.001}, None
        )
        table = synthetic_tables(study, [100, 90, 80], 3)["a"]
        found.append(fit(find_method(study), Here(table.on, study))["coefficients"])
    assert np.abs(found[0] - found[1]).max() < 1e-9


@step(releases={"total": Sum(limit=1e6, metered=True)})
def asks_for_nothing(site: Any) -> Out:
    """Releases what it likes, though it is metered."""
    return Out({"total": float(site.table.rows)})


def _asks_twice(site: Any) -> Out:
    site.noisy_sum(np.ones(site.table.rows), 1.0)
    return Out({"patients": float(site.noisy_sum(np.ones(site.table.rows), 1.0))}, keep={"patients": 1.0})


@pytest.mark.parametrize("function", [asks_for_nothing.function, _asks_twice], ids=["no noise", "twice"])
def test_a_metered_step_makes_the_noisy_sums_that_it_is_charged_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: Any
) -> None:
    study = study_with("private_fedavg.PrivateFedAvg", {"rounds": 2, "local_steps": 2}, 5.0)

    def wrong(site: Any) -> Out:
        out = function(site)
        return Out({"patients": next(iter(out.release.values()))}, keep={"patients": 1.0})

    monkeypatch.setattr(noisy_weight, "function", wrong)
    with pytest.raises(FederationError, match="stopped with an error"):
        run(tmp_path, study, synthetic_tables(study, [100, 90, 80], 3))


def test_metered_noise_is_full_noise_at_every_site(tmp_path: Path) -> None:
    """Noisy weights of 600 sums have the variance of the plan's event."""
    study = study_with("private_fedavg.PrivateFedAvg", {"rounds": 1, "local_steps": 2}, 1.0)
    charge = charges_of(study, find_method(study))[step_name(noisy_weight)]
    from medfed.federation.private import Meter

    view = synthetic_tables(study, [100, 90, 80], 3)["a"].on("train")
    away = np.array([float(Meter(view, charge).noisy_sum(np.ones(100), 1.0)) - 100 for _ in range(600)])
    assert np.sum((away / charge.event.noise) ** 2) == pytest.approx(600, abs=6.5 * np.sqrt(2 * 600))
    assert noisy_training.is_metered


def describe_study(epsilon: float | None) -> Study:
    return study_with("private_describe.PrivateDescribe", {"bins": 8}, epsilon)


def test_counts_means_and_histograms_lie_within_their_noise(tmp_path: Path) -> None:
    exact, _ = run(tmp_path / "0", describe_study(None), synthetic_tables(describe_study(None), [300, 250, 3], 3))
    study = describe_study(4.0)
    noisy, store = run(tmp_path / "1", study, synthetic_tables(study, [300, 250, 3], 3))
    columns = [synthetic_columns(n, 3, i) for i, n in enumerate((300, 250, 3))]
    events = np.concatenate([c["event"] for c in columns])
    assert exact["patients"]["value"] == pytest.approx(553, abs=1e-9)
    assert exact["levels"]["event"]["yes"]["value"] == pytest.approx((events == "yes").sum(), abs=1e-6)
    for index in range(3):
        values = np.concatenate([c[f"x{index}"] for c in columns])
        assert exact["means"][f"x{index}"]["value"] == pytest.approx(values.mean(), abs=1e-8)
        wanted = np.histogram(values, exact["histograms"][f"x{index}"]["edges"])[0]
        assert np.abs(exact["histograms"][f"x{index}"]["counts"] - wanted).max() < 1e-6
    pairs = [(noisy["patients"], exact["patients"]["value"])]
    pairs += [(noisy["levels"]["event"][level], exact["levels"]["event"][level]["value"]) for level in ("no", "yes")]
    pairs += [(noisy["means"][name], exact["means"][name]["value"]) for name in ("x0", "x1", "x2")]
    for found, truth in pairs:
        assert 0 < abs(found["value"] - truth) < 6.5 * found["deviation"]
        assert found["low"] < found["value"] < found["high"]
    for name in ("x0", "x1", "x2"):
        off = noisy["histograms"][name]["counts"] - exact["histograms"][name]["counts"]
        assert 0 < np.abs(off).max() < 6.5 * noisy["histograms"][name]["deviation"]
    assert 3.99 < store.heads()["a"].spent <= 4.0


def test_the_stated_deviation_is_that_of_three_sites_with_full_noise() -> None:
    study = describe_study(4.0)
    charges = charges_of(study, PrivateDescribe(bins=8))
    levels = charges[next(name for name in charges if name.endswith("noisy_levels"))]
    from medfed.federation.private import release_deviation
    from medfed.methods.private_describe import noisy_levels

    assert release_deviation(noisy_levels, "levels", levels) == levels.event.noise


def test_a_mean_of_nobody_is_not_told() -> None:
    assert noisy_mean(3.0, 1.0, 2.0, low=0, high=1)["value"] is None
    found = noisy_mean(1000.0, 500.0, 1.0, low=0.0, high=10.0)
    assert found["value"] == 7.5


def test_a_reply_can_not_be_asked_for_under_an_epsilon(tmp_path: Path) -> None:
    from medfed.evaluation.steps import site_coefficients
    from medfed.federation.federation import Federation

    study = describe_study(1.0)
    federation = Federation(run=type("R", (), {"study": study})(), round=1, sites=("a",))
    with pytest.raises(FederationError, match="single replies"):
        federation.gather(site_coefficients, scale=np.ones(4))


def test_the_models_of_the_last_rounds_are_averaged_and_no_earlier_ones() -> None:
    method = PrivateGLM(rounds=6, averaged=0.5)
    models = [np.array([float(at), -1.0]) for at in range(6)]
    average, averaged = np.zeros(2), 0
    for at, model in enumerate(models):
        state = SimpleNamespace(rounds=at, average=average, averaged=averaged)
        average, averaged = average_of_last(method, state, model)
    assert averaged == 3
    assert average == pytest.approx(np.mean(models[3:], axis=0))
