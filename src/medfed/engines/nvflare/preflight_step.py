"""Round trip of a test step at one site: the process that would read patients, its frames, door, gate and seal, for once.

The process is the service's own (``step_process``) and so is the site's policy, with the test step allowed in addition. But
its folder is a throwaway one, with keys, ledger and approval of its own: nothing is sealed in the site's ledger, and
nothing leaves the machine. The step gives back the numbers it was asked with; nothing of a patient is in them.
"""

import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medfed.canonical import private_folder
from medfed.data.site_folder import SiteFolder, load_site, write_pseudonym_key
from medfed.data.stored import open_table
from medfed.engines.nvflare.consortium import now
from medfed.engines.nvflare.finding import Finding, Limits, _
from medfed.engines.nvflare.frames import BadMessage, receive, send
from medfed.engines.nvflare.inbox import Inbox
from medfed.engines.nvflare.processes import end_tree, spawn, tail
from medfed.engines.nvflare.reasons import NOT_ANSWERED
from medfed.engines.nvflare.wire import call_blob, call_content, read_failure
from medfed.errors import MappingError, MedfedError
from medfed.federation.approval import approve, packages_of
from medfed.federation.call import Answer, Call, Failure, Own
from medfed.federation.keys import write_signing_key
from medfed.federation.ledger import open_store
from medfed.federation.packages import step_name
from medfed.federation.policy import AllowedPackage, Policy, load_policy
from medfed.federation.ring import decode, on_grid
from medfed.federation.step import Input, Out, Step, Sum, step
from medfed.study import Study, study_from_dict

LIMIT = 10.0


@step(reads="train", takes={"numbers": Input("2", limit=LIMIT)}, releases={"numbers": Sum("2", limit=LIMIT)})
def give_back(site: Any, *, numbers: Any) -> Out:
    """A test: reads one piece of the table and gives back the numbers it was asked with; nothing of a patient is in them."""
    next(iter(site.table.batches(["features"])))
    return Out({"numbers": numbers})


_INSTALL = _(
    "Install medfed anew in the environment that the site's service runs in; if memory or disk is short, free some."
)


def check_step(site: SiteFolder, study: Study | None, limits: Limits) -> Finding:
    """Put the test step to a process of its own, on the site's table if one is built for the study, else on invented rows."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="medfed-preflight-") as place:
        folder, log = Path(place) / "site", Path(place) / "process.log"
        try:
            copy, asked, own_table = _throwaway(folder, site, study)
            found = _put(copy, asked, log, limits.step_patience)
            unsaid = isinstance(found, Failure) and found.reason == NOT_ANSWERED
            error = tail(folder / "site.log", 1) if unsaid else ""
        except (MedfedError, OSError, EOFError) as problem:
            found, error = Failure("failed", ""), tail(log, 1) or str(problem) or type(problem).__name__
    values = {"seconds": f"{time.monotonic() - begun:.1f}", "study": study.name if study else ""}
    if isinstance(found, Failure) and found.kind == "refused" and not error:
        return Finding(
            "step", "warning", _("The process works, but the gate held the test step back: {reason}."),
            _("Run `medfed site preview` for the study: it says what would be held back and why."),
            {"reason": found.reason},
        )  # fmt: skip
    if isinstance(found, Failure):
        error = " ".join((error or found.reason).split())[:300]
        return Finding("step", "failed", _("The process that answers steps does not work: {error}"), _INSTALL, {"error": error})  # fmt: skip
    if not found:
        return Finding("step", "failed", _("The test step gave back other numbers than it was asked with."), _INSTALL)
    if own_table:
        return Finding("step", "ok", _("A test step in a process of its own read the table for {study} and answered after {seconds} seconds; nothing was sealed and nothing left."), values=values)  # fmt: skip
    return Finding("step", "ok", _("A test step in a process of its own read invented rows and answered after {seconds} seconds; nothing was sealed and nothing left."), values=values)  # fmt: skip


def _throwaway(folder: Path, site: SiteFolder, study: Study | None) -> tuple[SiteFolder, Study, bool]:
    """A site's folder that has approved the test step: (site, study, whether the site's own table is read)."""
    private_folder(folder)
    policy = _policy(site)
    own = study is not None and site.name in study.sites.invited and _is_built(site, study)
    if study is not None and own:
        (folder / "site.yaml").write_bytes((site.folder / "site.yaml").read_bytes())
        (folder / "tables").symlink_to((site.folder / "tables").resolve())  # read where it lies
        asked = study
    else:
        asked = _invented_study(site.name)
        _invent_rows(folder, site.name, rows=4 * max(policy.minimum_cell, policy.minimum_patients, 10))
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy.model_dump(mode="json")))
    key = write_signing_key(folder / "keys")
    write_pseudonym_key(folder)
    copy = load_site(folder)
    from medfed.data.build import build_table

    version = open_table(copy, asked).version if own else build_table(copy, asked)[0].version
    Inbox(copy).receive(asked.model_dump_json(), "", now())
    names = [step_name(give_back)]
    with closing(open_store(copy.ledger_path, "call")) as db:
        approve(
            db, site=copy.name, study=asked, steps=names, packages=packages_of(names), table_version=version,
            until=date.today().isoformat(), key=key, at=now(),
        )  # fmt: skip
    return copy, asked, own


def _policy(site: SiteFolder) -> Policy:
    """The site's rules for what may be seen, with the test step in place of the steps and packages that it lists."""
    try:
        policy = load_policy(site.policy_path)
    except MedfedError:  # said by the check of the policy
        policy = Policy()
    only = {"packages": {"medfed": AllowedPackage()}, "steps": (step_name(give_back),)}
    return policy.model_copy(update=only | {"input_limits": {}, "site_terms_visible": True})


