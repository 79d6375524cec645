"""Charts of statistics: ratios of a model and of a meta-analysis as forests, balance as dots, overlap as bars in two colours."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medfed.evaluation.charts import histogram
from medfed.evaluation.figure import Figure, two_digits
from medfed.evaluation.row_charts import Estimated, dots, forest
from medfed.language import Translate, number, percent, translator
from medfed.methods.causal_result import CausalEffect
from medfed.methods.describe import Description
from medfed.methods.glm_result import GlmFit
from medfed.methods.meta_analysis import MetaResult
from medfed.methods.table_one import Table1

FloatArray = NDArray[np.float64]
_PATIENTS_A_BAR = 50


def _three_digits(value: float) -> str:
    return number(value, 3)


def coefficients_figure(fit: GlmFit, lang: str = "en") -> Figure:
    """Ratios of a model with a log or logit link, one row a coefficient but the intercept; else the coefficients."""
    _ = translator(lang)
    ratios = fit.values["link"] in ("log", "logit")
    frame = fit.to_frame(exponentiate=ratios).drop(index=["intercept", "alpha"], errors="ignore")
    rows = [
        Estimated(str(name), float(row["estimate"]), _end(row["lower"]), _end(row["upper"]))
        for name, row in frame.iterrows()
    ]
    caption = _("Each is adjusted for all others; a line at {none} is no difference.").format(none=1 if ratios else 0)
    if not ratios:
        heads = (_("Term"), "", _("Difference (95% interval)"))
        return dots(
            _each_its_own(rows), title=_("Coefficients"), caption=caption, heads=heads, reference=0.0, lang=lang
        )
    named = _("Odds ratio (95% interval)") if fit.values["link"] == "logit" else _("Ratio (95% interval)")
    return forest(
        rows, title=_("Ratios"), caption=caption, heads=(_("Term"), "", named),
        favours=(_("fewer events"), _("more events")), lang=lang, form=two_digits,
    )  # fmt: skip


def _each_its_own(rows: Sequence[Estimated]) -> list[tuple[str, list[Estimated]]]:
    """A group for each row, so that all points look alike."""
    return [(row.name, [replace(row, name="")]) for row in rows]


def _end(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def meta_figure(result: MetaResult, lang: str = "en") -> Figure:
    """The sites' own estimates, and the pooled ones as diamonds; ratios where the measure is a logarithm."""
    _ = translator(lang)
    values, frame = result.values, result.to_frame()
    logged = str(values["measure"]).startswith("log_")
    names = {
        "common": _("common effect"), "reml": _("random effects, REML"),
        "reml_hartung_knapp": _("random effects, REML, Hartung-Knapp"),
    }  # fmt: skip
    rows = []
    for name, row in frame.iterrows():
        if name not in names and name not in values["sites"]:
            continue
        ends = np.array([row["estimate"], row["lower"], row["upper"]], dtype=float)
        value, low, high = (float(each) for each in (np.exp(ends) if logged else ends))
        weight = "" if np.isnan(row["weight"]) else percent(row["weight"])
        rows.append(Estimated(names.get(str(name), str(name)), value, low, high, weight, total=name in names))
    rows += [Estimated(site, why=_(why["reason"])) for site, why in values["left_out"].items()]
    rows.sort(key=lambda row: row.total)
    caption = _(
        "Between the sites' own estimates: I² {share}, τ² {tau}. Sites that do not show theirs are left out."
    ).format(share=percent(values["i_squared"]), tau=number(values["tau_squared_reml"], 3))
    heads = (_("Site"), _("Weight"), _("Estimate (95% interval)"))
    if logged:
        return forest(rows, title=_("Meta-analysis"), caption=caption, heads=heads, lang=lang)
    return dots(
        _each_its_own(rows),
        title=_("Meta-analysis"),
        caption=caption,
        heads=heads,
        reference=0.0,
        lang=lang,
        form=_three_digits,
    )


