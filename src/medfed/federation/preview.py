"""What would leave a site if it approved a study: every step, release, size and rule, before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medfed.data.table import StudyTable
from medfed.federation.call import Protection
from medfed.federation.gate import SITE_TERMS, judge_rows, minimum_cell
from medfed.federation.packages import step_name
from medfed.federation.policy import Policy
from medfed.federation.step import Count, Reply, Step, Sum, shape_of
from medfed.study import Study

NOT_ALLOWED = "the site's policy does not allow this step"
NOT_LISTED = "the policy does not list {names} under replies"
TOO_MANY = "more values for each patient than the policy allows ({kind})"


@dataclass(frozen=True)
class ReleasePreview:
    """One array that a step would release. values: how many numbers; limit: the largest entry, as declared."""

    name: str
    kind: str
    shape: tuple[int, ...]
    values: int
    bytes: int
    limit: str


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

    @property
    def would_contribute(self) -> bool:
        return all(step.held_back is None for step in self.steps)


def preview(
    site: str, study: Study, table: StudyTable, policy: Policy, steps: Sequence[Step], protection: Protection = "plain"
) -> Preview:
    """Run the gate's rules over declarations and table, without running a step. Nothing leaves."""
    return Preview(
        site=site,
        study=study.name,
        hash=study.hash,
        table_version=table.version,
        patients=table.on("all").patients,
        minimum_cell=minimum_cell(policy, study),
        protection=protection,
        steps=tuple(_step(study, table, policy, step, protection) for step in steps),
    )


def _step(study: Study, table: StudyTable, policy: Policy, step: Step, protection: Protection) -> StepPreview:
    sizes: dict[str, Any] = {k: v[0] if isinstance(v, tuple) else v for k, v in study.sizes.items()}
    releases, amounts = [], {"sum": 0, "count": 0, "reply": 0}
    for name, declared in step.releases.items():
        shape = shape_of(declared.shape, sizes)
        values = 1
        for extent in shape:
            values *= extent
        kind, width, limit = _kind(declared, study)
        amounts[kind] += values
        releases.append(ReleasePreview(name, kind, shape, values, 8 * width * values, limit))
    view = table.on(step.reads[0])
    plain = protection == "plain" or not step.is_sum
    held = None
    full_name = step_name(step)
    if not policy.allows_step(full_name):
        held = NOT_ALLOWED
    elif unlisted := [r.name for r in releases if r.kind == "reply" and r.name not in policy.replies]:
        held = NOT_LISTED.format(names=", ".join(unlisted))
    elif not policy.site_terms_visible and any(
        isinstance(declared, Reply) and declared.site_terms for declared in step.releases.values()
    ):
        held = SITE_TERMS
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


def _too_many(amounts: Mapping[str, int], policy: Policy, patients: int) -> list[str]:
    """The kinds of which a release has more values for each patient than the policy allows."""
    return [kind for kind, amount in amounts.items() if amount > policy.values_per_patient.get(kind, 0.0) * patients]  # type: ignore[call-overload]


def _kind(declared: Sum | Count | Reply, study: Study) -> tuple[str, int, str]:
    if isinstance(declared, Reply):
        return "reply", 1, f"{declared.limit:g}"
    limbs = declared.limbs(rows_at_most=study.rows_at_most, sites_at_most=study.sites_at_most)
    if isinstance(declared, Count):
        return "count", limbs, "patients"
    return "sum", limbs, f"{declared.limit:g}" if declared.limit is not None else f"{declared.limit_per_row:g} a row"