def _is_built(site: SiteFolder, study: Study) -> bool:
    try:
        open_table(site, study)
    except MappingError:
        return False
    return True


def _put(site: SiteFolder, study: Study, log: Path, patience: float) -> bool | Failure:
    """Start the process and put the step to it: whether the same numbers came back, or why it gave none."""
    numbers = on_grid(np.array([secrets.randbelow(10**6), -secrets.randbelow(10**6)]) * (LIMIT / 10**6))
    call = Call(
        study=study.hash, run="preflight", round=1, step=step_name(give_back), ordinal=0, part="train",
        roster=tuple(study.sites.invited), inputs={"numbers": numbers},
    )  # fmt: skip
    mine, theirs = socket.socketpair()
    process = None
    try:
        with theirs:
            os.set_inheritable(theirs.fileno(), True)
            command = [
                sys.executable, "-m", "medfed.engines.nvflare.step_process", str(site.folder.resolve()), study.hash,
                str(theirs.fileno()),
            ]  # fmt: skip
            process = spawn(command, log, dict(os.environ), pass_fds=(theirs.fileno(),), cwd="/")
        mine.settimeout(patience)
        send(mine, call_content(call) | {"kept": None, "settled": None}, call_blob(call, Own()))
        content, blob = receive(mine)
    finally:
        mine.close()
        end_tree(process, wait=0.0)
    if content.get("state") == "failure":
        return read_failure(content)
    if content.get("state") != "answer":
        raise BadMessage("the answer is not one that medfed writes")
    return _same(give_back, Answer(blob), numbers, study)


def _same(asked: Step, answer: Answer, numbers: Any, study: Study) -> bool:
    declared = asked.releases["numbers"]
    assert isinstance(declared, Sum)
    limbs = declared.limbs(rows_at_most=study.rows_at_most, sites_at_most=study.sites_at_most)
    return bool(np.array_equal(decode(np.asarray(answer.values["numbers"]), limbs), numbers))


# -- invented rows ---------------------------------------------------------------------------------------------------


def _invented_study(site: str) -> Study:
    return study_from_dict({
        "medfed": 1, "name": "preflight", "title": "Test of a site", "question": "Do the site's processes work?",
        "variables": {
            "event": {"meaning": "Event", "type": "code", "role": "outcome", "codes": {"no": "No", "yes": "Yes"}, "event": "yes"},
            "age": {"meaning": "Age", "type": "number", "role": "covariate", "unit": "year", "range": [0, 120]},
        },
        "task": {"kind": "risk_prediction"}, "method": {"use": "medfed:medfed.methods.newton.Newton"},
        "parts": {"kind": "all"}, "evaluation": {"design": "none"}, "sites": {"invited": [site, "another"], "minimum": 1},
        "privacy": {"minimum_cell": 1},
    })  # fmt: skip


def _invent_rows(folder: Path, site: str, *, rows: int) -> None:
    """site.yaml and an export of people who do not exist."""
    lines: Sequence[str] = [f"T{index},{index % 2},{20 + index % 60}" for index in range(rows)]
    (folder / "data").mkdir()
    (folder / "data" / "export.csv").write_text("\n".join(["patient,event,age", *lines]) + "\n")
    (folder / "site.yaml").write_text(
        f"site: {site}\n"
        "sources: {export: {path: data/export.csv}}\n"
        "patient: {source: export, column: patient}\n"
        "mapping:\n"
        '  event: {column: event, codes: {"0": "no", "1": "yes"}}\n'
        "  age: {column: age, unit: year}\n"
    )
