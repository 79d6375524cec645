"""Whether a site answers a call at all: study, approval, package, roster, inputs, rows. Judged before a step runs.

Reasons are sentences of ours that quote no count. What a site has let pass is remembered until approvals or rows change.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfed.data.table import StudyTable
from medfed.errors import MedfedError, PolicyViolation, PrivacyError
from medfed.federation import gate
from medfed.federation.approval import Approval, approvals_for
from medfed.federation.budget import OVER_BUDGET, Charge, Limits
from medfed.federation.call import (
    PART,
    RUN_PATH,
    Call,
    Own,
    Protection,
    check_inputs,
    check_one_input,
    counts_models,
    model_opened,
)
from medfed.federation.execution import Execution
from medfed.federation.opening import secure_roster
from medfed.federation.openings import TOTALS_FIRST
from medfed.federation.packages import Package, find_step, installed_package
from medfed.federation.policy import Policy
from medfed.federation.private import check_charge, limits_of, noise_shares
from medfed.federation.seal import SiteStore
from medfed.federation.step import Reply, Step
from medfed.federation.units import UNITS, Layout, count_units, lots_of
from medfed.privacy import Roster, public_hex
from medfed.study import Study

NOT_APPROVED_STEP = "the step is not among those that the site approved"
PACKAGE_CHANGED = "the package that holds the step is not the one that was approved: its files changed"
ALONE = "the question is put to this site alone, and its policy does not allow that"
TOO_MANY_MODELS = "more models would be opened on these rows than the study names"
ENOUGH_CALLS = "the site has answered as many calls of this study as it approved"
SUMS_IN_PLAIN = "this site sums in plain; a call that says otherwise is not answered"
SUMS_SECURELY = "sums of this study are secure at this site; a plain one is not answered"
OWN_INPUTS = "a secure sum asks all sites the same; inputs of one site's own would show its terms"
COUNTED_TOO_FINELY = "the study counts units in lots that are finer than this site's minimum cell allows; state that minimum as the study's own"
NO_COUNTS = "the study has an epsilon, and a count of units is exact: it is not made"
OTHER_ROSTER = (
    "the noise of secure sums is sized for all sites that this site approved, and the call is not over all of them and no "
    "other; approve again with the roster as it is"
)
STRANGER = (
    "the roster has a site, or a key of one, that this site did not approve; approve again with the roster as it is"
)


@dataclass(frozen=True)
class Access:
    """What a site brings to a study: its table, policy and signing key."""

    table: StudyTable
    policy: Policy
    key: Ed25519PrivateKey


class Admission:
    """Judges calls for the sites behind one store."""

    def __init__(
        self,
        sites: Mapping[str, Access],
        study: Study,
        store: SiteStore,
        execution: Execution,
        charge: Callable[[Call], Charge | None],
    ) -> None:
        self.sites = sites
        self.study = study
        self.store = store
        self.execution = execution
        self.charge = charge
        self.answered: dict[str, int] = {}
        self._keys = {site: access.key for site, access in sites.items()}
        self._approvals: dict[str, Approval | str] = {}
        self._approvals_at: int | None = None
        self._verdicts: dict[tuple[str, str, str, bool], str | None] = {}
        self._passed: dict[tuple[str, ...], set[str]] = {}
        self._rows_judged: dict[tuple[str, str, str], str | None] = {}
        self._packages: dict[tuple[str, str], Package] = {}
        self._rosters: dict[tuple[str, tuple[str, ...]], Roster] = {}

    # -- approvals -----------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read approvals again when another process wrote to the ledger: a revocation counts from the next call."""
        version = self.store.version()
        if version != self._approvals_at:
            self._approvals = approvals_for(self.store.db, self.study.hash, self._keys)
            self.answered = self.store.calls_answered(self.study.hash)
            self._approvals_at = version
            self.store.forget()
            self._verdicts.clear()
            self._rosters.clear()
            self.rows_changed()

    def rows_changed(self) -> None:
        """Judge rows anew: a cohort was added to those that were asked about."""
        self._passed.clear()
        self._rows_judged.clear()

    def approval(self, site: str) -> Approval | None:
        """The site's approval of the study as it was read last."""
        found = self._approvals[site]
        return None if isinstance(found, str) else found

    def not_approved(self, site: str, today: str) -> str | None:
        """Why the site does not answer this study at all now; asked first, before what is sealed is sent again."""
        approval = self._approvals[site]
        if isinstance(approval, str):
            return approval
        return "the site's approval of this study has ended" if today > approval.until else None

    def protection(self, site: str) -> Protection:
        """How this site's sums are protected: securely, where it approved a roster of at least three sites."""
        approval = self.approval(site)
        return "secure" if approval and site in secure_roster(self.study, approval.roster) else "plain"

    def roster(self, site: str, names: tuple[str, ...]) -> Roster:
        """The call's sites with the keys that this site approved. Raises PolicyViolation where it knows one of them not."""
        if (site, names) not in self._rosters:
            approval = self.approval(site)
            known = approval.roster if approval else {}
            if not set(names) <= set(known) or known.get(site) != public_hex(self._keys[site]):
                raise PolicyViolation(STRANGER)
            try:
                self._rosters[site, names] = Roster.of({name: known[name] for name in names})
            except PrivacyError as problem:
                raise PolicyViolation(f"secure sum: {problem}") from None
        return self._rosters[site, names]

    def roster_of(self, site: str, call: Call) -> Roster:
        """The roster of a secure call with the keys that this site approved. Raises PolicyViolation for one it does not know.

        Over how many sites noise is spread follows from the roster. So it is not the coordinator's to choose: a call that
        is charged names every site that this one approved.
        """
        roster = self.roster(site, call.roster)
        approval = self.approval(site)
        if call.charge is not None and (
            approval is None or set(call.roster) != set(secure_roster(self.study, approval.roster))
        ):
            raise PolicyViolation(OTHER_ROSTER)
        return roster

    def limits(self, site: str) -> Limits:
        """What the site lets studies spend, in all and on this one."""
        return limits_of(self.sites[site].policy, self._approvals[site], self.study)

    def count(self, sites: Sequence[str]) -> None:
        """So many more answers of these sites."""
        for site in sites:
            self.answered[site] = self.answered.get(site, 0) + 1

    # -- one call ------------------------------------------------------------------------------------------------------

    def verify(self, call: Call) -> tuple[Step, dict[str, Any]]:
        """What is the same for all sites: study, step, part, roster, inputs. Raises PolicyViolation."""
        if call.study != self.study.hash:
            raise PolicyViolation("this is not the study that the site approved: its hash differs")
        if (call.protection == "secure") != (call.phase in ("seal", "open")):
            # Under secure sums the rules for counts are judged on totals; claimed here, that would switch them off.
            raise PolicyViolation(SUMS_IN_PLAIN)
        if not RUN_PATH.fullmatch(call.run) or call.round < 0 or call.ordinal < 0:
            raise PolicyViolation("the call does not name a run, a round and an ordinal as medfed writes them")
        if not PART.fullmatch(call.part):
            raise PolicyViolation(f"there is no part {call.part!r}")
        if len(set(call.roster)) < len(call.roster):
            raise PolicyViolation("the roster names a site twice")
        if not set(call.roster) <= set(self.study.sites.invited):
            raise PolicyViolation("the roster names sites that the study does not invite")
        if call.step == UNITS:
            if self.study.privacy.epsilon is not None:
                raise PolicyViolation(NO_COUNTS)
            if call.protection != "secure" or call.part != "all" or call.inputs or call.variant is not None:
                raise PolicyViolation(NOT_APPROVED_STEP)
            return count_units, dict(self.study.sizes)
        if not any(isinstance(a, Approval) and call.step in a.steps for a in self._approvals.values()):
            raise PolicyViolation(NOT_APPROVED_STEP)  # before anything is imported under that name
        step = find_step(call.step)
        if call.variant is not None and call.variant not in self.study.variants:
            raise PolicyViolation(f"the approved study has no variant {call.variant!r}")
        if call.part.partition(":")[0] not in step.reads:
            raise PolicyViolation(f"the step may not read the part {call.part!r}")
        if call.protection == "secure" and not step.is_sum:
            raise PolicyViolation(SUMS_IN_PLAIN)
        check_charge(self.study, step, call.charge, noise_shares(call.protection, len(call.roster)))
        return step, {} if call.phase == "open" else check_inputs(step, call, self.study.sizes)

    def judge(
        self, call: Call, step: Step, sizes: Mapping[str, Any], own: Mapping[str, Own], today: str
    ) -> tuple[list[str], dict[str, str]]:
        """Which of these sites answer, and why the others don't."""
        names: list[str] = []
        refused: dict[str, str] = {}
        charge = self.charge(call)
        # A site that passed every rule for this kind of call passes again, unless its approvals or the day changed, but for
        # the rules that look at what the call brings.
        kind = (call.run.partition("/")[0], call.step, call.part, ",".join(call.roster), call.protection, today)
        passed = self._passed.setdefault(kind, set())
        every_call = charge is not None or counts_models(call, step) or not step.is_sum
        by_inputs: dict[float, str | None] = {}
        for site, mine in own.items():
            if site in passed and not mine.each and not every_call and self.answered.get(site, 0) < self._most(site):
                steepest = self.sites[site].policy.steepest
                if steepest not in by_inputs:
                    by_inputs[steepest] = self._refuses_inputs(site, call, step)
                if reason := by_inputs[steepest]:
                    refused[site] = reason
                    continue
                names.append(site)
                continue
            reason = self._refuses(site, call, step, mine, sizes, charge)
            if reason is not None:
                refused[site] = reason
                continue
            names.append(site)
            if not self.sites[site].policy.input_limits:
                passed.add(site)
        return names, refused

    def _refuses_inputs(self, site: str, call: Call, step: Step) -> str | None:
        """Why inputs that all sites get alike are refused, from public numbers and the policy's ``steepest`` alone."""
        try:
            self._check_inputs_of(step, call, Own())
            gate.check_steepness(step, call.inputs, self.study, self.sites[site].policy, call.variant)
        except PolicyViolation as problem:
            return str(problem)
        return None

    def _most(self, site: str) -> int:
        approval = self.approval(site)
        return approval.most_calls if approval else 0

    def _refuses(
        self, site: str, call: Call, step: Step, own: Own, sizes: Mapping[str, Any], charge: Charge | None
    ) -> str | None:
        access = self.sites[site]
        approval = self._approvals[site]
        assert isinstance(approval, Approval)
        if site not in call.roster:
            return "the site is asked but is not on the roster"
        if self.answered.get(site, 0) >= approval.most_calls:
            return ENOUGH_CALLS
        try:
            if reason := self._refuses_protection(site, call, step):
                return reason
        except MedfedError as problem:
            return str(problem)
        alone = set(call.roster) == {site}
        key = (site, call.run.partition("/")[0], call.step, alone)
        if key not in self._verdicts:
            self._verdicts[key] = self._refuses_step(access, approval, call, step, alone)
        if reason := self._verdicts[key]:
            return reason
        if charge is not None:
            self.store.heads()
            if self.store.spending.settle({site: 0.0}, call.study, charge, {site: self.limits(site)})[1]:
                return OVER_BUDGET
        try:
            rows_asked = self._check_inputs(access, call, step, own, sizes)
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

    def _refuses_protection(self, site: str, call: Call, step: Step) -> str | None:
        """A call asks for the protection that this site's sums have; figures of one site stand beside totals.

        Raises MedfedError for a roster or a part that is not known here.
        """
        secure = self.protection(site) == "secure"
        if call.protection == "secure":
            if not secure:
                return SUMS_IN_PLAIN
            sites = len(self.roster_of(site, call).sites)
            own, stricter = self.study.privacy.minimum_cell, gate.minimum_cell(self.sites[site].policy, self.study)
            if call.charge is None and (lots_of(stricter, sites) > lots_of(own, sites)).any():
                return COUNTED_TOO_FINELY  # the count comes before any rule that is judged on it
            return None
        reply = any(isinstance(kind, Reply) for kind in step.releases.values())
        if secure and not reply:
            return SUMS_SECURELY
        if call.charge is not None:
            return None  # sums that carry noise are not under the rules for exact ones
        openings, table = self.store.openings, self.sites[site].table
        patients = table.on(call.part).pseudonyms
        # Where a study sums nothing, no total follows; those of other studies are judged by what was seen of this site.
        if secure and self._sums(site) and not openings.any_total(site, patients):
            return TOTALS_FIRST
        return openings.refuses_own(site, patients, table.version, reply=reply)

    def _sums(self, site: str) -> bool:
        approval = self.approval(site)
        return approval is not None and any(find_step(name).is_sum for name in approval.steps)

    @staticmethod
    def _check_inputs_of(step: Step, call: Call, own: Own) -> None:
        if missing := set(step.takes) - set(call.inputs) - set(own.each):
            raise PolicyViolation(f"the call lacks the input {min(missing)!r}")
        for name in own.each:
            if name not in step.takes:
                raise PolicyViolation(f"the call brings an input {name!r} that the step does not declare")

    def _check_inputs(self, access: Access, call: Call, step: Step, own: Own, sizes: Mapping[str, Any]) -> int:
        """Hold all inputs of one site to declaration and policy; how many rows are asked about. Raises MedfedError."""
        self._check_inputs_of(step, call, own)
        if own.each and call.protection == "secure":
            raise PolicyViolation(OWN_INPUTS)
        for name, value in own.each.items():
            check_one_input(name, value, step, sizes, limit=step.takes[name].limit)
        gate.check_steepness(step, {**call.inputs, **own.each}, self.study, access.policy, call.variant)
        for name, limit in access.policy.input_limits.items():
            if name in step.takes:
                value = own.each[name] if name in own.each else call.inputs[name]
                check_one_input(name, value, step, sizes, limit=limit)
        return access.table.on(call.part).rows

    def _refuses_step(self, access: Access, approval: Approval, call: Call, step: Step, alone: bool) -> str | None:
        if call.step != UNITS and call.step not in approval.steps:
            return NOT_APPROVED_STEP
        if call.step != UNITS and not access.policy.allows_step(call.step):
            return "the site's policy does not allow this step"
        if approval.table_version != access.table.version:
            return "the study table is not the version that was approved; build, check and approve again"
        if call.step == UNITS:
            return None
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
        atoms = [access.table.on(part).pseudonyms for part in Layout(self.study, 1).parts()]
        return gate.judge_rows(
            access.table.on("all"),
            view,
            self.study,
            access.policy,
            call.protection,
            self.store.cohorts(site, view),
            [atoms, *self.store.openings.counted_apart(site)],
            self.store.remembered(site),
        )
