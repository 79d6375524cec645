"""The installed command as a program meets it: streams, exit codes, nothing of Python on either."""

import json
import subprocess
import sys
from pathlib import Path

from consortium_folder import make_sites

MEDFED = Path(sys.executable).parent / "medfed"
COMMAND = (
    [str(MEDFED)]
    if MEDFED.exists()
    else [sys.executable, "-c", "from medfed.cli.main import run_command; run_command()"]
)


def medfed(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, encoding="utf-8")


def test_json_is_alone_on_standard_output_and_a_refusal_alone_on_standard_error(tmp_path: Path) -> None:
    study = make_sites(tmp_path, ["west"])
    site = tmp_path / "sites" / "west"
    built = medfed("site", "build", site, study, "--json")
    assert (built.returncode, built.stderr) == (0, "")
    assert json.loads(built.stdout)["rows_kept"] == 150
    refused = medfed("site", "build", tmp_path, study, "--json")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert (
        refused.stderr
        == f"{tmp_path}/site.yaml does not exist; `medfed site init FOLDER --name NAME` makes a site's folder\n"
    )
