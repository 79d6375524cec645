"""The one door of a site, its mathematics: what may be seen of this table, and whether a release keeps to its declaration.

Pure functions. The rules for counts are judged where a value becomes visible: for a plain sum at this site's own
counts, since the coordinator sees each site's terms; for a secure one at the roster's (``units``). Reasons are sentences
of ours that quote no count.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.table import View
from medfed.errors import PolicyViolation
from medfed.federation.call import Protection
from medfed.federation.number_levels import number_levels
from medfed.federation.policy import Policy
from medfed.federation.remembered import Cells, shows_small_cell
from medfed.federation.ring import encode
from medfed.federation.site import mixed
from medfed.federation.step import Count, Reply, Step, Sum, shape_of
from medfed.study import Study

FloatArray = NDArray[np.float64]

FEW_PATIENTS = "the site has fewer patients in this study than may be seen"
SMALL_CELL = "a count of patients that the sums would show is under the minimum cell"
SMALL_DIFFERENCE = (
    "these patients and those of an earlier question differ by a group under the minimum cell, "
    "which a subtraction would show"
)
WRONG_SHAPE = "the step returned something else than it declares"
OVER_LIMIT = "a released value is not finite or passes the limit that its step declares"
SMALL_COUNT = "a released count is under the minimum cell or is not a count"
TOO_MANY_VALUES = "the release has more values for each patient than the policy allows"
CONCENTRATED = "the released sums rest on fewer patients than may be seen; the question isolates some of them"
LIGHT = (
    "under these inputs this site's patients weigh next to nothing: the total would be that of a few patients elsewhere"
)
TOO_STEEP = "the model that the call brings is so steep that it can isolate patients"
PATIENT_ROW = "the release holds one patient's row"
SITE_TERMS = "estimates of this site alone are not to be seen, says its policy (site_terms_visible)"
REPLY_NOT_LISTED = "the policy does not list this figure among those that may be seen for this site alone"

_ROWS_WATCHED = 100_000  # a sum over more rows than this is nobody's row
LARGEST_FEATURE = 1e3
# Of so many patients one has to count in full: a model that nearly separates the outcomes leaves a tenth of the weight.
ORDINARY_SHARE = 20


@dataclass(frozen=True)
class RestsOn:
    """What the steps of S sites state of their weights; see ``Out``.

    effective: (S, groups, 2), effective patients and of how many (infinity: of all); ordinary: (S,), patients of ordinary weight.
    """

    effective: FloatArray | None = None
    ordinary: FloatArray | None = None


def minimum_cell(policy: Policy, study: Study) -> int:
    """The stricter of the site's and the study's minimum."""
    return max(policy.minimum_cell, study.privacy.minimum_cell)


def declared_ranges(study: Study) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Low and high of each feature (p,), and which of them are numbers; 0 and 1 for intercept and indicators."""
    columns = study.design.columns
    numeric = np.array([column.kind == "number" for column in columns])
    low = np.array([column.low if column.kind == "number" else 0.0 for column in columns], dtype=np.float64)
    high = np.array([column.high if column.kind == "number" else 1.0 for column in columns], dtype=np.float64)
    return low, high, numeric


def check_steepness(
    step: Step, inputs: Mapping[str, Any], study: Study, policy: Policy, variant: str | None = None
) -> None:
    """Refuse a model so steep that sums turn into thresholds, from public numbers only. Raises PolicyViolation.

    Two thresholds that differ a little differ by the patients between them. Bounded are, over the declared ranges, the
    standardised features and what each coefficient can add to the linear predictor.
    """
    if not any(declared.meaning == "scale" for declared in step.takes.values()):
        return
    if not np.all(_largest_features(step, inputs, study, variant) <= LARGEST_FEATURE):
        raise PolicyViolation("the scaling that the call brings blows features up: it can isolate patients")
    if not np.all(reach_of(step, inputs, study, variant) <= policy.steepest):
        raise PolicyViolation(TOO_STEEP)