def differences_figure(table: Table1, lang: str = "en") -> Figure:
    """Standardised differences of Table 1 between each group and the first, a group of points for each variable."""
    _ = translator(lang)
    others = table.values["groups"][1:]
    groups = [
        (str(name), [Estimated(other if len(others) > 1 else "", float(d)) for other, d in zip(others, found, strict=True)])
        for name, found in table.values["differences"].items()
        if np.isfinite(found).all()
    ]  # fmt: skip
    caption = _("Differences from the first group, in standard deviations; under 0.1 is commonly called balanced.")
    heads = (_("Variable"), "", _("standardised difference"))
    title = _("Standardised differences")
    return dots(groups, title=title, caption=caption, heads=heads, reference=0.0, lang=lang, form=_three_digits)


def balance_figure(effect: CausalEffect, lang: str = "en") -> Figure:
    """Standardised differences between the arms, before and after weighting, a group for each column."""
    _ = translator(lang)
    groups: Sequence[tuple[str, Sequence[Estimated]]] = [
        (str(name), [Estimated(_("before"), float(row["before"])), Estimated(_("after"), float(row["after"]))])
        for name, row in effect.balance().iterrows()
    ]
    reference, arm = effect.arm_names(lang)
    caption = _("Means of {arm} less those of {reference}, in standard deviations; under 0.1 is commonly called balanced.").format(
        arm=arm, reference=reference
    )  # fmt: skip
    heads = (_("Term"), "", _("standardised difference"))
    return dots(groups, title=_("Balance"), caption=caption, heads=heads, reference=0.0, lang=lang, form=_three_digits)


def overlap_figures(effect: CausalEffect, lang: str = "en") -> tuple[Figure, Figure]:
    """Patients of either arm by their chance of having the one that is not the reference."""
    _ = translator(lang)
    frame = effect.overlap()
    caption = _("Where one arm has patients and the other has none, nothing can be said of the effect.")
    label = _("Propensity score, of having {arm}").format(arm=effect.arm_names(lang)[1])
    return tuple(  # type: ignore[return-value]
        histogram(
            [0.0, *frame["high"]], _counts(frame[f"patients of {arm}"]), title=title, caption=caption,
            x_label=label, y_label=_("Patients"), lang=lang,
        )
        for arm, title in zip(effect.arms, effect.arm_names(lang), strict=True)
    )  # fmt: skip


def histogram_figure(found: Description, name: str, title: str, lang: str = "en") -> Figure:
    """Patients by a number, in parts of its declared range; fewer parts where there are fewer patients."""
    _: Translate = translator(lang)
    frame = found.histogram(name)
    edges = np.array([frame["low"].iloc[0], *frame["high"]], dtype=float)
    edges, counts = _parts(edges, frame["patients"].to_numpy(dtype=float))
    caption = _(
        "Parts of the declared range, area for patients; patients of a part that holds a few are counted in its neighbour, and "
        "a part that is empty for that is drawn as one with it."
    )
    return histogram(
        edges.tolist(),
        _counts(counts.tolist()),
        title=title,
        caption=caption,
        x_label=name,
        y_label=_("Patients"),
        lang=lang,
    )


def _parts(edges: FloatArray, counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Equal bins (2n,) -> fewer where few patients would make them ragged; those of a pair with an empty one as one bar."""
    while len(counts) > 8 and counts.sum() < _PATIENTS_A_BAR * len(counts):
        edges, counts = edges[::2], counts.reshape(-1, 2).sum(1)
    pairs = counts.reshape(-1, 2)
    joined = (pairs > 0).sum(1) == 1
    keep = np.ones(len(edges), dtype=bool)
    keep[1::2] = ~joined
    shown = [count for pair, one in zip(pairs, joined, strict=True) for count in ([pair.sum()] if one else pair)]
    return edges[keep], np.array(shown)


def _counts(values: Sequence[float]) -> list[int | None]:
    return [None if np.isnan(value) else int(value) for value in values]
