"""docs/for-coordinators.md and the network's half of docs/for-sites.md: commands exist, the example loads, sentences are said."""

import re
from pathlib import Path

import pytest
from consortium_folder import medfed

from medfed.cli import status
from medfed.engines import site_folders
from medfed.engines.nvflare import coordinator_service, engine, reasons
from medfed.engines.nvflare.consortium import Consortium, CoordinatorAddress, load_consortium
from medfed.federation import execution

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "for-coordinators.md").read_text(encoding="utf-8")
SITES = (DOCS / "for-sites.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"^```\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if line.startswith("medfed ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_on_the_page_exists_with_its_options(command: str) -> None:
    words = command.split()[1:]
    names = words[: 2 if words[0] in ("consortium", "coordinator", "site", "study") else 1]
    shown = medfed(*names, "--help")
    assert shown.code == 0
    text = re.sub(r"[^\w-]+", " ", shown.out)
    for option in (word for word in words if word.startswith("-")):
        assert option in text


def test_the_page_shows_every_command_of_a_coordinator() -> None:
    for group in ("consortium", "coordinator"):
        listed = re.findall(r"^│ ([\w-]+) ", medfed(group, "--help").out, re.MULTILINE)
        assert len(listed) >= 3
        for name in listed:
            assert name.startswith("-") or f"medfed {group} {name}" in PAGE


def test_the_consortium_on_the_page_loads_and_every_key_is_explained(tmp_path: Path) -> None:
    (tmp_path / "consortium.yaml").write_text(PAGE.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert load_consortium(tmp_path / "consortium.yaml").coordinator.port == 8002
    keys = {key for key in Consortium.model_fields if key not in ("medfed", "coordinator")}
    keys |= {f"coordinator.{key}" for key in CoordinatorAddress.model_fields}
    assert set(re.findall(r"^\| `([\w.]+)` \|", PAGE, re.MULTILINE)) >= keys


def test_what_the_pages_quote_of_a_network_is_said() -> None:
    modules = (coordinator_service, engine, reasons, site_folders, status, execution)
    said = "\n".join(Path(str(module.__file__)).read_text("utf-8") for module in modules)
    part = SITES.partition("### Why a run goes on without the site")[2].partition("### Leave")[0]
    reasons_of_sites = re.findall(r"^\| `(.*)` \| .* \|$", part, re.MULTILINE)
    table = PAGE.partition("## When something breaks")[2].partition("\n## ")[0]
    reasons_of_status = re.findall(r"^\| (?:a site is )?`away`: `(.*?)`", table, re.MULTILINE)
    assert len(reasons_of_sites) >= 5
    assert len(reasons_of_status) >= 5
    for reason in (*reasons_of_sites, *reasons_of_status):
        for piece in re.split(r", and |\(30 min\)|\.\.\.", reason):
            assert piece.strip(" ;,") in said, reason
