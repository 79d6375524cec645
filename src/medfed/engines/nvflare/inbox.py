"""Studies that were proposed to a site, and where the site stands on each: pending, approved, declined, withdrawn.

A proposal is the study itself, signed by the coordinator. It is kept until the site's officer has decided and after; only
an approval in the ledger opens the door.
"""

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from medfed.canonical import private_folder, write_atomically
from medfed.data.site_folder import SiteFolder
from medfed.data.stored import open_table
from medfed.engines.nvflare.wire import can_be_shown, one_line
from medfed.errors import MedfedError, PolicyViolation
from medfed.federation.approval import Approval, approvals_for, revoke
from medfed.federation.keys import load_signing_key
from medfed.federation.ledger import append_event, heads_of, open_store, released
from medfed.federation.policy import Policy, load_policy
from medfed.study import Study, study_from_json

PROPOSALS_AT_MOST = 200
STUDY_AT_MOST = 200_000
DECLINED = "declined"


@dataclass(frozen=True)
class Proposal:
    """A study as it came in. note: the coordinator's words to the officer; received: when (ISO)."""

    study: Study
    note: str
    received: str


class Inbox:
    """SITE/network/inbox."""

    def __init__(self, site: SiteFolder) -> None:
        self.site = site
        self.folder = site.folder / "network" / "inbox"

    def receive(self, text: str, note: str, at: str) -> Study:
        """Keep a proposal; the same one again changes nothing. PolicyViolation where it can't be taken."""
        if len(text) > STUDY_AT_MOST:
            raise PolicyViolation("the proposed study is too large")
        try:
            study = study_from_json(text)
        except (ValueError, TypeError, RecursionError):
            raise PolicyViolation("the proposed study can't be read") from None
        if not _can_be_shown(study.model_dump(mode="json")):
            raise PolicyViolation("the proposed study has characters that can't be shown")
        if self.site.name not in study.sites.invited:
            raise PolicyViolation("the proposed study does not invite this site")
        private_folder(self.folder)
        path = self._path(study.hash)
        if not path.exists():
            if sum(1 for _ in self.folder.glob("*.json")) >= PROPOSALS_AT_MOST:
                raise PolicyViolation("the site's inbox is full; its officer removes old proposals first")
            entry = {"study": json.loads(study.model_dump_json()), "note": one_line(note, 2000), "received": at}
            write_atomically(path, json.dumps(entry, ensure_ascii=False).encode(), mode=0o600)
        text = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_atomically(self.file(study), text.encode(), mode=0o600)
        return study

    def file(self, study: Study) -> Path:
        """The study as a study.yaml, for `medfed site check|build|preview|approve`."""
        return self.folder / f"{study.name}-{study.hash[:8]}.yaml"

    def proposals(self) -> list[Proposal]:
        """Oldest first."""
        found = []
        for path in self.folder.glob("*.json"):
            entry = json.loads(path.read_text())
            found.append(Proposal(study_from_json(json.dumps(entry["study"])), entry["note"], entry["received"]))
        return sorted(found, key=lambda proposal: (proposal.received, proposal.study.hash))

    def has(self, study_hash: str) -> bool:
        """Whether a study was proposed."""
        return self._path(study_hash).exists()

    def is_approved(self, study_hash: str) -> bool:
        """Whether the site's approval of a study stands today."""
        with closing(open_store(self.site.ledger_path, "call")) as db:
            keys = {self.site.name: load_signing_key(self.site.keys)}
            found = approvals_for(db, study_hash, keys)[self.site.name]
        return isinstance(found, Approval) and date.today().isoformat() <= found.until

    def study(self, study_hash: str) -> Study | None:
        path = self._path(study_hash)
        return study_from_json(json.dumps(json.loads(path.read_text())["study"])) if path.exists() else None

    def find(self, name: str) -> Proposal:
        """The one proposal whose hash or name begins with ``name``. PolicyViolation where it is none or several."""
        found = [p for p in self.proposals() if p.study.hash.startswith(name) or p.study.name == name]
        if not any(self.folder.glob("*.json")):
            raise PolicyViolation(f"{self.folder} is empty: no study was proposed to this site yet")
        if len(found) != 1:
            known = ", ".join(f"{p.study.name} {p.study.hash[:8]}" for p in found or self.proposals()) or "none"
            raise PolicyViolation(f"{name!r} names {len(found)} proposals of the inbox; name one by its hash: {known}")
        return found[0]

    def before(self, proposal: Proposal) -> Proposal | None:
        """The version of the same study that came in before this one."""
        earlier = [
            p for p in self.proposals()
            if p.study.name == proposal.study.name and p.study.hash != proposal.study.hash and p.received <= proposal.received
        ]  # fmt: skip
        return earlier[-1] if earlier else None

    def decline(self, study: Study, reason: str, at: str) -> None:
        """Record a refusal, in the ledger. It takes back an approval, if there was one."""
        key = load_signing_key(self.site.keys)
        with closing(open_store(self.site.ledger_path, "call")) as db:
            if isinstance(approvals_for(db, study.hash, {self.site.name: key})[self.site.name], Approval):
                revoke(db, site=self.site.name, study_hash=study.hash, key=key, at=at)
            append_event(db, self.site.name, DECLINED, study.hash, reason[:1000].encode(), at=at)

    def standing(self, study: Study) -> dict[str, Any]:
        """Where the site stands on a study: what its coordinator may know, and nothing of its data.

        state: pending | approved | declined | withdrawn | ended. table: none | built | other (not the approved version).
        """
        site = self.site
        policy = load_policy(site.policy_path)
        found: dict[str, Any] = {"state": "pending", "reason": "", "until": "", "table_version": "", "table": "none",
                                 "minimum_cell": max(policy.minimum_cell, study.privacy.minimum_cell),
                                 "usual_minimum": policy.minimum_cell >= Policy().minimum_cell}  # fmt: skip
        try:
            version = open_table(site, study).version
            found["table"] = "built"
        except MedfedError:
            version = ""
        if not site.ledger_path.exists():
            return found
        with closing(open_store(site.ledger_path, "call")) as db:
            approval = approvals_for(db, study.hash, {site.name: load_signing_key(site.keys)})[site.name]
            last = db.execute(
                "select kind, bytes from ledger where site=? and subject=? and kind in ('approval','revocation',?)"
                " order by number desc limit 1", (site.name, study.hash, DECLINED),
            ).fetchone()  # fmt: skip
        if last is None:
            return found
        if last[0] == DECLINED:
            return found | {"state": "declined", "reason": bytes(last[1]).decode(errors="replace")}
        if not isinstance(approval, Approval):
            return found | {"state": "withdrawn", "reason": approval}
        found |= {"state": "approved", "until": approval.until, "table_version": approval.table_version,
                  "roster": dict(approval.roster)}  # fmt: skip
        if date.today().isoformat() > approval.until:
            found["state"] = "ended"
        if version and version != approval.table_version:
            found["table"] = "other"
        return found

    def facts(self, study: Study, run: str) -> Mapping[str, Any]:
        """What left this site in a run, and the end of its ledger: for the report. No count of patients."""
        with closing(open_store(self.site.ledger_path, "call")) as db:
            head = heads_of(db).get(self.site.name)
            return {
                "releases": [asdict(found) for found in released(db, self.site.name, study.hash, run)],
                "head": asdict(head) if head else None,
            }

    def _path(self, study_hash: str) -> Path:
        return self.folder / f"{study_hash}.json"


def _can_be_shown(value: Any) -> bool:
    """``can_be_shown`` for every text of a study."""
    if isinstance(value, str):
        return can_be_shown(value)
    if isinstance(value, Mapping):
        return all(_can_be_shown(each) for pair in value.items() for each in pair)
    return all(map(_can_be_shown, value)) if isinstance(value, list | tuple) else True
