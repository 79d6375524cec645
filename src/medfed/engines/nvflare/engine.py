"""The engine between institutions: puts a call to every site over NVFLARE, and waits as long as the study says.

A site's answer is asked for in short questions, so that it is known at every moment whether the site works, is silent or is
away; whatever breaks in between, the same question is asked again, and the site gives the bytes that it has sealed.
"""

import contextlib
import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfed.data.table import StudyTable
from medfed.engines.facts import Heads, SiteFacts
from medfed.engines.nvflare.channel import Channel, Unanswered, coordinator_sealer, hash_of, line_to, payload_of
from medfed.engines.nvflare.consortium import Network
from medfed.engines.nvflare.envelope import Message
from medfed.engines.nvflare.frames import CHUNK, SWITCH_SECONDS, BadMessage
from medfed.engines.nvflare.parts import PARTS_MISSING, Incoming
from medfed.engines.nvflare.wire import (
    call_blob,
    call_content,
    is_hash,
    is_site_name,
    one_line,
    read_failure,
    read_figure,
    read_number,
    read_released,
)
from medfed.errors import FederationError
from medfed.federation.call import Answer, Call, Failure, Own, Protection, Waiting
from medfed.federation.opening import common_roster, secure_roster
from medfed.study import Study

log = logging.getLogger("medfed.engine")

PATIENCE = 15.0
LONG_POLL = 8.0
AGAIN_AFTER = 0.25
FACTS_WAIT = 5.0
STANDS_STILL_AT_MOST = 600.0
ROSTER_WAIT = 10.0
# A site that was left out is asked again with every call, but not waited for.
GRACE_FOR_THE_AWAY = 2.0

WHY = {
    "no dispatcher": "the coordinator's dispatcher is not up; its service starts it again",
    "not in the dispatcher": "the site is not connected",
    "gone": "the site's processes went away",
    "silent": "the site does not answer",
    "not verified": "what came back could not be verified",
    "refused": "the site did not accept the message; its clock, kit or version may be off",
}
NOT_INVITED = "the site was not invited into this consortium"
REMOVED = "the site was removed"
NOT_JOINED = "the site has a kit but has not joined yet"
NOT_ASKED = "the coordinator could not ask the site"
NOBODY_TO_ASK = (
    "no site can be asked whether sums may be secure, so nothing was started; `medfed status` says how they stand"
)
STILL_WORKING = "the site was still working when the deadline ({minutes} min) had passed"
STILL_AWAY = "{why}, and the deadline ({minutes} min) has passed"


@dataclass
class _Asked:
    """One site's question: when it gives up, how it stands."""

    until: float
    since: float
    worked: bool = False
    stood_still: float = 0.0