def _largest_features(step: Step, inputs: Mapping[str, Any], study: Study, variant: str | None) -> FloatArray:
    """How large each scaled feature can be over its declared range, (p,)."""
    named = {declared.meaning: name for name, declared in step.takes.items() if declared.meaning}
    low, high, _ = step.ranges(study, variant) if step.ranges else declared_ranges(study)
    with np.errstate(all="ignore"):
        scale = np.abs(np.asarray(inputs[named["scale"]], dtype=np.float64))
        centre = np.asarray(inputs[named["centre"]], dtype=np.float64) if "centre" in named else np.zeros_like(scale)
        return np.asarray(np.maximum(np.abs(low - centre), np.abs(high - centre)) / scale)


def reach_of(step: Step, inputs: Mapping[str, Any], study: Study, variant: str | None = None) -> FloatArray:
    """How much each coefficient can add to the linear predictor over its feature's declared range, (models, p).

    Of every model that the call brings: one may stand for the arm, and others for the outcome. A recalibration line of
    slope 2 and less changes nothing, a steeper one makes the model as much steeper.
    """
    outcome = study.variables.get(study.outcome)
    steep = {"coefficients"} | ({"outcome coefficients"} if outcome is None or outcome.type == "code" else set())
    largest = _largest_features(step, inputs, study, variant)
    line = next((inputs[name] for name, declared in step.takes.items() if declared.meaning == "line"), (0.0, 1.0))
    largest = largest * max(1.0, float(np.abs(line[1])) / 2.0)
    models = [inputs[name] for name, declared in step.takes.items() if declared.meaning in steep]
    features = largest.shape[-1]
    with np.errstate(all="ignore"):
        rows = [(np.abs(np.asarray(m, dtype=np.float64)) * largest).reshape(-1, features) for m in models]
        return np.concatenate([np.zeros((0, features)), *rows])


def _factors(view: View, study: Study, only: Sequence[str] | None = None) -> dict[str, tuple[NDArray[np.int64], int]]:
    """Every variable whose products are counts. Name -> codes, levels. only: look at no other numbers than these.

    Codes; of numbers: known or missing, and their values where these are few, else the commonest value against the rest.
    """
    factors = {}
    numbers = number_levels(
        view, [n for n in study.counted if study.variables[n].type == "number" and (only is None or n in only)]
    )
    for name in study.counted:
        if study.variables[name].type == "number" and name not in numbers:
            continue
        if name not in numbers:
            codes = np.asarray(view.arrays(name)[0]).astype(np.int64)
            levels = len(study.variables[name].codes or ())
            factors[name] = (np.where(codes < 0, levels, codes), levels + 1)
            continue
        found = numbers[name]
        if not (found.missing or found.values):
            continue
        values = np.concatenate([piece[0] for piece in view.batches([name])])
        if found.missing:
            factors[f"{name} known"] = (np.isfinite(values).astype(np.int64), 2)
        if found.all_values:
            codes = np.full(len(values), len(found.values), dtype=np.int64)
            for index, value in enumerate(found.values):
                codes[values == value] = index
            factors[name] = (codes, len(found.values) + 1)
        elif found.values:
            factors[name] = ((values == found.values[0]).astype(np.int64), 2)
    # Of two times the sum of follow-up is a count; that many are followed to one end is no secret.
    if study.time and (only is None or "time" in only) and (found := number_levels(view, ["time"])["time"]).all_values:
        (times,) = view.arrays("time")
        factors["time"] = (np.searchsorted(found.values, times), len(found.values) + 1)
    return factors


def cells_of(
    view: View,
    study: Study,
    factors: Mapping[str, tuple[NDArray[np.int64], int]] | None = None,
    *,
    a_row_a_patient: bool | None = None,
) -> Cells:
    """Who of these rows is in which cell of the study. factors, a_row_a_patient: where they are known already."""
    found = _factors(view, study) if factors is None else factors
    told = tuple(name for name in (study.outcome, study.arm) if name is not None and name in found)
    single = view.patients == view.rows if a_row_a_patient is None else a_row_a_patient
    return Cells(np.asarray(view.row_pseudonyms), found, told, single)


