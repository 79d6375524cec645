"""What a step says when it fails may quote a record: it is written at the site, and reaches nobody else."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from consortium_folder import done, make_sites
from medfed_test_plugin import hostile

from medfed.data.build import open_table
from medfed.data.site_folder import load_site
from medfed.engines.site_folders import SiteFolders
from medfed.errors import FederationError
from medfed.federation.approval import approve, packages_of
from medfed.federation.keys import load_signing_key
from medfed.federation.ledger import open_store
from medfed.federation.packages import step_name
from medfed.federation.runner import Runner
from medfed.study import Study, load_study


@dataclass(frozen=True)
class AskOnce:
    """Puts one question."""

    steps: ClassVar = (hostile.raises_with_a_record,)

    def start(self, study: Study) -> dict[str, Any]:
        return {"rounds": 0}

    def advance(self, federation: Any, state: dict[str, Any]) -> dict[str, Any]:
        federation.sum(hostile.raises_with_a_record)
        return {"rounds": 1}

    def done(self, state: dict[str, Any]) -> bool:
        return bool(state["rounds"])

    def result(self, state: dict[str, Any]) -> Mapping[str, Any]:
        return state


def test_a_failing_steps_words_stay_in_the_sites_own_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = ["north", "south"]
    path = make_sites(tmp_path, names)
    study, step = load_study(path), step_name(hostile.raises_with_a_record)
    for name in names:
        site = load_site(tmp_path / "sites" / name)
        done("site", "build", site.folder, path)
        (site.folder / "policy.yaml").write_text(
            "packages: {medfed-test-plugin: {}}\nsteps: ['medfed-test-plugin:*']\n"
        )
        with closing(open_store(site.ledger_path, "process")) as db:
            approve(
                db, site=name, study=study, steps=[step], packages=packages_of([step]), until="2999-12-31",
                table_version=open_table(site, study).version, key=load_signing_key(site.keys), at="2026-01-01",
            )  # fmt: skip
    engine = SiteFolders(tmp_path, study, durability="process")
    runner = Runner(tmp_path / "coordinator", engine, study, durability="process")
    with closing(engine), closing(runner), pytest.raises(FederationError, match="0 of 3 sites answered") as problem:
        runner.execute(AskOnce(), "r")
    shown = capfd.readouterr()
    assert "Smith" not in str(problem.value) + shown.out + shown.err
    for name in names:
        log = tmp_path / "sites" / name / "site.log"
        text = log.read_text(encoding="utf-8")
        assert "patient Smith" in text
        assert f"site {name}" in text
        assert not any(f"site {other}" in text for other in names if other != name)
        assert log.stat().st_mode & 0o077 == 0
    assert not list((tmp_path / "coordinator").rglob("*.log"))
