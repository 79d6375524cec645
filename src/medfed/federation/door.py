"""A site's side of a call: verify, find what is sealed, run, gate, seal, send. One object may hold many sites.

The order is the contract: what is already sealed under a key is sent again byte for byte; a release is charged once,
if and only if it is sealed; the ledger row, its bytes and what is kept become final in one transaction (``seal``). Of a
secure sum nothing leaves with the seal: it is opened afterwards, over many sites at once (``secure_site``).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.canonical import pack, pack_rows
from medfed.errors import MedfedError
from medfed.federation import gate
from medfed.federation.admission import Access, Admission
from medfed.federation.approval import Approval
from medfed.federation.budget import OVER_BUDGET, Accountant, Charge
from medfed.federation.call import Answer, Call, Failure, Own, counts_models, model_opened
from medfed.federation.execution import Execution
from medfed.federation.ledger import Durability, Head, sign_head
from medfed.federation.refusals import record_failures, record_refusals
from medfed.federation.remembered import ROWS_REMEMBERED, Cells
from medfed.federation.seal import JudgedBefore, SiteStore
from medfed.federation.secure_site import OTHER_QUESTION, SecureSites, asked_digest
from medfed.federation.site_units import SiteUnits
from medfed.federation.step import Step
from medfed.federation.units import UNITS
from medfed.privacy.accounting import charged_epsilon
from medfed.study import Study

log = logging.getLogger("medfed.site")

# All that a coordinator hears of an answer that is sealed for a secure sum.
SEALED = Answer(pack({"sealed": True}))


def _now() -> datetime:
    return datetime.now(UTC)


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
        self.admission = Admission(self.sites, study, self.store, self.execution, charge)
        self.units = SiteUnits(self.sites, study)
        self.openings = SecureSites(self.admission, self.store)
        self._watched: dict[tuple[str, str], frozenset[int]] = {}
        self._counts: dict[str, tuple[NDArray[np.int64], NDArray[np.int64], dict[str, int]]] = {}

    # -- the five stages of a call -------------------------------------------------------------------------------

    def answer(self, call: Call, own: Mapping[str, Own]) -> dict[str, Answer | Failure]:
        """Answer one call for every site in ``own``. Never raises for what a call or a step does wrong."""
        if call.phase == "head":
            return {site: self._signed_head(site) for site in own}
        now = self.clock()
        judged = self.store.version()
        self.admission.refresh()
        out: dict[str, Answer | Failure] = {}
        today = now.date().isoformat()
        for site in own:
            if reason := self.admission.not_approved(site, today):
                out[site] = Failure("refused", reason)
        if len(out) == len(own):
            return out
        asked = {site: mine for site, mine in own.items() if site not in out}
        try:
            step, sizes = self.admission.verify(call)
        except MedfedError as problem:
            return out | {site: Failure("refused", str(problem)) for site in asked}
        at = now.isoformat(timespec="seconds")
        if call.phase == "open":
            return out | self.openings.answer(call, step, asked, at)
        found = self._answer(call, step, sizes, asked, at, today, judged)
        if call.phase == "seal":
            found = {site: SEALED if isinstance(answer, Answer) else answer for site, answer in found.items()}
        return out | found

    def _answer(
        self,
        call: Call,
        step: Step,
        sizes: Mapping[str, Any],
        own: Mapping[str, Own],
        at: str,
        today: str,
        judged: int,
    ) -> dict[str, Answer | Failure]:
        digests = {site: asked_digest(call, mine) for site, mine in own.items()}
        out: dict[str, Answer | Failure] = {}
        for site, (sealed, found) in self.store.sealed(call.key, list(own)).items():
            out[site] = found if sealed == digests[site] else Failure("refused", OTHER_QUESTION)
        waiting = {site: mine for site, mine in own.items() if site not in out}
        names, refused = self.admission.judge(call, step, sizes, waiting, today)
        out |= {site: Failure("refused", reason) for site, reason in refused.items()}
        if not names:
            return out
        if call.step == UNITS:
            approved = {site: given for site in names if (given := self.admission.approval(site))}
            coded, keep, local, amount = self.units.answers(call, approved)
        else:
            names, coded, keep, local, amount, held = self._computed(call, step, sizes, names, own, digests, at)
            out |= held
        if not names:
            return out
        blobs = pack_rows(coded)
        admission, charge = self.admission, self.charge(call)
        limits = {site: admission.limits(site) for site in names} if charge is not None else {}
        opened = {site: model_opened(call, step, own[site]) for site in names} if counts_models(call, step) else {}
        # Noisy sums may overlap with exact ones of other cohorts in any way: their noise protects.
        exact = names if call.charge is None else []
        try:
            over = self.store.seal(
                call, step, names, digests=digests, blobs=blobs, keep=keep, local=local, own=own, charge=charge,
                amount=amount, at=at, limits=limits,
                cohorts={site: self.execution.view(site, call.part) for site in exact}, cells=self._new_cells(exact),
                opened=opened, alone=exact if call.protection == "plain" else (), judged=judged,
            )  # fmt: skip
        except JudgedBefore:
            # While the step ran, another study at this site may have answered, or an officer withdrawn the approval.
            return out | self._answer_anew(call, step, sizes, {site: own[site] for site in names}, at, today)
        if over is None:  # another process sealed under this key meanwhile: what it sealed is the answer
            return out | self._answer(call, step, sizes, {site: own[site] for site in names}, at, today, judged)
        admission.count([site for site in names if site not in over])
        if self.store.new_cohort:
            admission.rows_changed()
        for index, site in enumerate(names):
            if site in over:
                out[site] = Failure("refused", OVER_BUDGET)
            else:
                out[site] = Answer(blobs[index], {name: value[index] for name, value in coded.items()})
        return out

    def _answer_anew(
        self, call: Call, step: Step, sizes: Mapping[str, Any], own: Mapping[str, Own], at: str, today: str
    ) -> dict[str, Answer | Failure]:
        """Judge and compute once more, by what the store holds now."""
        judged = self.store.version()
        self.admission.refresh()
        out: dict[str, Answer | Failure] = {
            site: Failure("refused", reason) for site in own if (reason := self.admission.not_approved(site, today))
        }
        left = {site: mine for site, mine in own.items() if site not in out}
        return out | (self._answer(call, step, sizes, left, at, today, judged) if left else {})

    def _computed(
        self,
        call: Call,
        step: Step,
        sizes: Mapping[str, Any],
        names: list[str],
        own: Mapping[str, Own],
        digests: Mapping[str, str],
        at: str,
    ) -> tuple[list[str], dict[str, NDArray[Any]], Any, list[Any], int, dict[str, Answer | Failure]]:
        """Run the step and hold what it returns to the gate; failures and refusals are recorded."""
        names, release, keep, local, rests_on, failed = self.execution.run(call, step, sizes, names, own)
        charge = self.charge(call)
        limits = {site: self.admission.limits(site) for site in own} if charge is not None else {}
        out: dict[str, Answer | Failure] = {}
        held: dict[str, Answer | Failure] = {}
        if failed and call.charge is not None:
            # Whether a step fails may hang on one patient: under an epsilon that is a refusal, and costs as much.
            held = {site: Failure("refused", f.reason) for site, f in failed.items() if isinstance(f, Failure)}
        elif failed:
            out |= failed
            self.admission.count(record_failures(self.store, call, sorted(failed), at=at))
        coded: dict[str, NDArray[Any]] = {}
        amount = 0
        if names:
            names, coded, keep, local, amount, more = self._gate(
                call, step, sizes, names, release, keep, local, rests_on
            )
            held |= more
        if held:
            # A refusal that depends on the data tells something: it is sealed, counted, and the same on a retry.
            reasons = {site: failure.reason for site, failure in held.items() if isinstance(failure, Failure)}
            recorded = record_refusals(self.store, call, reasons, digests, at=at, charge=charge, limits=limits)
            self.admission.count(recorded)
        return names, coded, keep, local, amount, out | held

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
        rests_on: gate.RestsOn,
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
            rests_on=rests_on,
            row_keys=[self._watch(site, call.part) for site in names],
            protection=call.protection,
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

    # -- what engines and reports ask --------------------------------------------------------------------------------

    def standing_approval(self, site: str) -> Approval | None:
        """The site's approval of the study as it stands now, for a report."""
        self.admission.refresh()
        return self.admission.approval(site)

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

    def _new_cells(self, names: Sequence[str]) -> dict[str, tuple[str, Callable[[], Cells]]]:
        """Who is in which cell of the tables that are asked about for the first time; of very large ones it is not kept.

        Worked out when it is written, one site after the other: of many large tables it would fill the memory.
        """
        tables = {site: self.sites[site].table for site in names}
        return {
            site: (table.version, partial(gate.cells_of, table.on("all"), self.study))
            for site, table in tables.items()
            if table.rows <= ROWS_REMEMBERED and not self.store.remembers(site, self.study.hash, table.version)
        }

    def _watch(self, site: str, part: str) -> frozenset[int]:
        if (site, part) not in self._watched:
            single = gate.minimum_cell(self.sites[site].policy, self.study) <= 1
            view = self.execution.view(site, part)
            self._watched[site, part] = frozenset() if single else gate.watched_rows(view)
        return self._watched[site, part]

    def _signed_head(self, site: str) -> Answer:
        signed = sign_head(site, self.store.heads().get(site, Head()), self.sites[site].key)
        return Answer(pack({"number": signed.number, "hash": signed.hash, "signature": signed.signature}))