def splits_safely(view: View, study: Study, cuts: Sequence[int], minimum: int) -> bool:
    """Whether sums over the view's first rows, up to any of the ``cuts``, and their differences show no small count."""
    few: list[str] | None = None
    for first, last in pairwise((0, *cuts, view.rows)):
        piece = view.between(first, last)
        factors = _factors(piece, study, few)
        single = view.patients == view.rows
        patients = piece.rows if single else piece.patients
        cells = cells_of(piece, study, factors, a_row_a_patient=single)
        if patients < minimum or cells.has_small(slice(None), minimum):
            return False
        # A number of many values in the first, random share takes many in the others.
        few = [name.removesuffix(" known") for name in factors] if few is None else few
    return True


def judge_rows(
    whole: View,
    view: View,
    study: Study,
    policy: Policy,
    protection: Protection,
    earlier: Sequence[NDArray[np.uint64]],
    counted: Sequence[Sequence[NDArray[np.uint64]]] = (),
    remembered: Sequence[Cells] = (),
) -> str | None:
    """May sums over this part of the table be seen at all? None, or the reason why not.

    whole: all rows of the table; view: the part that is asked for. earlier: row sets (sorted pseudonyms) that this
    site has answered about before; remembered: the tables they were of. A set that differs from one of them by a group
    that may not be seen is refused, in a secure sum as well: at the other sites the two sets may be the same.
    counted: for this study, and for each that was counted before, the row sets of which every part of its table is made.
    Where sums are secure, all of them hold on totals or nothing of that study was opened: what lies between two sets that
    are made of them may be seen.
    """
    minimum = minimum_cell(policy, study)
    others = [*earlier, *_unions(view.pseudonyms, earlier)]
    if protection == "secure":
        known = [atoms for atoms in counted if _is_made_of(view.pseudonyms, atoms)] if others else []
        others = [other for other in others if not any(_is_made_of(other, atoms) for atoms in known)]
    elif view.patients < max(policy.minimum_patients, minimum):
        return FEW_PATIENTS
    if any(_differs_by_few(view.pseudonyms, other, minimum) for other in others):
        return SMALL_DIFFERENCE
    if protection == "secure" and not others:
        return None
    cells = cells_of(whole, study)
    own = cells if view.rows == whole.rows else cells_of(view, study)
    if protection == "plain" and own.has_small(slice(None), minimum):
        return SMALL_CELL
    groups = [group for other in others for group in _differences(view.pseudonyms, other) if len(group)]
    return SMALL_DIFFERENCE if any(shows_small_cell(g, [cells, *remembered], minimum) for g in groups) else None


