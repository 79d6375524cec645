"""A site's side of a call: verify, find what is sealed, run, gate, seal, send. One object may hold many sites.

The order is the contract: what is already sealed under a key is sent again byte for byte; a release is charged once,
if and only if it is sealed; the ledger row, its bytes and what is kept become final in one transaction (``seal``).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from medfed.canonical import digest, pack, pack_rows
from medfed.data.table import StudyTable
from medfed.errors import MedfedError, PolicyViolation
from medfed.federation import gate
from medfed.federation.approval import Approval, approvals_for
from medfed.federation.budget import OVER_BUDGET, Accountant, Charge, Limits
from medfed.federation.call import (
    PART,
    RUN_PATH,
    Answer,
    Call,
    Failure,
    Own,
    check_inputs,
    check_one_input,
    counts_models,
    model_opened,
)
from medfed.federation.execution import Execution
from medfed.federation.ledger import Durability, Head, sign_head
from medfed.federation.packages import Package, find_step, installed_package
from medfed.federation.policy import Policy
from medfed.federation.private import check_charge, limits_of
from medfed.federation.refusals import record_failures, record_refusals
from medfed.federation.seal import SiteStore
from medfed.federation.step import Step
from medfed.privacy.accounting import charged_epsilon
from medfed.study import Study

log = logging.getLogger("medfed.site")

OTHER_QUESTION = "another question was already answered under this call"
NOT_APPROVED_STEP = "the step is not among those that the site approved"
PACKAGE_CHANGED = "the package that holds the step is not the one that was approved: its files changed"
ALONE = "the question is put to this site alone, and its policy does not allow that"
TOO_MANY_MODELS = "more models would be opened on these rows than the study names"
ENOUGH_CALLS = "the site has answered as many calls of this study as it approved"


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Access:
    """What a site brings to a study: its table, policy and signing key."""

    table: StudyTable
    policy: Policy
    key: Ed25519PrivateKey


class Doors:
    """The doors of one or many sites over one store, for one study."""

    def __init__(
        self,
        store: Path,
        sites: Mapping[str, Access],
        study: Study,
        *,
        durability: Durability = "call",
        twins: bool = True,
        clock: Callable[[], datetime] = _now,
        charge: Callable[[Call], Charge | None] = attrgetter("charge"),
        accountant: Accountant = charged_epsilon,
    ) -> None:
        self.sites = dict(sites)
        self.study = study
        self.clock = clock
        self.charge = charge
        self.store = SiteStore(store, durability, accountant)
        tables = {site: access.table for site, access in sites.items()}
        policies = {site: access.policy for site, access in sites.items()}
        secrets = {site: access.key.private_bytes_raw() for site, access in sites.items()}
        self.execution = Execution(study, tables, policies, self.store, twins=twins, secrets=secrets)
        self._keys = {site: access.key for site, access in sites.items()}
        self._approvals: dict[str, Approval | str] = {}
        self._approvals_at: int | None = None
        self._answered: dict[str, int] = {}
        self._verdicts: dict[tuple[str, str, str, bool], str | None] = {}
        self._passed: dict[tuple[str, str, str, tuple[str, ...], str], set[str]] = {}
        self._rows_judged: dict[tuple[str, str, str], str | None] = {}
        self._packages: dict[tuple[str, str], Package] = {}
        self._watched: dict[tuple[str, str], frozenset[int]] = {}
        self._counts: dict[str, tuple[NDArray[np.int64], NDArray[np.int64], dict[str, int]]] = {}

    # -- the five stages of a call -------------------------------------------------------------------------------

    def answer(self, call: Call, own: Mapping[str, Own]) -> dict[str, Answer | Failure]:
        """Answer one call for every site in ``own``. Never raises for what a call or a step does wrong."""
        out: dict[str, Answer | Failure] = {}
        now = self.clock()
        if call.phase == "head":
            return {site: self._signed_head(site) for site in own}
        self._refresh_approvals()
        today = now.date().isoformat()
        for site in own:
            if reason := self._not_approved(site, today):
                out[site] = Failure("refused", reason)
        if len(out) == len(own):
            return out
        try:
            step, sizes = self._verify(call)
        except MedfedError as problem:
            return out | {site: Failure("refused", str(problem)) for site in own if site not in out}
        digests = {site: self._digest(call, mine) for site, mine in own.items()}
        for site, (sealed, found) in self.store.sealed(call.key, [site for site in own if site not in out]).items():
            out[site] = found if sealed == digests[site] else Failure("refused", OTHER_QUESTION)
        names: list[str] = []
        charge = self.charge(call)
        # A site that passed every rule for this kind of call passes again, unless its approvals or the day changed.
        passed = self._passed.setdefault((call.run.partition("/")[0], call.step, call.part, call.roster, today), set())
        every_call = charge is not None or counts_models(call, step)
        for site, mine in own.items():
            if site in out:
                continue
            if site in passed and not mine.each and not every_call and self._answered.get(site, 0) < self._most(site):
                names.append(site)
                continue
            reason = self._refuses(site, call, step, mine, sizes, charge)
            if reason is not None:
                out[site] = Failure("refused", reason)
                continue
            names.append(site)
            if not self.sites[site].policy.input_limits:
                passed.add(site)
        if not names:
            return out
        names, release, keep, local, effective, failed = self.execution.run(call, step, sizes, names, own)
        at = now.isoformat(timespec="seconds")
        limits = {site: self._limits(site) for site in own} if charge is not None else {}
        held: dict[str, Answer | Failure] = {}
        if failed and call.charge is not None:
            # Whether a step fails may hang on one patient: under an epsilon that is a refusal, and costs as much.
            held = {site: Failure("refused", f.reason) for site, f in failed.items() if isinstance(f, Failure)}
        elif failed:
            out |= failed
            self._count(record_failures(self.store, call, sorted(failed), at=at))
        coded: dict[str, NDArray[Any]] = {}
        amount = 0
        if names:
            names, coded, keep, local, amount, more = self._gate(
                call, step, sizes, names, release, keep, local, effective
            )
            held |= more
        out |= held
        if held:
            # A refusal that depends on the data tells something: it is sealed, counted, and the same on a retry.
            reasons = {site: failure.reason for site, failure in held.items() if isinstance(failure, Failure)}
            self._count(record_refusals(self.store, call, reasons, digests, at=at, charge=charge, limits=limits))
        if not names:
            return out
        blobs = pack_rows(coded)
        opened = {site: model_opened(call, step, own[site]) for site in names} if counts_models(call, step) else {}
        over = self.store.seal(
            call, step, names, digests=digests, blobs=blobs, keep=keep, local=local, own=own, charge=charge,
            amount=amount, at=at, limits=limits,
            # Noisy sums may overlap with exact ones of other cohorts in any way: their noise protects.
            cohorts={site: self.execution.view(site, call.part) for site in names} if call.charge is None else {},
            opened=opened,
        )  # fmt: skip
        if over is None:  # another process sealed under this key meanwhile: what it sealed is the answer
            return out | self.answer(call, {site: own[site] for site in names})
        self._count([site for site in names if site not in over])
        if self.store.new_cohort:
            self._rows_judged.clear()
            self._passed.clear()
        for index, site in enumerate(names):
            if site in over:
                out[site] = Failure("refused", OVER_BUDGET)
            else:
                out[site] = Answer(blobs[index], {name: value[index] for name, value in coded.items()})
        return out

    def _verify(self, call: Call) -> tuple[Step, dict[str, Any]]:
        """What is the same for all sites: study, step, part, roster, inputs. Raises PolicyViolation."""
        if call.study != self.study.hash:
            raise PolicyViolation("this is not the study that the site approved: its hash differs")
        if call.protection != "plain" or call.phase != "answer":
            # Under secure sums the rules for counts are judged on totals; claimed here, that would switch them off.
            raise PolicyViolation("this site sums in plain; a call that says otherwise is not answered")
        if not RUN_PATH.fullmatch(call.run) or call.round < 0 or call.ordinal < 0:
            raise PolicyViolation("the call does not name a run, a round and an ordinal as medfed writes them")
        if not PART.fullmatch(call.part):
            raise PolicyViolation(f"there is no part {call.part!r}")
        if len(set(call.roster)) < len(call.roster):
            raise PolicyViolation("the roster names a site twice")
        if not any(isinstance(a, Approval) and call.step in a.steps for a in self._approvals.values()):
            raise PolicyViolation(NOT_APPROVED_STEP)  # before anything is imported under that name
        step = find_step(call.step)
        if call.variant is not None and call.variant not in self.study.variants:
            raise PolicyViolation(f"the approved study has no variant {call.variant!r}")
        if call.part.partition(":")[0] not in step.reads:
            raise PolicyViolation(f"the step may not read the part {call.part!r}")
        if not set(call.roster) <= set(self.study.sites.invited):
            raise PolicyViolation("the roster names sites that the study does not invite")
        check_charge(self.study, step, call.charge)
        return step, check_inputs(step, call, self.study.sizes)

    def _limits(self, site: str) -> Limits:
        return limits_of(self.sites[site].policy, self._approvals[site], self.study)

    def _refuses(
        self, site: str, call: Call, step: Step, own: Own, sizes: Mapping[str, Any], charge: Charge | None
    ) -> str | None:
        access = self.sites[site]
        approval = self._approvals[site]
        assert isinstance(approval, Approval)
        if site not in call.roster:
            return "the site is asked but is not on the roster"
        if self._answered.get(site, 0) >= approval.most_calls:
            return ENOUGH_CALLS
        alone = set(call.roster) == {site}
        key = (site, call.run.partition("/")[0], call.step, alone)
        if key not in self._verdicts:
            self._verdicts[key] = self._refuses_step(access, approval, call, step, alone)
        if reason := self._verdicts[key]:
            return reason
        if charge is not None:
            self.store.heads()
            if self.store.spending.settle({site: 0.0}, call.study, charge, {site: self._limits(site)})[1]:
                return OVER_BUDGET
        try:
            if missing := set(step.takes) - set(call.inputs) - set(own.each):
                raise PolicyViolation(f"the call lacks the input {min(missing)!r}")
            for name, value in own.each.items():
                if name not in step.takes:
                    raise PolicyViolation(f"the call brings an input {name!r} that the step does not declare")
                check_one_input(name, value, step, sizes, limit=step.takes[name].limit)
            gate.check_steepness(step, {**call.inputs, **own.each}, self.study, access.policy, call.variant)
            for name, limit in access.policy.input_limits.items():
                if name in step.takes:
                    value = own.each[name] if name in own.each else call.inputs[name]
                    check_one_input(name, value, step, sizes, limit=limit)
            rows_asked = access.table.on(call.part).rows
        except MedfedError as problem:
            return str(problem)
        if call.charge is None:  # a refusal by the data would tell what the noise hides
            if rows_asked > self.study.rows_at_most:
                return "the site has more rows than the study's rows_per_site allows for"
            rows = (site, call.part, call.protection)
            if rows not in self._rows_judged:
                self._rows_judged[rows] = self._judge_rows(site, call)
            if reason := self._rows_judged[rows]:
                return reason
        if counts_models(call, step):
            opened = model_opened(call, step, own)
            seen = self.store.models_opened(site, opened[0])
            named = self.study.valid_models if call.part.partition(":")[0] == "valid" else self.study.test_models
            if opened[1] not in seen and len(seen) >= named:
                return TOO_MANY_MODELS
        return None

    def _not_approved(self, site: str, today: str) -> str | None:
        """Why the site does not answer this study at all now; asked first, before what is sealed is sent again."""
        approval = self._approvals[site]
        if isinstance(approval, str):
            return approval
        return "the site's approval of this study has ended" if today > approval.until else None

    def _count(self, sites: Sequence[str]) -> None:
        for site in sites:
            self._answered[site] = self._answered.get(site, 0) + 1

    def _refuses_step(self, access: Access, approval: Approval, call: Call, step: Step, alone: bool) -> str | None:
        if call.step not in approval.steps:
            return NOT_APPROVED_STEP
        if not access.policy.allows_step(call.step):
            return "the site's policy does not allow this step"
        if approval.table_version != access.table.version:
            return "the study table is not the version that was approved; build, check and approve again"
        distribution, _, dotted = call.step.partition(":")
        # Files are hashed again in every run: a package may have been replaced since the approval.
        package = self._package(call.run.partition("/")[0], distribution, dotted)
        if package not in approval.packages:
            return PACKAGE_CHANGED
        pinned = access.policy.packages[distribution]
        if pinned.version not in (None, package.version) or pinned.sha256 not in (None, package.sha256):
            return "the policy pins another version of the package that holds the step"
        if alone and step.is_sum and not access.policy.site_terms_visible:
            return ALONE
        return None

    def _package(self, run: str, distribution: str, dotted: str) -> Package | None:
        key = (run, f"{distribution}:{dotted.split('.')[0]}")
        if key not in self._packages:
            self._packages[key] = installed_package(distribution, dotted)
        return self._packages[key]

    def _judge_rows(self, site: str, call: Call) -> str | None:
        access = self.sites[site]
        view = self.execution.view(site, call.part)
        return gate.judge_rows(
            access.table.on("all"), view, self.study, access.policy, call.protection, self.store.cohorts(site, view)
        )

    # -- gate ------------------------------------------------------------------------------------------------------

    def _gate(
        self,
        call: Call,
        step: Step,
        sizes: Mapping[str, Any],
        names: list[str],
        release: Mapping[str, NDArray[np.float64]],
        keep: Any,
        local: list[Any],
        effective: Any,
    ) -> tuple[list[str], dict[str, NDArray[Any]], Any, list[Any], int, dict[str, Answer | Failure]]:
        rows, patients, where = self._sizes_of(call.part)
        pick = np.array([where[site] for site in names])
        reasons, coded, amount = gate.check_release(
            step,
            release,
            sizes=sizes,
            study=self.study,
            rows=rows[pick],
            patients=patients[pick],
            policies=[self.sites[site].policy for site in names],
            effective=effective,
            row_keys=[self._watch(site, call.part) for site in names],
            noisy=call.charge is not None,
        )
        held: dict[str, Answer | Failure] = {
            site: Failure("refused", reason) for site, reason in zip(names, reasons, strict=True) if reason
        }
        if held:
            good = np.flatnonzero([reason is None for reason in reasons])
            names, local = [names[i] for i in good], [local[i] for i in good]
            coded, keep = gate.only(coded, good), gate.only(keep, good)
        return names, coded, keep, local, amount, held

    def standing_approval(self, site: str) -> Approval | None:
        """The site's approval of the study as it stands now, for a report."""
        self._refresh_approvals()
        approval = self._approvals[site]
        return None if isinstance(approval, str) else approval

    # -- what is remembered in memory --------------------------------------------------------------------------------

    def _sizes_of(self, part: str) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, int]]:
        if part not in self._counts:
            views = [self.execution.view(site, part) for site in self.sites]
            self._counts[part] = (
                np.array([view.rows for view in views]),
                np.array([view.patients for view in views]),
                {site: index for index, site in enumerate(self.sites)},
            )
        return self._counts[part]

    def _watch(self, site: str, part: str) -> frozenset[int]:
        if (site, part) not in self._watched:
            single = gate.minimum_cell(self.sites[site].policy, self.study) <= 1
            view = self.execution.view(site, part)
            self._watched[site, part] = frozenset() if single else gate.watched_rows(view)
        return self._watched[site, part]

    def _most(self, site: str) -> int:
        approval = self._approvals[site]
        return 0 if isinstance(approval, str) else approval.most_calls

    def _refresh_approvals(self) -> None:
        """Read approvals again when another process wrote to the ledger: a revocation counts from the next call."""
        version = self.store.version()
        if version != self._approvals_at:
            self._approvals = approvals_for(self.store.db, self.study.hash, self._keys)
            self._answered = self.store.calls_answered(self.study.hash)
            self._approvals_at = version
            self.store.forget()
            self._verdicts.clear()
            self._passed.clear()
            self._rows_judged.clear()

    def _digest(self, call: Call, own: Own) -> str:
        if own.kept is None and not own.each:
            return call.digest
        return digest(call.digest, own.kept or "", pack(own.each) if own.each else b"")

    def _signed_head(self, site: str) -> Answer:
        signed = sign_head(site, self.store.heads().get(site, Head()), self.sites[site].key)
        return Answer(pack({"number": signed.number, "hash": signed.hash, "signature": signed.signature}))
