"""medfed privacy plan and budget, and a private study from the command line: planned, approved, run, spent, shown."""

import json
import shutil
import sqlite3
import xml.etree.ElementTree as ElementTree
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from consortium_folder import SITES, STUDY, approve_all, done, make_sites, medfed, refused

from medfed.federation.store import RunnerStore
from medfed.methods.private_result import PrivateFit
from medfed.privacy.accounting import Event, charged_epsilon
from medfed.study import load_study

PRIVATE = (
    STUDY.replace("newton.Newton", "private_glm.PrivateGLM")
    .replace("privacy: {sums: plain}\n", "")
    .replace("parts: {kind: folds, folds: 3}", "parts: {kind: fractions, train: 0.7, test: 0.3}")
    .replace(
        "evaluation: {design: cross_validation, compare: [local, federated, pooled]}",
        "privacy: {epsilon: 8}\nevaluation: {design: holdout}",
    )
    .replace('PrivateGLM"}', 'PrivateGLM", settings: {rounds: 10}}')
)


def set_budget(folder: Path, budget: float) -> None:
    for name in SITES:
        path = folder / "sites" / name / "policy.yaml"
        path.write_text(path.read_text().replace("budget: 0 ", f"budget: {budget} "))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consortium after one private run."""
    folder = tmp_path_factory.mktemp("private")
    study = make_sites(folder)
    study.write_text(PRIVATE, encoding="utf-8")
    set_budget(folder, 10)
    approve_all(folder, study)
    done("run", study, "-c", folder, "--run", "first", "--durability", "process", "--json")
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_plan_halves_its_error_where_epsilon_is_large_and_patients_are_many(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(PRIVATE, encoding="utf-8")
    found = done("privacy", "plan", tmp_path, "--epsilon", "1", "--epsilon", "4", "--patients", "500", "--json").json
    errors = {(e["epsilon"], e["sentence"].partition(" ")[0]): e for e in found["errors"]}
    assert errors[4.0, "a"]["plain"] < errors[1.0, "a"]["plain"] / 2
    assert errors[1.0, "a"]["secure"] == pytest.approx(errors[1.0, "a"]["plain"] / 3**0.5), "shares of 3 sites"
    doubled = done("privacy", "plan", tmp_path, "--epsilon", "1", "--patients", "1000", "--json").json
    assert found["shares"] == 3
    assert doubled["errors"][1]["plain"] == pytest.approx(errors[1.0, "a"]["plain"] / 2)
    events: dict[Event, int] = {}
    for release in found["releases"]:
        if release["epsilon"] == 1.0:
            event = Event(release["noise"])
            events[event] = events.get(event, 0) + release["calls"]
    assert 0.999 < charged_epsilon(events, found["delta"]) <= 1.0


def test_a_plan_is_read_in_both_languages_and_needs_no_epsilon_in_the_study(tmp_path: Path) -> None:
    without = PRIVATE.replace("privacy: {epsilon: 8}\n", "")
    (tmp_path / "study.yaml").write_text(without, encoding="utf-8")
    assert "Expected error (SD)" in done("privacy", "plan", tmp_path).out
    assert "预期误差" in done("privacy", "plan", tmp_path, "--lang", "zh").out


def test_a_plan_of_a_method_without_bounds_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.replace("cross_validation, compare: [local, federated, pooled]", "none"))
    said = refused("privacy", "plan", tmp_path, "--epsilon", "1")
    assert "newton.logistic_terms (score, information" in said
    assert "PrivateGLM" in said


def test_a_plan_does_not_speak_of_an_epsilon_that_the_study_lacks(tmp_path: Path) -> None:
    """The options name it; in the file there is none to remove."""
    plain = STUDY.replace("{design: cross_validation, compare: [local, federated, pooled]}", "{design: none}")
    for text in (plain, plain.replace("privacy: {sums: plain}", "privacy: {sums: plain}\nprotects: none")):
        (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
        said = refused("privacy", "plan", tmp_path, "--epsilon", "1")
        assert "with epsilon 1" in said
        assert "remove" not in said
        assert "has an epsilon" not in said


def test_a_plan_says_where_there_is_no_secure_total(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(PRIVATE, encoding="utf-8")
    found = done("privacy", "plan", tmp_path, "--epsilon", "1", "--sites", "2", "--json").json
    assert (
        {release["secure"] for release in found["releases"]} == {error["secure"] for error in found["errors"]} == {None}
    )
    assert "With 2 there is no secure total" in done("privacy", "plan", tmp_path, "--epsilon", "1", "--sites", "2").out
    plain = PRIVATE.replace("{epsilon: 8}", "{epsilon: 8, sums: plain}")
    (tmp_path / "study.yaml").write_text(plain, encoding="utf-8")
    assert "Secure sums: none in this study" in done("privacy", "plan", tmp_path, "--epsilon", "1").out
    assert "本研究没有" in done("privacy", "plan", tmp_path, "--epsilon", "1", "--lang", "zh").out


def test_several_local_steps_have_the_full_noise_at_each_site_under_secure_sums_too(tmp_path: Path) -> None:
    local = PRIVATE.replace("private_glm.PrivateGLM", "private_fedavg.PrivateFedAvg").replace(
        "rounds: 10", "rounds: 3, local_steps: 2"
    )
    (tmp_path / "study.yaml").write_text(local, encoding="utf-8")
    found = done("privacy", "plan", tmp_path, "--epsilon", "8", "--json").json
    training = {release["step"]: release for release in found["releases"]}
    for step, calls in (("noisy_weight", 1), ("noisy_training", 6)):
        assert training[step]["calls"] == calls
        assert training[step]["secure"] == training[step]["plain"] == pytest.approx(training[step]["noise"] * 3**0.5)
    assert training["scored_counts"]["secure"] == pytest.approx(training["scored_counts"]["noise"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--epsilon", "0"), "--epsilon is above 0 and at most 50, not 0"),
        (("--epsilon", "1", "--epsilon", "-2"), "--epsilon is above 0 and at most 50, not -2"),
        (("--epsilon", "nan"), "--epsilon is above 0 and at most 50, not nan"),
        (("--epsilon", "inf"), "--epsilon is above 0 and at most 50, not inf"),
        (("--delta", "0"), "--delta is above 0 and at most 0.01, not 0; 1e-5 is usual"),
        (("--delta", "1"), "--delta is above 0 and at most 0.01, not 1; 1e-5 is usual"),
        (("--patients", "0"), "--patients is at least 1, not 0"),
        (("--sites", "0"), "--sites is from 1 to 3, the number of sites that the study invites, not 0"),
        (("--sites", "4"), "--sites is from 1 to 3, the number of sites that the study invites, not 4"),
        (("--epsilon", "0.0001"), "would carry noise of more than 1600 times a patient's bound"),
        (("--lang", "fr"), "there is no language 'fr'"),
    ],
)
def test_an_option_that_can_not_be_meant_is_one_sentence(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    (tmp_path / "study.yaml").write_text(PRIVATE, encoding="utf-8")
    shown = refused("privacy", "plan", tmp_path, *options)
    assert said in " ".join(shown.split())
    assert len(shown.strip().split("\n")) == 1 or "epsilon 0.0001" in shown


def test_a_plan_of_an_evaluation_that_judges_many_times_names_the_file_and_the_key(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        PRIVATE.replace("design: holdout", "design: cross_validation"), encoding="utf-8"
    )
    shown = refused("privacy", "plan", tmp_path / "study.yaml", "--epsilon", "1")
    assert "study.yaml" in shown
    assert "evaluation.design: cross_validation fits and judges many times" in shown


def test_a_plot_that_can_not_be_written_is_one_sentence(folder: Path) -> None:
    shown = refused("privacy", "budget", folder / "sites" / "north", "--plot", folder)
    assert "can't be written (Is a directory); name a file" in " ".join(shown.split())
    shown = refused("privacy", "budget", folder / "sites" / "north", "--plot", folder / "budget.png")
    assert "ends in .svg" in " ".join(shown.split())
    assert not (folder / "budget.png").exists()


def test_the_preview_shows_noise_and_holds_back_what_the_budget_can_not_pay(tmp_path: Path) -> None:
    study = make_sites(tmp_path, ["north"])
    study.write_text(PRIVATE, encoding="utf-8")
    site = tmp_path / "sites" / "north"
    done("site", "build", site, study)
    shown = done("site", "preview", site, study).out
    assert "Noise (SD)" in shown
    assert "more epsilon than the site has left" in " ".join(shown.split())
    set_budget_of = site / "policy.yaml"
    set_budget_of.write_text(set_budget_of.read_text().replace("budget: 0 ", "budget: 9 "))
    found = done("site", "preview", site, study, "--json").json
    assert all(step["held_back"] is None for step in found["steps"])
    assert all(release["noise"] > 0 for step in found["steps"] for release in step["releases"])


def test_an_officer_hears_before_approving_after_how_many_answers_a_budget_ends(folder: Path) -> None:
    """What preview and approval foretell is what the ledger then holds: answers up to the one that is refused."""
    study, site = folder / "study.yaml", folder / "sites" / "north"
    study.write_text(PRIVATE.replace("name: three-sites", "name: another"), encoding="utf-8")
    for name in SITES:
        policy = folder / "sites" / name / "policy.yaml"
        policy.write_text(policy.read_text().replace("budget: 10 ", "budget: 10.2 "))
        done("site", "build", folder / "sites" / name, study)
    expected = done("site", "preview", site, study, "--json").json["outlook"]
    assert 0 < expected["answered"] < expected["answers"] == 12
    assert expected["after"] > expected["budget"] == 10.2
    assert not expected["by_study"]
    said = f"it would be refused after {expected['answered']} of its 12 noisy answers"
    for words in (("preview",), ("approve",)):
        shown = " ".join(done("site", *words, site, study).out.split())
        assert (
            f"A run spends epsilon 8 at delta 1e-05. The site has spent {expected['spent']:.4g} of its budget of 10.2"
            in shown
        )
        assert f"a further study may spend up to about epsilon {expected['left']:.3g}" in shown
        assert said in shown
        assert "Raise `budget` in policy.yaml" in shown
    assert "整次运行" in done("site", "preview", site, study, "--lang", "zh").out
    for name in SITES:
        given = done("site", "approve", folder / "sites" / name, study, "--json").json
        assert given["cost"]["answered"] == expected["answered"]
    shown = medfed("run", study, "-c", folder, "--run", "another", "--durability", "process", "--json")
    assert shown.code == 2
    assert "so the study as a whole does not fit; the site raises `budget`" in " ".join(shown.err.split())
    studies = done("privacy", "budget", site, "--json").json["studies"]
    assert [row["sums"] for row in studies if row["name"] == "another"] == [expected["answered"]]


def test_a_second_run_needs_a_larger_budget_of_the_study_and_is_told_so(folder: Path) -> None:
    study, site = folder / "study.yaml", folder / "sites" / "north"
    policy = site / "policy.yaml"
    policy.write_text(policy.read_text().replace("budget: 10 ", "budget: 30 "))
    shown = " ".join(done("site", "preview", site, study).out.split())
    assert "this study may spend epsilon 8 here" in shown
    assert "refused after 0 of its 12 noisy answers" in shown
    assert "For a further run approve with a larger --budget" in shown
    assert "Would be held back" not in shown
    assert "Warning" not in done("site", "approve", site, study, "--budget", "14").out


def test_an_approval_refuses_a_study_that_can_not_be_charged(tmp_path: Path) -> None:
    study = make_sites(tmp_path, ["north"])
    study.write_text(PRIVATE.replace("private_glm.PrivateGLM", "newton.Newton").replace(", settings: {rounds: 10}", ""))
    site = tmp_path / "sites" / "north"
    done("site", "build", site, study)
    assert "what one patient adds is not bounded" in refused("site", "approve", site, study)


def test_the_budget_says_what_was_spent_and_what_is_left(folder: Path) -> None:
    site = folder / "sites" / "north"
    plot = folder / "budget.svg"
    found = done("privacy", "budget", site, "--plot", plot, "--json").json
    assert 7.99 < found["spent"] <= 8.0
    assert found["spent"] < found["check_rdp"] < 12
    assert found["budget"] == 10
    assert [(study["name"], study["sums"]) for study in found["studies"]] == [("three-sites", 12)]
    # Composed, a study of 2 and more still fits beside the 8 that were spent.
    assert 2.0 < found["left"] < 8.0
    root = ElementTree.fromstring(plot.read_text())
    assert root.tag.endswith("svg")
    assert "spent" in "".join(root.itertext())
    left = float(root.attrib["viewBox"].split()[0])
    (label,) = [each for each in root.iter() if each.text == "ε"]
    assert left < -10, "no letter at the edge of a file that stands alone"
    assert float(label.attrib["x"]) == 0
    shown = done("privacy", "budget", site).out
    assert "three-sites" in shown
    assert "Spent over all studies: epsilon" in " ".join(shown.split())
    assert "█" * 32 + "░" * 8 + " 80%" in shown
    assert "所有研究合计已用" in done("privacy", "budget", site, "--lang", "zh").out
    assert f"{found['spent']:g}"[:4] in done("site", "verify", site, "--json").out


def test_a_site_that_answered_nothing_has_spent_nothing(tmp_path: Path) -> None:
    make_sites(tmp_path, ["north"])
    found = done("privacy", "budget", tmp_path / "sites" / "north", "--json", "--plot", tmp_path / "p.svg").json
    assert (found["spent"], found["left"], found["studies"]) == (0.0, 0.0, [])
    assert "Nothing is left" in done("privacy", "budget", tmp_path / "sites" / "north").out


def test_a_budget_of_an_edited_ledger_is_not_told(folder: Path) -> None:
    site = folder / "sites" / "north"
    db = sqlite3.connect(site / "ledger.db")
    db.execute("delete from ledger where event is not null and number=5")
    db.commit()
    db.close()
    assert "missing or moved" in refused("privacy", "budget", site)


def test_the_report_of_a_private_run_shows_noisy_figures_and_no_number_of_patients(folder: Path) -> None:
    run = folder / "coordinator" / "runs" / "first"
    report = json.loads((run / "result.json").read_text())
    assert (report["epsilon"], report["delta"], report["protection"]) == (8, 1e-5, "secure")
    overall = report["prediction"]["methods"][0]["results"]
    assert [row["site"] for row in overall] == [None], "no site's own figures"
    assert overall[0]["oe_low"] < overall[0]["oe"] < overall[0]["oe_high"]
    assert {release["values_per_patient"] for release in report["releases"]} == {None}
    text = json.dumps(report)
    for site in SITES:
        for part in ("train", "test"):
            assert f'"{part}": 1' not in text, site
    for page, words, noise in (
        ("report.html", "Differential privacy of a patient", "the noise of a total is spread over the sites"),
        ("report.zh.html", "患者级差分隐私", "合计的噪声由各机构分担"),
    ):
        shown = (run / page).read_text(encoding="utf-8")
        assert words in shown
        assert noise in shown
        assert "Counts are held to the minimum" not in shown


def test_a_second_run_is_refused_with_a_reason_and_a_new_approval_lets_it_run(folder: Path) -> None:
    study = folder / "study.yaml"
    shown = medfed("run", study, "-c", folder, "--run", "second", "--durability", "process", "--json")
    assert shown.code == 2
    assert "more epsilon than the site has left, over all studies or for this one" in shown.err
    set_budget_again = [folder / "sites" / name / "policy.yaml" for name in SITES]
    for path in set_budget_again:
        path.write_text(path.read_text().replace("budget: 10 ", "budget: 30 "))
    for name in SITES:
        done("site", "approve", folder / "sites" / name, study, "--budget", "14")
    done("run", study, "-c", folder, "--run", "third", "--durability", "process", "--json")
    found = done("privacy", "budget", folder / "sites" / "north", "--json").json
    assert 8 < found["spent"] <= 14, "two runs of 8 compose to less than 16"


def test_a_private_description_is_written_beside_the_report(tmp_path: Path) -> None:
    study = make_sites(tmp_path)
    described = PRIVATE.replace("private_glm.PrivateGLM", "private_describe.PrivateDescribe").replace(
        "rounds: 10", "bins: 8"
    )
    study.write_text(described.replace("design: holdout", "design: none"), encoding="utf-8")
    set_budget(tmp_path, 10)
    approve_all(tmp_path, study)
    done("run", study, "-c", tmp_path, "--run", "first", "--durability", "process", "--json")
    found = json.loads((tmp_path / "coordinator" / "runs" / "first" / "estimates.json").read_text())
    # 315 of 450 patients train; the noise of three sites is a few patients.
    assert abs(found["patients"]["value"] - 315) < 60
    assert 30 < found["means"]["age"]["low"] < found["means"]["age"]["high"] < 80
    assert set(found["levels"]["event"]) == {"no", "yes"}
    assert len(found["histograms"]["age"]["counts"]) == 8
    for page, answer, mean in (
        ("report.html", "Description with noise of about", "SD of the noise"),
        ("report.zh.html", "带噪描述：3 个机构的约", "噪声标准差"),
    ):
        shown = (tmp_path / "coordinator" / "runs" / "first" / page).read_text(encoding="utf-8")
        assert answer in shown, "before, the page said that the run had no answer"
        assert mean in shown
        assert f">{found['means']['age']['value']:.3f}<" in shown


def test_a_private_model_that_is_not_judged_has_its_coefficients_in_the_report(tmp_path: Path) -> None:
    study = make_sites(tmp_path)
    study.write_text(PRIVATE.replace("design: holdout", "design: none"), encoding="utf-8")
    set_budget(tmp_path, 10)
    approve_all(tmp_path, study)
    done("run", study, "-c", tmp_path, "--run", "first", "--durability", "process", "--json")
    store = RunnerStore(tmp_path / "coordinator")
    with closing(store):
        stored = store.result("first")
    assert stored is not None
    fitted = stored["fitted"]
    loaded = load_study(study)
    # On -1 to 1 of its declared range a patient in the middle is 0: the model is the same there in study units.
    middle = np.append(1.0, np.asarray(fitted["centre"])[1:])
    fit = PrivateFit(loaded, fitted)
    assert float(fit.params.to_numpy() @ middle) == pytest.approx(float(fitted["coefficients"][0]))
    end = middle + np.append(0.0, np.asarray(fitted["scale"])[1:])
    assert float(fit.params.to_numpy() @ end) == pytest.approx(float(np.sum(fitted["coefficients"])))
    page = (tmp_path / "coordinator" / "runs" / "first" / "report.html").read_text(encoding="utf-8")
    assert "Model of noisy sums of about" in page
    assert f"{fit.params['age']:.4f}".replace("-", "−") in page
    assert "截距" in fit.summary("zh")


def test_a_private_study_of_an_association_writes_its_estimates(tmp_path: Path) -> None:
    study = make_sites(tmp_path)
    text = PRIVATE.replace("design: holdout", "design: none").replace("risk_prediction", "association")
    study.write_text(text, encoding="utf-8")
    set_budget(tmp_path, 10)
    approve_all(tmp_path, study)
    done("run", study, "-c", tmp_path, "--run", "first", "--durability", "process", "--json")
    found = json.loads((tmp_path / "coordinator" / "runs" / "first" / "estimates.json").read_text())
    assert len(found["coefficients"]) == len(load_study(study).design.names)
