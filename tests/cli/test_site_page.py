"""docs/for-sites.md, the half about policy, approval, ledger and model: its commands exist, its policy loads, its
sentences are those that are said."""

import re
from pathlib import Path

import pytest
from consortium_folder import medfed

from medfed.engines import site_folders
from medfed.federation import admission, approval, budget, door, execution, gate, openings
from medfed.federation.policy import POLICY_TEMPLATE, Policy, load_policy

PAGE = (Path(__file__).parents[2] / "docs" / "for-sites.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, heading
    return found[1]


COMMANDS = [line.partition("#")[0].strip() for block in PAGE.split("```\n")[1::2] for line in block.splitlines()]


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("medfed ")])
def test_every_command_on_the_page_exists_with_its_options(command: str) -> None:
    _, group, name, *words = command.split()
    shown = medfed(group, name, "--help")
    assert shown.code == 0
    text = re.sub(r"[^\w-]+", " ", shown.out)
    for option in (word for word in words if word.startswith("--")):
        assert option in text


def test_the_page_shows_every_command_of_a_site() -> None:
    listed = re.findall(r"^│ (\w+) ", medfed("site", "--help").out, re.MULTILINE)
    assert len(listed) >= 12
    for name in listed:
        assert f"medfed site {name} " in PAGE


def test_the_policy_on_the_page_loads_and_every_key_is_explained(tmp_path: Path) -> None:
    text = section("policy.yaml")
    (tmp_path / "policy.yaml").write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    policy = load_policy(tmp_path / "policy.yaml")
    assert policy.model_fields_set == set(Policy.model_fields)
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", text, re.MULTILINE))
    assert set(rows) == set(Policy.model_fields)
    (tmp_path / "policy.yaml").write_text(POLICY_TEMPLATE, encoding="utf-8")
    written = load_policy(tmp_path / "policy.yaml")
    assert written == Policy(), "what `site init` writes are the defaults"
    for key in ("minimum_cell", "minimum_patients"):
        assert rows[key] == f"`{getattr(written, key)}`"


def test_the_reasons_on_the_page_are_those_that_are_given() -> None:
    said = "\n".join(
        Path(str(module.__file__)).read_text("utf-8")
        for module in (site_folders, admission, door, gate, openings, execution, approval, budget)
    )
    reasons = re.findall(r"^\| `(.*)` \| .* \|$", section("Why a site does not take part"), re.MULTILINE)
    assert len(reasons) >= 10
    for reason in reasons:
        assert reason.removesuffix(" ...").removesuffix(", ...") in said
