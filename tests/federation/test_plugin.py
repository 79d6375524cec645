"""A researcher's package brings a method of its own, by the path that medfed's own methods use."""

import importlib
import shutil
from pathlib import Path

import medfed_test_plugin
import numpy as np
import pytest
from consortium import fixed_keys, synthetic_study, synthetic_tables

from medfed.engines.what_if import what_if
from medfed.errors import FederationError, StudyError
from medfed.federation import packages
from medfed.federation.packages import find_method, installed_package
from medfed.federation.policy import Policy
from medfed.federation.runner import Runner

SITES = ["a", "b"]
USE = "medfed-test-plugin:medfed_test_plugin.median.Median"
ALLOWED = Policy.model_validate(
    {
        "packages": {"medfed": {}, "medfed-test-plugin": {}},
        "steps": ["medfed:medfed.*", "medfed-test-plugin:*.median.*"],
    }
)


def run(folder: Path, policy: Policy, use: str = USE) -> dict:
    study = synthetic_study(SITES, method={"use": use, "settings": {"rounds": 40}})
    method = find_method(study)
    tables = synthetic_tables(study, [120, 91])
    engine, public = what_if(folder / "s", tables, study, [method], policy=policy, keys=fixed_keys(SITES))
    runner = Runner(folder / "c", engine, study, durability="process", public_keys=public)
    try:
        result = dict(runner.execute(method))
    finally:
        runner.close()
    result["rows"] = np.concatenate([table.on("train").arrays("features")[0] for table in tables.values()])
    return result


def test_a_plug_in_method_equals_numpy(tmp_path: Path) -> None:
    result = run(tmp_path, ALLOWED)
    assert np.abs(result["median"][1:] - np.median(result["rows"], axis=0)[1:]).max() < 1e-6


def test_a_site_whose_policy_does_not_list_the_package_refuses(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="policy does not allow this step"):
        run(tmp_path, Policy())


def test_a_pinned_package_is_held_to_its_hash(tmp_path: Path) -> None:
    package = installed_package("medfed-test-plugin", "medfed_test_plugin.median")
    pinned = {"version": package.version, "sha256": package.sha256}
    right = ALLOWED.model_copy(
        update={"packages": Policy.model_validate({"packages": {"medfed-test-plugin": pinned}}).packages}
    )
    run(tmp_path / "right", right)
    pinned["sha256"] = "0" * 64
    wrong = ALLOWED.model_copy(
        update={"packages": Policy.model_validate({"packages": {"medfed-test-plugin": pinned}}).packages}
    )
    with pytest.raises(FederationError, match="pins another version"):
        run(tmp_path / "wrong", wrong)


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plug-in installed a second time, under another name, where its files may be changed."""
    place = tmp_path / "site-packages"
    package = place / "medfed_changing_plugin"
    shutil.copytree(Path(medfed_test_plugin.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    info = place / "medfed_changing_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: medfed-changing-plugin\nVersion: 1.0\n")
    (info / "RECORD").write_text("medfed_changing_plugin/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(place))
    importlib.invalidate_caches()
    packages._distributions.cache_clear()
    packages.distributions_of.cache_clear()
    yield package
    packages._distributions.cache_clear()
    packages.distributions_of.cache_clear()


def test_a_package_whose_files_change_after_the_approval_is_refused(tmp_path: Path, copied: Path) -> None:
    use = "medfed-changing-plugin:medfed_changing_plugin.median.Median"
    allowed = Policy.model_validate({"packages": {"medfed-changing-plugin": {}}, "steps": ["medfed-changing-plugin:*"]})
    study = synthetic_study(SITES, method={"use": use, "settings": {"rounds": 3}})
    method = find_method(study)
    engine, _ = what_if(tmp_path / "s", synthetic_tables(study, [120, 91]), study, [method], policy=allowed)
    with (copied / "hostile.py").open("a") as file:
        file.write("\n# one line more\n")
    runner = Runner(tmp_path / "c", engine, study, durability="process")
    with pytest.raises(FederationError, match="its files changed"):
        runner.execute(method, "after")
    runner.close()


def test_a_method_that_is_not_installed_is_a_sentence() -> None:
    for use, words in (
        ("nowhere:nowhere.x.Method", "is not installed"),
        ("medfed:medfed.methods.newton.Newtonian", "does not exist"),
        ("medfed:medfed.methods.newton.sigmoid", "is not a method"),
        ("medfed-test-plugin:medfed.methods.newton.Newton", "does not hold"),
    ):
        with pytest.raises(StudyError, match=words):
            find_method(synthetic_study(SITES, method={"use": use, "settings": {}}))


def test_a_setting_that_does_not_exist_or_fit_is_a_sentence() -> None:
    for settings, words in (
        ({"tolerence": 1e-8}, "did you mean 'tolerance'"),
        ({"most_rounds": "many"}, "is not of type int"),
        ({"family": "poisson"}, "family is 'logistic' or 'gaussian'"),
        ({"l2": -1.0}, "l2 is 0 or more"),
    ):
        use = {"use": "medfed:medfed.methods.newton.Newton", "settings": settings}
        with pytest.raises(StudyError, match=words):
            find_method(synthetic_study(SITES, method=use))
