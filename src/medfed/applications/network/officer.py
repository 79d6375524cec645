"""A site's people in the demo: read the inbox, build the table, approve. ``python -m medfed.applications.network.officer FOLDER``

They do what `medfed site build` and `medfed site approve` do, for every proposal that is pending, in one process.
"""

import sys
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from medfed.data.build import build_table
from medfed.data.site_folder import load_site
from medfed.engines.nvflare.inbox import Inbox
from medfed.engines.site_roster import read_roster
from medfed.errors import MedfedError
from medfed.evaluation.study_run import step_names
from medfed.federation.approval import approve, packages_of
from medfed.federation.keys import load_signing_key
from medfed.federation.ledger import open_store
from medfed.study import Study


def decide(folder: Path) -> list[str]:
    """Build and approve what is pending; the studies' names."""
    site = load_site(folder)
    box = Inbox(site)
    approved = []
    for proposal in box.proposals():
        if box.standing(proposal.study)["state"] == "pending":
            build_and_approve(folder, proposal.study)
            approved.append(proposal.study.name)
    return approved


def build_and_approve(folder: Path, study: Study) -> None:
    """One study at one site."""
    site = load_site(folder)
    table, _ = build_table(site, study)
    names = step_names(study)
    with closing(open_store(site.ledger_path, "call")) as db:
        approve(
            db, site=site.name, study=study, steps=names, packages=packages_of(names), table_version=table.version,
            until=(date.today() + timedelta(days=180)).isoformat(), key=load_signing_key(site.keys),
            at=datetime.now(UTC).isoformat(timespec="seconds"), officer="demo officer",
            roster=read_roster(site),
        )  # fmt: skip


if __name__ == "__main__":
    try:
        print(*decide(Path(sys.argv[1])), sep="\n")
    except MedfedError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
