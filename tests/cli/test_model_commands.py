"""medfed site apply, feedback and drift: the model that a run wrote, back at a hospital."""

import csv
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium_folder import STUDY, approve_all, contents, done, export, make_sites, patients_of, refused

from medfed.cli import site as site_module
from medfed.study import load_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consortium whose run "first" wrote a model."""
    folder = tmp_path_factory.mktemp("finished")
    study = make_sites(folder)
    approve_all(folder, study)
    done("run", study, "-c", folder, "--run", "first", "--durability", "process", "--json")
    return folder


@pytest.fixture
def words(finished: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Site folder, study and model, as the three commands take them."""
    shutil.copytree(finished, tmp_path / "copy")
    folder = tmp_path / "copy"
    return folder / "sites" / "west", folder / "study.yaml", folder / "coordinator" / "runs" / "first" / "model.medfed"


def outcomes(folder: Path, patients: list[dict[str, Any]]) -> Path:
    """Outcomes in the site's own dialect: GBK, bars, Chinese."""
    path = folder / "随访.csv"
    lines = ["病案号|结局", *(f"{p['patient']}|{'是' if p['event'] else '否'}" for p in patients)]
    path.write_bytes("\n".join(lines).encode("gbk"))
    return path


def test_apply_writes_predictions_and_a_row_of_the_ledger(words: tuple[Path, Path, Path]) -> None:
    site, study, _ = words
    applied = done("site", "apply", *words, "--json").json
    assert (applied["predicted"], applied["abstained"], applied["reasons"]) == (150, 0, {})
    with Path(applied["path"]).open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["patient"] for row in rows] == [p["patient"] for p in patients_of("west")]
    assert {row["model"] for row in rows} == {applied["model"]}
    event = np.array([p["event"] for p in patients_of("west")])
    risk = np.array([float(row["risk"]) for row in rows])
    assert risk[event].mean() > risk[~event].mean() + 0.1
    last = done("site", "ledger", site, "--json").json[-1]
    assert (last["kind"], last["subject"]) == ("prediction", load_study(study).hash)
    done("site", "verify", site)


def test_apply_says_for_how_many_it_abstains_and_why_in_the_readers_language(words: tuple[Path, Path, Path]) -> None:
    site = words[0]
    patients = patients_of("west")
    patients[0] |= {"age": 17}
    patients[1] |= {"weight": 999.0}
    (site / "data" / "export.csv").write_bytes(export("west", patients))
    shown = done("site", "apply", *words).out
    assert "148 patients predicted, in " in shown
    assert "abstained for 2: outside what the model has learned from" in shown
    chinese = done("site", "apply", *words, "--lang", "zh").out
    assert "abstained" not in chinese
    assert "outside what" not in chinese


def test_feedback_judges_the_risks_or_says_that_there_are_too_few(words: tuple[Path, Path, Path]) -> None:
    site = words[0]
    done("site", "apply", *words)
    path = outcomes(site.parent, patients_of("west"))
    found = done("site", "feedback", *words, path, "--json").json
    assert (found["joined"], found["unmatched"]) == (150, 0)
    assert found["observed"] == sum(p["event"] for p in patients_of("west"))
    assert found["low"] < found["ratio"] < found["high"]
    shown = done("site", "feedback", *words, path).out
    assert "150 outcomes joined to predictions, 0 without one" in shown
    few = outcomes(site.parent, patients_of("west")[:5])
    shutil.rmtree(site / "feedback")
    assert "too few to judge" in done("site", "feedback", *words, few).out


def test_drift_tells_each_input(words: tuple[Path, Path, Path]) -> None:
    assert "has not applied this model yet; run `medfed site apply` first" in refused("site", "drift", *words)
    done("site", "apply", *words)
    assert [found["variable"] for found in done("site", "drift", *words, "--json").json] == ["age", "weight"]
    older = [p | {"age": p["age"] + 20} for p in patients_of("west")]
    (words[0] / "data" / "export.csv").write_bytes(export("west", older))
    found = {row["variable"]: row["verdict"] for row in done("site", "drift", *words, "--json").json}
    assert (found["age"], found["weight"]) == ("drift", "no drift")
    assert "age" in done("site", "drift", *words).out


def test_what_can_not_be_applied_is_one_sentence_and_writes_nothing(
    words: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    site, study, model = words
    before = contents(site)
    damaged = tmp_path / "damaged.medfed"
    damaged.write_bytes(model.read_bytes()[:-8])
    for wrong in (damaged, study):
        assert "is not a medfed model, or is damaged; ask the coordinator" in refused(
            "site", "apply", site, study, wrong
        )
    assert "does not exist; `medfed run` writes model files" in refused("site", "apply", site, study, tmp_path / "none")
    assert refused("site", "apply", site, study, tmp_path)
    other = tmp_path / "other.yaml"
    other.write_text(STUDY.replace("Three sites", "Four sites"), encoding="utf-8")
    assert "the model belongs to another study than 'three-sites'" in refused("site", "apply", site, other, model)
    assert contents(site) == before


def test_a_site_that_never_took_part_can_use_the_model(words: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """It needs a mapping of the inputs, and neither outcome, table nor approval."""
    _, study, model = words
    site = tmp_path / "new"
    done("site", "init", site, "--name", "new")
    (site / "site.yaml").write_text(
        "site: new\nsources: {export: {path: data/export.csv}}\npatient: {source: export, column: id}\n"
        "mapping:\n  age: {column: AGE}\n  weight: {column: KG}\n"
    )
    (site / "data" / "export.csv").write_text("id,AGE,KG\n1,60,80\n2,70,\n")
    assert done("site", "apply", site, study, model, "--json").json["predicted"] == 2
    assert [row["kind"] for row in done("site", "ledger", site, "--json").json] == ["prediction"]


# -- a site's folder -----------------------------------------------------------------------------------------------


def test_init_beside_a_policy_and_keys_keeps_them(tmp_path: Path) -> None:
    """Who lost site.yaml makes it anew; the officer's policy and the keys that signed the ledger stay."""
    site = tmp_path / "site"
    first = done("site", "init", site, "--name", "first").out
    (site / "policy.yaml").write_text("minimum_cell: 25\n")
    keys = contents(site / "keys")
    (site / "site.yaml").unlink()
    again = done("site", "init", site, "--name", "first").out
    assert (site / "policy.yaml").read_text() == "minimum_cell: 25\n"
    assert contents(site / "keys") == keys
    assert first.splitlines()[-1] == again.splitlines()[-1], "the same public key"


def test_init_can_be_run_again_after_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    with monkeypatch.context() as disk:
        disk.setattr(site_module, "write_signing_key", full)
        assert "No space left on device" in refused("site", "init", site, "--name", "first")
    assert not (site / "site.yaml").exists()
    done("site", "init", site, "--name", "first")
    assert done("site", "ledger", site, "--json").json == []
