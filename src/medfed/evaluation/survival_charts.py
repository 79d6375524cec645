"""Charts of survival: Kaplan-Meier curves over a table of who is still at risk, and hazard ratios as a forest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medfed.evaluation.figure import Figure, Table, interval_text, two_digits
from medfed.evaluation.row_charts import Estimated, forest
from medfed.evaluation.svg import (
    MUTED,
    SMALL,
    WIDTH,
    Scale,
    Style,
    drawing,
    element,
    line,
    linear_scale,
    marker,
    path,
    style_of,
    text_width,
    wrap,
    write,
)
from medfed.language import Translate, number, percent, translator
from medfed.methods.cox_fit import CoxFit
from medfed.methods.kaplan_meier_fit import KaplanMeierFit
from medfed.methods.survival_curves import band, pointwise

_TOP, _BOTTOM, _LINE = 34.0, 290.0, 17.0


@dataclass(frozen=True)
class SurvivalCurve:
    """One group: at the end of each cell (n,) the survival with its limits (NaN: none), at risk and events in the cell.

    merged: whether the cell is several declared intervals, so that nobody knows where within it the curve falls.
    """

    name: str
    time: Sequence[float]
    survival: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    at_risk: Sequence[float]
    events: Sequence[float]
    merged: Sequence[bool]


def kaplan_meier(
    curves: Sequence[SurvivalCurve], *, title: str, caption: str, x_label: str, until: float, lang: str = "en"
) -> Figure:
    """Curves from 1 at time 0 to ``until``, their limits shaded, over the numbers at risk at each tick of time.

    They step at the ends of cells, but go straight through a merged cell, in which at most so many are at risk. The rows of the table at risk name the curves and show their line and marker.
    """
    _ = translator(lang)
    names = [wrap(curve.name, 150, SMALL) for curve in curves]
    widest = max((text_width(words, SMALL) for lines in names for words in lines), default=0.0)
    heading = _("At risk")
    left = max(56.0, widest + 76.0, text_width(heading, SMALL) + 24.0)
    x_scale = linear_scale(0.0, until, left, WIDTH - 22.0, most=7, snug=True)
    y_scale = Scale(0.0, 1.0, _BOTTOM, _TOP, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
    parts = [write(0, 14, _("Without the event"), bold=True, size=SMALL), *_axes(x_scale, y_scale, x_label)]
    for index, curve in enumerate(curves):
        parts += _shade(curve, style_of(index), x_scale, y_scale, until)
    for index, curve in enumerate(curves):
        points = _corners(curve.time, curve.survival, curve.merged, until)
        places = [(x_scale(x), y_scale(y)) for x, y in points]
        parts.append(path(places, style_of(index), kind="curve", tip=curve.name or x_label))
        parts.append(marker(*places[-1], style_of(index), radius=4))
    at = _BOTTOM + 68.0
    parts.append(write(0, at, heading, bold=True, size=SMALL))
    parts.append(line(0, at + 7, WIDTH, at + 7, colour=MUTED))
    for index, (curve, lines) in enumerate(zip(curves, names, strict=True)):
        at += 24.0
        parts += _row_at_risk(curve, lines, style_of(index), x_scale, at)
        at += _LINE * (len(lines) - 1)
    return Figure(drawing(WIDTH, at + 14, title, parts), title, caption, _table(curves, x_label, _))


def _axes(x_scale: Scale, y_scale: Scale, x_label: str) -> list[str]:
    parts = []
    for tick in y_scale.ticks:
        parts.append(line(x_scale.start, y_scale(tick), x_scale.stop, y_scale(tick), kind="grid"))
        label = percent(tick, 0)
        parts.append(
            write(x_scale.start - 8, y_scale(tick) + 4, label, anchor="end", size=SMALL, colour=MUTED, kind="tick y")
        )
    for tick in x_scale.ticks:
        parts.append(line(x_scale(tick), _BOTTOM, x_scale(tick), _BOTTOM + 5, colour=MUTED))
        label = x_scale.form(tick)
        parts.append(
            write(x_scale(tick), _BOTTOM + 19, label, anchor="middle", size=SMALL, colour=MUTED, kind="tick x")
        )
    parts.append(line(x_scale.start, _BOTTOM, x_scale.stop, _BOTTOM, colour=MUTED))
    middle = (x_scale.start + x_scale.stop) / 2
    parts.append(write(middle, _BOTTOM + 39, x_label, anchor="middle", bold=True, size=SMALL))
    return parts


def _corners(
    times: Sequence[float], values: Sequence[float], merged: Sequence[bool], until: float
) -> list[tuple[float, float]]:
    """Corners of a curve that is 1 at time 0: a step at the end of a cell, a straight line through a merged one."""
    points, now = [(0.0, 1.0)], 1.0
    for time, value, through in zip(times, values, merged, strict=True):
        if time > until + 1e-9:
            break
        points += [(float(time), float(value))] if through else [(float(time), now), (float(time), float(value))]
        now = float(value)
    if points[-1][0] < until:
        points.append((until, now))
    return points


def _shade(curve: SurvivalCurve, style: Style, x_scale: Scale, y_scale: Scale, until: float) -> list[str]:
    """The limits of a curve as a pale surface, over the times that have limits."""
    known = [
        (time, low, high, through)
        for time, low, high, through in zip(curve.time, curve.low, curve.high, curve.merged, strict=True)
        if np.isfinite(low) and np.isfinite(high)
    ]
    if not known:
        return []
    times, lows, highs, merged = zip(*known, strict=True)
    upper, lower = _corners(times, highs, merged, until), _corners(times, lows, merged, until)
    corners = " ".join(f"{x_scale(x):.2f},{y_scale(y):.2f}" for x, y in [*upper, *reversed(lower)])
    return [element("polygon", points=corners, fill=style.colour, fill_opacity=0.13, class_="limits")]


def _row_at_risk(curve: SurvivalCurve, name: Sequence[str], style: Style, x_scale: Scale, at: float) -> list[str]:
    parts = [path([(0.0, at - 4), (30.0, at - 4)], style), marker(15, at - 4, style, radius=4, kind="sample")]
    parts += [write(38, at + index * _LINE, words, size=SMALL, kind="label") for index, words in enumerate(name)]
    for tick in x_scale.ticks:
        cell = min(int(np.searchsorted(curve.time, tick - 1e-9)), len(curve.time) - 1)
        count = number(curve.at_risk[cell], 0)
        if curve.merged[cell] and tick > 0:
            count = f"≤ {count}"
        parts.append(write(x_scale(tick), at, count, anchor="middle", size=SMALL, kind="number"))
    return parts


def _table(curves: Sequence[SurvivalCurve], x_label: str, _: Translate) -> Table:
    columns = (
        _("Group"), x_label, _("At risk"), _("Events"), _("Without the event"), _("95% interval"),
    )  # fmt: skip
    rows = []
    for curve in curves:
        for index, time in enumerate(curve.time):
            low, high = curve.low[index], curve.high[index]
            inside = interval_text(low, high, percent, _) if np.isfinite(low) and np.isfinite(high) else "–"
            rows.append(
                (curve.name, f"{time:g}", number(curve.at_risk[index], 0), number(curve.events[index], 0),
                 percent(curve.survival[index]), inside)
            )  # fmt: skip
    return Table(columns, tuple(rows))


def kaplan_meier_figure(fit: KaplanMeierFit, lang: str = "en", bands: str | None = None) -> Figure:
    """The curves of a run, but those of a single cell.

    bands: "hall-wellner" or "equal-precision" shades limits that hold the whole curve at once.
    """
    _ = translator(lang)
    time = fit.study.variables[fit.study.time or ""]
    drawn = []
    for group in fit.groups:
        curve = fit.curve(group)
        if len(curve.time) == 1:  # a straight line to the end of follow-up would be no curve
            continue
        low, high = band(curve, bands) if bands else pointwise(curve)
        if fit.result.get("merged_before"):
            low = low * fit.share_left(group)
        drawn.append(
            SurvivalCurve(
                fit.name(group, lang), curve.time.tolist(), curve.survival.tolist(), low.tolist(), high.tolist(),
                curve.at_risk.tolist(), curve.events.tolist(), fit.merged(group),
            )
        )  # fmt: skip
    meaning = fit.study.text(time.meaning, lang)
    x_label = _("{meaning}, {unit}").format(meaning=meaning, unit=time.unit)
    held = _("with 95% bands for the whole curve") if bands else _("with 95% intervals at each time")
    caption = _(
        "Kaplan-Meier curves {held}, over all sites together, on a time grid whose cells show no small count. Where intervals "
        "were merged, only the ends are known: the curve goes straight between them, and at most so many were at risk."
    ).format(held=held)
    if fit.result.get("merged_before"):
        caption += " " + _("The shade reaches down to where the curve can be by what merging leaves open.")
    return kaplan_meier(
        drawn, title=_("Survival"), caption=caption, x_label=x_label, until=time.last_time, lang=lang
    )  # fmt: skip


def hazard_ratio_figure(fit: CoxFit, lang: str = "en") -> Figure:
    """Hazard ratios of a run with their intervals, one row a feature; odds ratios of the hazard in discrete time."""
    _ = translator(lang)
    study, limits = fit.study, np.exp(fit.intervals())
    rows = []
    for column, coefficient, (low, high) in zip(study.design.columns[1:], fit.coefficients, limits, strict=True):
        variable = study.variables[column.variable]
        if column.kind == "number":
            detail = _("for 1 {unit} more").format(unit=variable.unit) if variable.unit != "1" else _("for 1 more")
        else:
            codes = variable.codes or {}
            level = study.text(codes[column.level or ""], lang) if column.level in codes else _("unknown")
            reference = study.text(codes[variable.reference or next(iter(codes))], lang)
            detail = _("{level} against {reference}").format(level=level, reference=reference)
        name = study.text(variable.meaning, lang)
        rows.append(Estimated(name, float(np.exp(coefficient)), float(low), float(high), detail))
    ratio = _("Odds ratio of the hazard (95% interval)") if fit.is_discrete else _("Hazard ratio (95% interval)")
    caption = _("Each ratio is adjusted for all others; 1 is no difference.")
    return forest(
        rows,
        title=_("Hazard ratios"),
        caption=caption,
        heads=(_("Feature"), _("Compared"), ratio),
        favours=(_("fewer events"), _("more events")),
        lang=lang,
        form=two_digits,
    )
