"""Executes runs: rounds, journal, checkpoints. After a crash ``execute`` again, and the run goes on as if undisturbed."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medfed.canonical import pack, unpack
from medfed.errors import FederationError, MedfedError
from medfed.federation.budget import Charge
from medfed.federation.call import RUN_PATH, Answer, Call, Engine, Failure, Own, Protection, TellsOfWaiting, Waiting
from medfed.federation.federation import Federation
from medfed.federation.ledger import Durability, SignedHead, is_head_signed
from medfed.federation.opening import secure_roster
from medfed.federation.packages import Method
from medfed.federation.private import charges_of
from medfed.federation.secure import SecureSums
from medfed.federation.status import StatusFile
from medfed.federation.store import RunnerStore
from medfed.study import Study


@dataclass(frozen=True)
class Progress:
    """One thing that just happened, for people: a round began or ended, a site is asked or has answered."""

    kind: str
    path: str
    round: int
    step: str = ""
    site: str = ""
    failure: Failure | None = None
    sites: tuple[str, ...] = ()
    waiting: Waiting | None = None


ROUNDS_BETWEEN_HEADS = 16
HEADS_WAIT = 5.0
Listener = Callable[[Progress], None]


@dataclass
class _Run:
    runner: "Runner"
    study: Study
    path: str
    counted: dict[str, dict[str, str]]
    protection: Protection
    charges: Mapping[str, Charge]
    secure: SecureSums | None = None
    ordinals: dict[tuple[int, str], int] = field(default_factory=dict)
    settled: dict[str, dict[str, str]] = field(default_factory=dict)

    def exchange(self, call: Call, own: Mapping[str, Own]) -> Iterator[tuple[str, Answer | Failure]]:
        runner = self.runner
        seconds, minimum = self.study.sites.deadline_seconds, min(self.study.sites.minimum, len(call.roster))
        runner.status.begin(call.run, call.round, call.step, call.roster, seconds=seconds, minimum=minimum)
        runner.tell("asked", call.run, call.round, call.step, sites=call.roster)
        for site, answer in runner.engine.exchange(call, own, seconds):
            runner.status.answered(site)
            runner.tell("answered", call.run, call.round, call.step, site, answer)
            yield site, answer

    def journaled(self, key: str) -> tuple[str, Mapping[str, Any]] | None:
        return self.runner.store.journaled(key)

    def journal(self, call: Call, question: str, outcome: Mapping[str, Any]) -> None:
        self.runner.store.journal(call.key, call.run, call.round, question, outcome)

    def child(self, name: str, method: Method, federation: Federation, variant: str | None) -> Mapping[str, Any]:
        return self.runner.advance_to_end(
            method,
            f"{self.path}/{federation.round}/{name}",
            replace_run=dataclasses.replace(federation, part=None, variant=variant),
            counted=self.counted,
        )


class Runner:
    """The coordinator's one process that executes runs in a folder, over an engine."""

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        study: Study,
        *,
        durability: Durability = "call",
        listener: Listener | None = None,
        public_keys: Mapping[str, str] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.engine = engine
        self.study = study
        self.durability = durability
        self.listener = listener
        self.public_keys = dict(public_keys or {})
        self.clock = clock
        self.charges: Mapping[str, Charge] = {}
        self.store = RunnerStore(folder, durability)
        self.roster: dict[str, str] = {}
        self.status = StatusFile(folder)
        if isinstance(engine, TellsOfWaiting):
            engine.on_wait = self._waits

    def close(self) -> None:
        self.store.close()

    def tell(
        self,
        kind: str,
        path: str,
        round_: int,
        step: str = "",
        site: str = "",
        answer: Answer | Failure | None = None,
        sites: tuple[str, ...] = (),
    ) -> None:
        """Tell the listener, if there is one."""
        if self.listener is not None:
            failure = answer if isinstance(answer, Failure) else None
            self.listener(Progress(kind, path, round_, step, site, failure, sites))

    def _waits(self, waiting: Waiting) -> None:
        self.status.waits(waiting)
        if self.listener is not None:
            self.listener(Progress("waits", "", 0, site=waiting.site, waiting=waiting))

    def execute(self, method: Method, run: str = "main") -> Mapping[str, Any]:
        """Run a method to its end (or go on with it) and return its result.

        Raises FederationError when the run had to stop; what was done is kept, and the same call resumes it.
        """
        if not RUN_PATH.fullmatch(run) or "/" in run:
            raise FederationError(
                f"a run's name has letters, digits, '.', '_' and '-' only, and 80 at most; not {run!r}"
            )
        self.charges = charges_of(self.study, method)  # what can't be charged is refused before anything is asked
        at = self.clock().isoformat(timespec="seconds")
        self.status.begin(run, 0)
        self.store.start_run(run, self.study.hash, self.study.model_dump_json(), at)
        self._take_heads()
        try:
            self.roster = self.store.run_roster(run, self._roster)
            reached = set(self.roster) or set(self.engine.sites)
            sites = tuple(site for site in self.study.sites.invited if site in reached)
            federation = Federation(run=None, round=0, sites=sites)  # type: ignore[arg-type]
            result = self.advance_to_end(method, run, replace_run=federation, counted={})
        except MedfedError as problem:
            self.store.end_run(run, "stopped", str(problem), self.clock().isoformat(timespec="seconds"))
            self.status.clear()
            raise
        self._take_heads()
        self.store.end_run(run, "finished", "", self.clock().isoformat(timespec="seconds"), result)
        self.status.clear()
        return result

    def abandon(self, run: str = "main") -> None:
        """Give up the open round of a run whose roster is gone: same state and keeps, next round number.

        What sites sealed in it stays charged and is never read.
        """
        if self.store.checkpoint(run) is None:
            raise FederationError(f"run {run!r} has no finished round yet, so there is none to give up; resume it")
        self.store.next_round(run)

    def advance_to_end(
        self, method: Method, path: str, *, replace_run: Federation, counted: Mapping[str, Mapping[str, str]]
    ) -> Mapping[str, Any]:
        """Rounds of one run path until its method is done. Each round starts from its checkpoint as read back."""
        study = self.study
        state = method.start(study)
        round_, pointers = 0, {slot: dict(calls) for slot, calls in counted.items()}
        saved = self.store.checkpoint(path)
        if saved is not None:
            round_, pointers = saved[0], saved[1]
            state = _restored(type(state), saved[2])
        elif not path.count("/"):
            self.store.write_checkpoint(path, 0, pointers, pack(state))
            state = _restored(type(state), unpack(pack(state)))
        run = _Run(self, study, path, pointers, "secure" if self.roster else "plain", self.charges)
        if self.roster:
            run.secure = SecureSums(study, self.store, self.roster, run.exchange)
        while not method.done(state):
            round_ += 1
            run.ordinals.clear()
            run.settled = {slot: dict(calls) for slot, calls in run.counted.items()}
            self.status.begin(path, round_)
            self.tell("round", path, round_)
            federation = dataclasses.replace(replace_run, run=run, round=round_)
            data = pack(method.advance(federation, state))
            self.store.write_checkpoint(path, round_, run.counted, data)
            if self.durability == "call" and not path.count("/") and round_ % ROUNDS_BETWEEN_HEADS == 0:
                self._take_heads()
            state = _restored(type(state), unpack(data))
        return method.result(state)

    def _roster(self) -> dict[str, str]:
        """The sites and keys over which sums are secure: ``strongest`` in a study means the best that the engine offers."""
        if self.study.privacy.sums == "plain" or self.engine.protections[-1] == "plain":
            return {}
        return secure_roster(self.study, self.engine.roster)

    def _take_heads(self) -> None:
        """Keep every site's signed ledger head: a ledger that is cut afterwards is found out."""
        sites = [site for site in self.engine.sites if site in self.public_keys]
        if not sites:
            return
        call = Call(self.study.hash, "", 0, "", 0, "all", tuple(sites), {}, phase="head")
        before = self.store.heads()
        fresh: list[tuple[SignedHead, str]] = []
        for site, answer in self.engine.exchange(call, dict.fromkeys(sites, Own()), HEADS_WAIT):
            if isinstance(answer, Failure):
                continue
            values = answer.values
            head = SignedHead(site, int(values["number"]), str(values["hash"]), str(values["signature"]))
            if head.number < 0:
                continue
            if not is_head_signed(head, self.public_keys[site]):
                raise FederationError(f"site {site!r}: the ledger head is not signed with the site's key; ask the site")
            known = before.get(site)
            if known and (
                head.number < known[0].number or (head.number == known[0].number and head.hash != known[0].hash)
            ):
                raise FederationError(
                    f"site {site!r}: its ledger ends at row {head.number}, but it once signed row {known[0].number}; "
                    "rows were cut off or replaced. Ask the site to restore its ledger"
                )
            fresh.append((head, self.public_keys[site]))
        if fresh:
            self.store.write_heads(fresh)


def _restored(kind: type, tree: Mapping[str, Any]) -> Any:
    try:
        return kind(**tree) if dataclasses.is_dataclass(kind) else dict(tree)
    except TypeError:
        raise FederationError(
            "the checkpoint belongs to another version of the method; start a new run, or run it with that version"
        ) from None