class Networked:
    """Carries calls to the sites of a network. ``on_wait`` is told when a site is not simply answering."""

    def __init__(self, consortium: Path, study: Study) -> None:
        self.network = Network(consortium)
        self.study = study
        self.members, self._roster_written = self.network.members(), 0
        self.sites = tuple(study.sites.invited)
        self.on_wait: Callable[[Waiting], None] = lambda waiting: None
        self._sealer = coordinator_sealer(self.network.keys, self.network.identity())
        self._channels = {
            site: Channel(self.network.relay, self._sealer, site, self.members[site].public_key)
            for site in self.sites
            if site in self.members and self.members[site].state == "joined"
        }
        # A folder for each site: two of them may send the same bytes.
        self._incoming = {site: Incoming(self.network.folder / "incoming" / site) for site in self._channels}
        self._away: set[str] = set()
        self._approved: dict[str, str] | None = None
        self._reasons: dict[str, str] = {}
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(max(len(self._channels), 1), thread_name_prefix="site")
        sys.setswitchinterval(SWITCH_SECONDS)

    def use_relay(self, relay: Path) -> None:
        """Speak to another socket than the dispatcher's: a fault proxy's, or a recorder's."""
        for channel in self._channels.values():
            channel.relay = relay

    @property
    def public_keys(self) -> dict[str, str]:
        return {site: self.members[site].public_key for site in self._channels}

    @property
    def roster(self) -> dict[str, str]:
        """The sites that all who have approved the study, approved to be summed with, and their keys; asked once.

        FederationError where no site can be asked within the study's deadline: nobody then knows how sums are protected.
        """
        if self._approved is None:
            found = self._standings() if self.study.privacy.sums == "strongest" else {}
            rosters = [roster for state, roster in found.values() if state == "approved"]
            self._approved = common_roster([*rosters, self.public_keys]) if rosters else {}
        return self._approved

    def _standings(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Where the sites stand on the study, and the roster that each approved: of all that can be asked before long."""
        found: dict[str, tuple[str, dict[str, str]]] = {}
        start = time.monotonic()
        while len(found) < len(self._channels):
            waited = time.monotonic() - start
            if waited > (ROSTER_WAIT if found else self.study.sites.deadline_seconds):
                break
            missing = [site for site in self._channels if site not in found]
            for site, standing in zip(missing, self._pool.map(self._approved_by, missing), strict=True):
                if standing is not None:
                    found[site] = standing
            if len(found) < len(self._channels) and self._closing.wait(AGAIN_AFTER):
                break
        if self._channels and not found:
            raise FederationError(NOBODY_TO_ASK)
        return found

    @property
    def protections(self) -> tuple[Protection, ...]:
        return ("plain", "secure") if secure_roster(self.study, self.roster) else ("plain",)

    def _approved_by(self, site: str) -> tuple[str, dict[str, str]] | None:
        """Where a site stands on the study, and the roster that it approved; None where it does not answer."""
        try:
            with line_to(self.network.relay, self._sealer, site, self.members[site].public_key) as line:
                line.relay = self._channels[site].relay
                found = line.ask(Message("standing", {"study": self.study.hash}), timeout=FACTS_WAIT).content
        except (Unanswered, KeyError):
            return None
        roster = found.get("roster")
        sound = isinstance(roster, dict) and all(is_site_name(name) and is_hash(key) for name, key in roster.items())
        return str(found.get("state", "")), dict(roster) if isinstance(roster, dict) and sound else {}

    def exchange(
        self, call: Call, own: Mapping[str, Own], deadline: float | None = None
    ) -> Iterator[tuple[str, Answer | Failure]]:
        """Answers as they come. deadline: seconds to wait for a site; by default the study's."""
        seconds = deadline if deadline is not None else self.study.sites.deadline_seconds
        answers: queue.SimpleQueue[tuple[str, Answer | Failure]] = queue.SimpleQueue()
        shared = call_content(call)
        alike = call.opening is None and not any(mine.each for mine in own.values())
        common = call_blob(call, Own()) if alike else None
        known = call.inputs_digest if common is not None else ""
        self._leave_out_the_removed()
        for site, mine in own.items():
            if site not in self._channels:
                answers.put((site, Failure("unreachable", self._not_a_member(site))))
                continue
            content = shared | {"kept": mine.kept, "settled": mine.settled}
            blob = common if common is not None else call_blob(call, mine)
            asked = _Asked(
                time.time() + (min(GRACE_FOR_THE_AWAY, seconds) if site in self._away else seconds), time.time()
            )
            self._pool.submit(self._ask, site, content, blob, known or hash_of(blob), asked, answers)
        for _ in own:
            site, answer = answers.get()
            if call.phase != "head":
                late = isinstance(answer, Failure) and answer.kind in ("late", "unreachable")
                (self._away.add if late else self._away.discard)(site)
            yield site, answer

    def _leave_out_the_removed(self) -> None:
        """A site that was taken off the roster is asked nothing more, also in a run that is under way."""
        with contextlib.suppress(FederationError, OSError):  # damaged in mid-run: as it was known before
            written = self.network.roster_path.stat().st_mtime_ns
            if written != self._roster_written:
                self.members, self._roster_written = self.network.members(), written
        for site in [s for s in list(self._channels) if s not in self.members or self.members[s].state != "joined"]:
            with contextlib.suppress(KeyError):  # another thread was first
                self._channels.pop(site).close()

    def _not_a_member(self, site: str) -> str:
        member = self.members.get(site)
        if member is None:
            return NOT_INVITED
        return REMOVED if member.state == "removed" else NOT_JOINED

    def _ask(
        self,
        site: str,
        content: dict[str, Any],
        blob: bytes,
        blob_hash: str,
        asked: _Asked,
        answers: "queue.SimpleQueue[Any]",
    ) -> None:
        try:
            line = self._channels[site]
            answers.put((site, self._until_answered(line, content, blob, blob_hash, asked)))
        except BaseException as problem:  # the iterator must hear of every site, whatever happens here
            log.exception("site %s could not be asked", site)
            answers.put((site, Failure("failed", NOT_ASKED)))
            if not isinstance(problem, Exception):
                raise

    def _until_answered(
        self, line: Channel, content: dict[str, Any], blob: bytes, blob_hash: str, asked: _Asked
    ) -> Answer | Failure:
        site, failing, pause = line.site, 0.0, AGAIN_AFTER
        is_told = content["phase"] != "head"  # a ledger's end is asked for beside the run, which does not wait for it
        while not self._closing.is_set():
            tried = time.time()
            left = asked.until - tried
            if left <= 0:
                break
            try:
                found = self._one_question(
                    line, content, blob, blob_hash, wait=min(LONG_POLL, left), patience=min(PATIENCE, left + 3)
                )
            except Unanswered as problem:
                self._leave_out_the_removed()
                if site not in self._channels:
                    return Failure("unreachable", self._not_a_member(site))
                failing = failing or time.time()
                if is_told and problem.why == "no dispatcher" and asked.stood_still < STANDS_STILL_AT_MOST:
                    # Our own side is down: no site is late for that, so the clock stands still meanwhile.
                    lost = time.time() - tried + min(pause, max(left, 0))
                    asked.until, asked.stood_still = asked.until + lost, asked.stood_still + lost
                why, since = self._explain(site, problem.why)
                if is_told:
                    self.on_wait(Waiting(site, "away", min(since or failing, failing), why, asked.until))
                self._closing.wait(min(pause, max(left, 0)))
                pause = min(2 * pause, 1.0)
                continue
            failing, pause = 0.0, AGAIN_AFTER
            if found is None:
                asked.worked = True
                if is_told:
                    self.on_wait(Waiting(site, "working", asked.since, "", asked.until))
                continue
            return found
        minutes = f"{self.study.sites.deadline_seconds / 60:g}"
        if asked.worked:
            return Failure("late", STILL_WORKING.format(minutes=minutes))
        return Failure("unreachable", STILL_AWAY.format(why=self._last(site), minutes=minutes))

    def _one_question(
        self, line: Channel, content: dict[str, Any], blob: bytes, blob_hash: str, *, wait: float, patience: float
    ) -> Answer | Failure | None:
        """The site's answer; None while it works."""
        asked = content | {"wait": wait}
        if len(blob) > CHUNK:
            line.put(blob, blob_hash, timeout=patience)
            asked["whole"], blob, blob_hash = blob_hash, b"", ""
        reply = line.ask(Message("call", asked, blob, blob_hash=blob_hash), timeout=wait + 7.0)
        state = reply.content.get("state")
        if state == "working":
            return None
        if state == "failure":
            failure = read_failure(reply.content)
            if failure.reason == PARTS_MISSING:  # others' inputs took their place meanwhile: they are sent again
                raise Unanswered("not verified")
            return failure
        if state != "answer":
            raise Unanswered("not verified")
        payload, size = payload_of(reply.content)
        data: Any = (
            reply.blob if size <= CHUNK else line.fetch(payload, size, self._incoming[line.site], timeout=patience)
        )
        if len(data) != size or (size <= CHUNK and reply.blob_hash != payload):
            raise Unanswered("not verified")
        return Answer(data)

    def _explain(self, site: str, why: str) -> tuple[str, float]:
        """Our sentence, or a better one that the coordinator's service has, with the time since when (0: not known)."""
        text, since = WHY[why], 0.0
        if why in ("not in the dispatcher", "silent", "gone"):
            try:
                known = json.loads(self.network.state_path.read_text())["sites"][site]
                if known.get("state") == "away":
                    text, since = str(known["why"]), float(known["since"])
            except (OSError, ValueError, KeyError, TypeError):
                pass
        self._reasons[site] = text
        return text, since

    def _last(self, site: str) -> str:
        return self._reasons.get(site, WHY["silent"])

    @property
    def tables(self) -> dict[str, StudyTable]:
        """None: no table is ever where the coordinator is."""
        return {}

    def facts(self, run: str, heads: Heads) -> dict[str, SiteFacts]:
        """What the sites themselves say, signed; a site that is away has a title only."""
        with ThreadPoolExecutor(max(len(self.sites), 1)) as pool:
            return dict(zip(self.sites, pool.map(lambda site: self._facts(site, run, heads), self.sites), strict=True))

    def _facts(self, site: str, run: str, heads: Heads) -> SiteFacts:
        title = {lang: self.network.title(site, lang) for lang in ("en", "zh")}
        line = self._channels.get(site)
        if line is None:
            return SiteFacts(title, self._not_a_member(site))
        try:
            standing = line.ask(Message("standing", {"study": self.study.hash}), timeout=FACTS_WAIT).content
            if standing.get("state") == "failure":
                return SiteFacts(title)
            found = line.ask(Message("facts", {"study": self.study.hash, "run": run}), timeout=FACTS_WAIT).content
            approval = ledger = None
            if standing["state"] == "approved":
                approval = {
                    "until": one_line(standing["until"], 40),
                    "hash": self.study.hash,
                    "table_version": one_line(standing["table_version"], 80),
                }
            if head := found.get("head"):
                # Whole as far as this side can see: the site signed this end, or one before it, while it could still be checked.
                verified = site in heads and heads[site][0].number <= int(head["number"])
                ledger = {
                    "rows": read_number(head["number"]) + 1,
                    "head": one_line(head["hash"], 64),
                    "verified": verified,
                    "epsilon": read_figure(head["spent"]),
                }
            return SiteFacts(
                title,
                releases=read_released(found.get("releases", [])),
                approval=approval,
                ledger=ledger,
                minimum_cell=read_number(standing["minimum_cell"]),
                usual_minimum=bool(standing["usual_minimum"]),
            )
        except (Unanswered, BadMessage, KeyError, TypeError, ValueError, AttributeError):
            return SiteFacts(title)

    def close(self) -> None:
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for channel in self._channels.values():
            channel.close()