def _differences(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    return np.setdiff1d(one, other, assume_unique=True), np.setdiff1d(other, one, assume_unique=True)


def _differs_by_few(one: NDArray[np.uint64], other: NDArray[np.uint64], minimum: int) -> bool:
    return any(0 < len(group) < minimum for group in _differences(one, other))


def _is_made_of(patients: NDArray[np.uint64], atoms: Sequence[NDArray[np.uint64]]) -> bool:
    """Whether a row set is some of these, each of them whole."""
    shared = [len(np.intersect1d(patients, atom, assume_unique=True)) for atom in atoms]
    whole = all(count in (0, len(atom)) for count, atom in zip(shared, atoms, strict=True))
    return whole and sum(shared) == len(patients)


def _unions(own: NDArray[np.uint64], earlier: Sequence[NDArray[np.uint64]], most: int = 32) -> list[NDArray[np.uint64]]:
    """Unions of earlier row sets that don't overlap and lie within ``own``, or with it within an earlier one.

    Their sums add up, so that women, men and everyone differ by those of unknown sex. Greedy, largest first.
    """
    found = []
    sets = sorted(earlier, key=len, reverse=True)[:most]
    inside = [other for other in sets if len(np.setdiff1d(other, own, assume_unique=True)) == 0]
    union = np.zeros(0, dtype=np.uint64)
    for other in inside:
        if len(np.intersect1d(union, other, assume_unique=True)) == 0:
            union = np.union1d(union, other)
    if len(inside) > 1:
        found.append(union)
    for whole in sets:
        if len(np.setdiff1d(own, whole, assume_unique=True)):
            continue
        rest = np.setdiff1d(whole, own, assume_unique=True)
        for other in sets:
            if other is not whole and len(other) and len(np.setdiff1d(other, rest, assume_unique=True)) == 0:
                rest = np.setdiff1d(rest, other, assume_unique=True)
        # What is left of the earlier set, put to the view itself, is what a subtraction would show.
        if len(rest):
            found.append(np.union1d(own, rest))
    return found


def watched_rows(view: View) -> frozenset[int]:
    """A 64-bit key of every patient's feature row: a release that holds one of them is held back (a tripwire)."""
    if view.rows > _ROWS_WATCHED:
        return frozenset()
    return frozenset(key for (features,) in view.batches(["features"]) for key in _row_keys(features).tolist())


def _row_keys(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """One key a row (n,) of rows (n, p), from their bits: splitmix64 of each column, added up."""
    bits: Any = np.ascontiguousarray(rows, dtype=np.float64).view(np.uint64)
    with np.errstate(over="ignore"):
        return np.asarray(mixed(bits + np.arange(bits.shape[1], dtype=np.uint64)).sum(1, dtype=np.uint64))


def check_release(
    step: Step,
    release: Mapping[str, NDArray[np.float64]],
    *,
    sizes: Mapping[str, Any],
    study: Study,
    rows: NDArray[np.int64],
    patients: NDArray[np.int64],
    policies: Sequence[Policy],
    rests_on: RestsOn,
    row_keys: Sequence[frozenset[int]],
    protection: Protection = "plain",
    noisy: bool = False,
) -> tuple[list[str | None], dict[str, NDArray[Any]], int]:
    """Hold stacked releases (S, ...) of S sites to declaration and policies; encode sums for the ring.

    Where sums are secure, small counts and values for each patient are judged on totals, before anything is opened.
    noisy: of a charged call. What protects is the noise, so the rules for exact sums are not asked, and their answers,
    which depend on the data, are not told; bounded releases come as integers of the ring and stay as they are.

    Returns a reason or None a site, the coded arrays (zeros where a site is held back), and values a release.
    """
    count = len(rows)
    plain = protection == "plain"
    reasons: list[str | None] = [None] * count

    def hold(mask: NDArray[np.bool_], reason: str) -> None:
        for index in np.flatnonzero(mask):
            reasons[index] = reasons[index] or reason

    minimum = np.array([minimum_cell(policy, study) for policy in policies])
    amounts = {"sum": 0, "count": 0, "reply": 0}
    coded: dict[str, NDArray[Any]] = {}
    for name, declared in step.releases.items():
        values = release[name]
        if noisy and step.is_bounded:
            amounts["sum"] += math.prod(shape_of(declared.shape, sizes))
            coded[name] = values
            continue
        flat = values.reshape(count, -1)
        if isinstance(declared, Sum):
            amounts["sum"] += flat.shape[1]
            limit = declared.at_most(rows)
        elif isinstance(declared, Count):
            amounts["count"] += flat.shape[1]
            limit = patients.astype(np.float64)
            small = (flat < minimum[:, None]) & (minimum[:, None] > 1) & (declared.zero_is_small | (flat != 0))
            hold(((small & plain) | (flat != np.rint(flat))).any(1), SMALL_COUNT)
        else:
            amounts["reply"] += flat.shape[1]
            limit = declared.limit
            hold(patients < np.maximum(declared.minimum_patients, 1) * (minimum > 1), FEW_PATIENTS)
            hold(np.array([name not in policy.replies for policy in policies]), REPLY_NOT_LISTED)
            if declared.site_terms:
                hold(np.array([not policy.site_terms_visible for policy in policies]), SITE_TERMS)
        largest = np.abs(flat).max(1, initial=0.0)
        hold(~(largest <= limit), OVER_LIMIT)
        if not noisy and values.ndim >= 2 and values.shape[-1] == sizes.get("p"):
            hold(_holds_row(values, row_keys), PATIENT_ROW)
        coded[name] = values
    for kind, amount in amounts.items():
        allowed = np.array([policy.values_per_patient.get(kind, 0.0) for policy in policies])  # type: ignore[call-overload]
        if amount and plain and not noisy:
            hold(amount > allowed * patients, TOO_MANY_VALUES)
    if rests_on.effective is not None and not noisy:
        stated = rests_on.effective
        needed = np.array([max(policy.minimum_patients, 1) for policy in policies], dtype=np.float64)[:, None]
        least = np.ones((count, 1))
        if not plain:
            # A small site hides among the others, but no patient of it may stand out from its own.
            of = np.minimum(stated[..., 1], patients[:, None])
            needed, least = np.minimum(needed, of / 2), np.minimum(least, of)
        enough = stated[..., 0] >= np.where(minimum[:, None] > 1, needed, least) - 1e-9
        hold(np.asarray(~enough.all(1)), CONCENTRATED)
    if rests_on.ordinary is not None and not noisy and not plain:
        least = np.array([max(policy.minimum_patients, 1) for policy in policies]) * (minimum > 1)
        hold(~(rests_on.ordinary >= np.minimum(least, patients // ORDINARY_SHARE) - 1e-9), LIGHT)
    bad = np.array([reason is not None for reason in reasons])
    for name, declared in step.releases.items():
        values = coded[name]
        if noisy and step.is_bounded:
            continue
        if bad.any():
            values = np.where(bad.reshape((count,) + (1,) * (values.ndim - 1)), 0.0, values)
        if isinstance(declared, Reply):
            coded[name] = np.ascontiguousarray(values)
        else:
            most = {"rows_at_most": study.rows_at_most, "sites_at_most": study.sites_at_most}
            coded[name] = encode(values, declared.limbs(**most), declared.bits(**most))
    return reasons, coded, sum(amounts.values())


def _holds_row(values: NDArray[np.float64], row_keys: Sequence[frozenset[int]]) -> NDArray[np.bool_]:
    keys = _row_keys(values.reshape(-1, values.shape[-1])).reshape(len(values), -1).tolist()
    return np.array([not own.isdisjoint(released) for own, released in zip(row_keys, keys, strict=True)], dtype=bool)


def only(kept: Any, good: NDArray[np.intp]) -> Any:
    """What belongs to the sites at these places: of a list, or of arrays by name with a leading axis of sites."""
    if kept is None:
        return None
    if isinstance(kept, list):
        return [kept[i] for i in good]
    return {name: np.asarray(value)[good] for name, value in kept.items()}


class NotAsDeclared(ValueError):
    """A step returned something else than it declares."""


def check_declared(
    step: Step, release: Mapping[str, Any], sizes: Mapping[str, Any], rows: int
) -> dict[str, NDArray[np.float64]]:
    """One site's release as float arrays of exactly the declared names and shapes; ValueError otherwise.

    A bounded release has a row of terms for each of the site's rows in front.
    """
    if set(release) != set(step.releases):
        raise NotAsDeclared("undeclared or missing release")
    arrays = {}
    for name, declared in step.releases.items():
        value = np.asarray(release[name])
        wanted = shape_of(declared.shape, sizes)
        if isinstance(declared, Sum) and declared.unit_bound is not None:
            wanted = (rows, *wanted)
        if value.dtype.kind not in "fiub" or value.shape != wanted:
            raise NotAsDeclared(f"release {name!r} has the wrong type or shape")
        arrays[name] = value.astype(np.float64)
    return arrays
