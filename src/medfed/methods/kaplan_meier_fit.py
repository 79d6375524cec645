"""What a Kaplan-Meier run found, as a statistician reads it: curves with limits and bands, medians, RMST, tests.

Made from a run's result and its study; nothing here asks a site.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from medfed.errors import StudyError
from medfed.language import Translate, number, translator
from medfed.methods.cox_fit import p_text
from medfed.methods.survival_curves import (
    Curve,
    band,
    curve_of,
    lowest_survival,
    pointwise,
    quantile_time,
    restricted_mean,
)
from medfed.methods.text_table import text_table
from medfed.methods.time_grid import cell_ends
from medfed.study import Study

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error and limits."""

    value: float
    standard_error: float
    low: float
    high: float

    @property
    def p(self) -> float:
        """Two-sided P value against 0."""
        return float(2 * norm.sf(abs(self.value) / self.standard_error)) if self.standard_error > 0 else float("nan")


@dataclass(frozen=True)
class KaplanMeierFit:
    """result: of ``kaplan_meier.KaplanMeier``."""

    study: Study
    result: Mapping[str, Any]

    @property
    def groups(self) -> tuple[str, ...]:
        """Levels of the groups, or one empty name where there is one curve."""
        return tuple(self.result["levels"])

    @property
    def _time(self) -> Any:
        return self.study.variables[self.study.time or ""]

    def curve(self, group: str = "") -> Curve:
        """One group's curve. StudyError where there is no such group."""
        if group not in self.groups:
            raise StudyError(f"there is no group {group!r}; choose {', '.join(map(repr, self.groups))}")
        found = self.result["curves"][str(self.groups.index(group))]
        time = cell_ends(self.study, found["cuts"])
        return curve_of(time, np.asarray(found["events"]), np.asarray(found["censored"]))

    def merged(self, group: str = "") -> list[bool]:
        """Which of a curve's cells are several declared intervals (cells,)."""
        cuts = np.asarray(self.result["curves"][str(self.groups.index(group))]["cuts"])
        return [bool(width > 1) for width in np.diff(cuts, prepend=0)]

    def lowest(self, group: str = "") -> FloatArray:
        """How low a curve on the declared intervals can be at the end of each cell (cells,); ``curve`` is how high."""
        cuts = np.asarray(self.result["curves"][str(self.groups.index(group))]["cuts"])
        return lowest_survival(self.curve(group), np.diff(cuts, prepend=0))

    def share_left(self, group: str = "") -> FloatArray:
        """``lowest`` over the curve (cells,): limits of the lowest curve are lower by this share, as it is itself."""
        survival, lowest = self.curve(group).survival, self.lowest(group)
        return np.divide(lowest, survival, out=np.zeros(len(lowest)), where=survival > 0)

    def name(self, group: str, lang: str = "en") -> str:
        """A group as people read it: the meaning of its code."""
        codes = self.study.variables[self.result["by"]].codes or {} if self.result["by"] else {}
        _ = translator(lang)
        if not group:
            return _("All patients")
        return self.study.text(codes[group], lang) if group in codes else _("unknown")

    def to_frame(self, level: float = 0.95, transform: str = "log-log", bands: str | None = None) -> pd.DataFrame:
        """One row a group and cell: time, at_risk, events, censored, survival with limits, Nelson-Aalen's hazard.

        lowest: how low the curve on the declared intervals can be, where cells were merged.

        bands: "hall-wellner" or "equal-precision" adds limits that hold the whole curve at once.
        """
        frames = []
        for group in self.groups:
            curve = self.curve(group)
            low, high = pointwise(curve, level, transform)
            columns = {
                "group": group,
                "time": curve.time,
                "at_risk": curve.at_risk,
                "events": curve.events,
                "censored": curve.censored,
                "survival": curve.survival,
                "lower": low,
                "upper": high,
                "lowest": self.lowest(group),
                "cumulative_hazard": curve.hazard,
                "cumulative_hazard_se": np.sqrt(curve.hazard_variance),
            }
            if bands is not None:
                columns["band_lower"], columns["band_upper"] = band(curve, bands, level, transform)
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    def median(self, group: str = "", level: float = 0.95, transform: str = "log-log") -> Estimate:
        """Median time with limits, where those of S cross one half (Brookmeyer and Crowley 1982); infinite if never."""
        curve = self.curve(group)
        low, high = pointwise(curve, level, transform)
        times = [quantile_time(_with_survival(curve, limit)) for limit in (low, high)]
        return Estimate(quantile_time(curve), float("nan"), times[0], times[1])

    def median_range(self, group: str = "", level: float = 0.95) -> tuple[FloatArray, FloatArray]:
        """Between which times the median on the declared intervals lies, and its limits: two times each.

        Where cells were merged ``median`` is the end of one, the latest time that is possible.
        """
        curve, lowest = self.curve(group), self.lowest(group)
        low, high = pointwise(curve, level)
        return (
            np.array([self._earliest(group, lowest), quantile_time(curve)]),
            np.array([self._earliest(group, low * self.share_left(group)), quantile_time(_with_survival(curve, high))]),
        )

    def _earliest(self, group: str, survival: FloatArray) -> float:
        """The first declared time at which a curve with these values at the ends of its cells can have come to one half."""
        reached = np.flatnonzero(survival <= 0.5 + 1e-12)
        if not len(reached):
            return float("inf")
        cuts = np.asarray(self.result["curves"][str(self.groups.index(group))]["cuts"])
        first = int(cuts[reached[0] - 1]) if reached[0] else 0
        return float(cell_ends(self.study, np.array([first + 1]))[0])

    def restricted_mean_range(self, group: str = "", level: float = 0.95) -> tuple[FloatArray, FloatArray]:
        """The same of the restricted mean up to the end of the grid."""
        mean = self.restricted_mean(group, level=level)
        change = float(self.result["curves"][str(self.groups.index(group))]["grid_changes"][2])
        less, more = max(change, 0.0), max(-change, 0.0)
        return np.array([mean.value - less, mean.value + more]), np.array([mean.low - less, mean.high + more])

    def restricted_mean(self, group: str = "", until: float | None = None, level: float = 0.95) -> Estimate:
        """Mean time to the event up to ``until`` (the end of the grid), in the time's unit. StudyError beyond the grid."""
        end = self._until(until)
        value, error = restricted_mean(self.curve(group), end)
        reach = float(norm.ppf(0.5 + level / 2)) * error
        return Estimate(value, error, value - reach, value + reach)

    def restricted_mean_difference(
        self, first: str, second: str, until: float | None = None, level: float = 0.95
    ) -> Estimate:
        """Restricted mean of ``first`` less that of ``second``."""
        one, other = self.restricted_mean(first, until), self.restricted_mean(second, until)
        error = float(np.hypot(one.standard_error, other.standard_error))
        reach = float(norm.ppf(0.5 + level / 2)) * error
        value = one.value - other.value
        return Estimate(value, error, value - reach, value + reach)

    def _until(self, until: float | None) -> float:
        last = float(self._time.last_time)
        if until is None:
            return last
        if not 0 < until <= last:
            raise StudyError(
                f"the restricted mean is cut at a time above 0 and up to {last:g} {self._time.unit}, not {until:g}"
            )
        return until

    def summary(self, lang: str = "en") -> str:
        """The curves as text: patients, events, median and restricted mean of each group; tests between them."""
        _ = translator(lang)
        lines = [_("Kaplan-Meier, on the time grid"), ""]
        lines += [f"{name}: {value}" for name, value in self._counted(_)]
        lines += ["", text_table(*self.group_table(lang)), ""]
        lines += [f"{name}: {value}" for name, value in (*self._tests(_), *self._grid(_))]
        return "\n".join(lines)

    def facts(self, lang: str = "en") -> list[tuple[str, str]]:
        """What stands beside the curves, as names and values: who was counted, tests, what merging changes."""
        _ = translator(lang)
        return [*self._counted(_), *self._tests(_), *self._grid(_)]

    def _counted(self, _: Translate) -> list[tuple[str, str]]:
        found = [(_("Sites counted"), number(len(self.result["sites"]), 0))]
        if self.result["held_back"]:
            found.append((_("Not counted"), ", ".join(self.result["held_back"])))
        return found

    def group_table(self, lang: str = "en") -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Heads and one row a group: patients, events, cells, median and restricted mean with intervals.

        Where merging leaves open where a median or mean lies, both ends are given, and its interval holds both.
        """
        _ = translator(lang)
        unit = self._time.unit
        heads = (
            "",
            _("Patients"),
            _("Events"),
            _("Cells of the grid"),
            _("Median ({unit})").format(unit=unit),
            _("95% interval"),
            _("Mean up to {until} {unit}").format(until=f"{self._time.last_time:g}", unit=unit),
            _("95% interval"),
        )
        rows: list[tuple[str, ...]] = []
        for group in self.groups:
            curve = self.curve(group)
            counts = (number(float(curve.at_risk[0]), 0), number(float(curve.events.sum()), 0), str(len(curve.time)))
            # A curve of one cell falls at the end of follow-up only: it has no shape.
            figures = ("–",) * 4
            if len(curve.time) > 1:
                (median, around), (mean, around_mean) = self.median_range(group), self.restricted_mean_range(group)
                figures = (
                    _between(median, 1, _), _limits(around, 1, _), _between(mean, 2, _), _limits(around_mean, 2, _),
                )  # fmt: skip
            rows.append((self.name(group, lang), *counts, *figures))
        return heads, rows

    def _tests(self, _: Translate) -> list[tuple[str, str]]:
        cells = self.result.get("log_rank", {}).get("cells")
        across = _("Log-rank test, on the declared intervals")
        if cells is not None:
            across = _("Log-rank test, on {count} cells that all groups share").format(count=int(cells))
        found = []
        for key, name in (("log_rank", across), ("log_rank_within", _("Log-rank test within sites, exact"))):
            if test := self.result.get(key):
                shown = f"chi2 {number(test['chi2'], 2)}, df {int(test['df'])}, P {p_text(test['p'])}"
                found.append((name, shown))
        return found

    def _grid(self, _: Translate) -> list[tuple[str, str]]:
        unit = self._time.unit
        shaped = [curve["grid_changes"] for curve in self.result["curves"].values() if len(curve["cuts"]) > 1]
        if not shaped:
            said = _(
                "no curve can be told: only the end of follow-up has counts that may be seen; invite more sites, or join groups"
            )
            return [(_("What merging changes"), said)]
        changes = np.abs(np.stack(shaped)).max(0)
        said = _(
            "curves by at most {ends} at the ends of cells and {anywhere} between them, means by at most {mean} {unit}"
        ).format(ends=number(changes[0], 4), anywhere=number(changes[1], 4), mean=number(changes[2], 2), unit=unit)
        if self.result.get("merged_before"):
            # In the last cell all who are still under observation leave, so that little is known of it.
            early = [(self.curve(group), self.lowest(group)) for group in self.groups if len(self.merged(group)) > 1]
            most = max(float((curve.survival - low)[:-1].max()) for curve, low in early)
            said = _(
                "{changes} (a bound: how many left in each declared interval was never seen); at the ends of all cells but "
                "the last by at most {early}"
            ).format(changes=said, early=number(most, 4))
        return [
            (_("Declared intervals of the time grid"), number(self._time.intervals, 0)),
            (_("What merging changes"), said),
        ]


def _with_survival(curve: Curve, survival: FloatArray) -> Curve:
    return Curve(
        curve.time, curve.at_risk, curve.events, curve.censored, survival, curve.variance, curve.hazard, curve.hazard_variance
    )  # fmt: skip


def _limits(ends: FloatArray, digits: int, _: Translate) -> str:
    return _("{low} to {high}").format(low=number(float(ends[0]), digits), high=number(float(ends[1]), digits))


def _between(ends: FloatArray, digits: int, _: Translate) -> str:
    """One number, or two where they are not shown as the same."""
    shown = {number(float(end), digits) for end in ends}
    return shown.pop() if len(shown) == 1 else _limits(ends, digits, _)
