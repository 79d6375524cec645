"""What would leave a site if it approved a study: every step, release, size and rule, before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medfed.data.table import StudyTable
from medfed.federation.admission import COUNTED_TOO_FINELY
from medfed.federation.budget import OVER_BUDGET, Charge
from medfed.federation.call import Protection
from medfed.federation.cost import Outlook
from medfed.federation.gate import SITE_TERMS, judge_rows, minimum_cell
from medfed.federation.packages import step_name
from medfed.federation.policy import Policy
from medfed.federation.private import NOT_BOUNDED, release_deviation
from medfed.federation.step import Count, Reply, Step, Sum, shape_of
from medfed.federation.units import lots_of
from medfed.study import Study

NOT_ALLOWED = "the site's policy does not allow this step"
NOT_LISTED = "the policy does not list {names} under replies"
TOO_MANY = "more values for each patient than the policy allows ({kind})"


@dataclass(frozen=True)
class ReleasePreview:
    """One array that a step would release. values: how many numbers; limit: the largest entry, as declared.

    noise: standard deviation of the noise that this site adds to each number, in a study with an epsilon.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    values: int
    bytes: int
    limit: str
    noise: float | None = None


@dataclass(frozen=True)
class StepPreview:
    """One step: what it reads, takes, keeps and releases, and whether the gate would let it through today."""

    step: str
    meaning: str
    reads: tuple[str, ...]
    takes: tuple[str, ...]
    keeps: tuple[str, ...]
    releases: tuple[ReleasePreview, ...]
    values_per_patient: float
    held_back: str | None


@dataclass(frozen=True)
class Preview:
    """The whole study at one site."""

    site: str
    study: str
    hash: str
    table_version: str
    patients: int
    minimum_cell: int
    protection: str
    steps: tuple[StepPreview, ...]
    epsilon: float | None = None
    delta: float | None = None
    budget: float | None = None
    shares: int = 1
    outlook: Outlook | None = None

    @property
    def would_contribute(self) -> bool:
        return all(step.held_back is None for step in self.steps)


def preview(
    site: str,
    study: Study,
    table: StudyTable,
    policy: Policy,
    steps: Sequence[Step],
    protection: Protection = "plain",
    charges: Mapping[str, Charge] | None = None,
    shares: int = 1,
    outlook: Outlook | None = None,
) -> Preview:
    """Run the gate's rules over declarations and table, without running a step. Nothing leaves.

    shares: over how many sites the noise of a sum is spread (``noise_shares``). charges: what each step's call costs and how much noise it carries, in a study with an epsilon (``charges_of``).
    outlook: how far the budget carries a whole run (``cost.outlook``).
    """
    return Preview(
        site=site,
        study=study.name,
        hash=study.hash,
        table_version=table.version,
        patients=table.on("all").patients,
        minimum_cell=minimum_cell(policy, study),
        protection=protection,
        steps=tuple(_step(study, table, policy, step, protection, charges or {}, shares, outlook) for step in steps),
        epsilon=study.privacy.epsilon,
        delta=study.privacy.delta,
        budget=policy.budget if study.privacy.epsilon is not None else None,
        shares=shares,
        outlook=outlook,
    )


def _step(
    study: Study,
    table: StudyTable,
    policy: Policy,
    step: Step,
    protection: Protection,
    charges: Mapping[str, Charge],
    shares: int,
    outlook: Outlook | None,
) -> StepPreview:
    sizes: dict[str, Any] = {k: v[0] if isinstance(v, tuple) else v for k, v in study.sizes.items()}
    releases, amounts = [], {"sum": 0, "count": 0, "reply": 0}
    for name, declared in step.releases.items():
        shape = shape_of(declared.shape, sizes)
        values = 1
        for extent in shape:
            values *= extent
        kind, width, limit = _kind(declared, study)
        amounts[kind] += values
        noise = None
        if (charge := charges.get(step_name(step))) is not None and step.is_bounded:
            noise = release_deviation(step, name, charge, shares)
        releases.append(ReleasePreview(name, kind, shape, values, 8 * width * values, limit, noise))
    view = table.on(step.reads[0])
    plain = protection == "plain" or not step.is_sum
    held = None
    full_name = step_name(step)
    if not policy.allows_step(full_name):
        held = NOT_ALLOWED
    elif study.privacy.epsilon is not None:
        # What protects a noisy sum is its noise: the rules for counts are not asked.
        if not (step.is_bounded or step.is_metered):
            held = NOT_BOUNDED
        elif study.privacy.epsilon > policy.budget if outlook is None else not (outlook.holds or outlook.by_study):
            held = OVER_BUDGET
    elif unlisted := [r.name for r in releases if r.kind == "reply" and r.name not in policy.replies]:
        held = NOT_LISTED.format(names=", ".join(unlisted))
    elif not policy.site_terms_visible and any(
        isinstance(declared, Reply) and declared.site_terms for declared in step.releases.values()
    ):
        held = SITE_TERMS
    elif not plain and _counted_too_finely(study, policy):
        held = COUNTED_TOO_FINELY
    elif plain and (over := _too_many(amounts, policy, view.patients)):
        held = TOO_MANY.format(kind=over[0])
    else:
        held = judge_rows(table.on("all"), view, study, policy, "plain" if plain else "secure", ())
    return StepPreview(
        step=full_name,
        meaning=(step.function.__doc__ or "").strip().split("\n")[0],
        reads=step.reads,
        takes=tuple(
            f"{name} ({declared.shape or 'one number'}, at most {min(declared.limit, policy.input_limits.get(name, declared.limit)):g})"
            for name, declared in step.takes.items()
        ),
        keeps=tuple(step.keeps.shapes) if step.keeps else (),
        releases=tuple(releases),
        values_per_patient=sum(amounts.values()) / max(view.patients, 1),
        held_back=held,
    )


def _counted_too_finely(study: Study, policy: Policy) -> bool:
    sites = len(study.sites.invited)
    return bool((lots_of(minimum_cell(policy, study), sites) > lots_of(study.privacy.minimum_cell, sites)).any())


def _too_many(amounts: Mapping[str, int], policy: Policy, patients: int) -> list[str]:
    """The kinds of which a release has more values for each patient than the policy allows."""
    return [kind for kind, amount in amounts.items() if amount > policy.values_per_patient.get(kind, 0.0) * patients]  # type: ignore[call-overload]


def _kind(declared: Sum | Count | Reply, study: Study) -> tuple[str, int, str]:
    if isinstance(declared, Reply):
        return "reply", 1, f"{declared.limit:g}"
    limbs = declared.limbs(rows_at_most=study.rows_at_most, sites_at_most=study.sites_at_most)
    if isinstance(declared, Count):
        return "count", limbs, "patients"
    if declared.unit_bound is not None:
        return "sum", limbs, f"{declared.unit_bound:g} a patient"
    return "sum", limbs, f"{declared.limit:g}" if declared.limit is not None else f"{declared.limit_per_row:g} a row"
