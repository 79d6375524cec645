"""The part of a report that judges a risk model: local, federated and pooled side by side, and whether joining helps.

Verdicts are computed here, from intervals: where the interval of a difference includes 0 there is no clear gain, and
the report says so.
"""

import math
from collections.abc import Sequence

from medfed.evaluation.charts import CalibrationGroup, Estimated, Roc, calibration, dots, forest, roc
from medfed.evaluation.figure import Figure, Table
from medfed.evaluation.page import Block, Bullets, Heading, Section, Tabled, Text
from medfed.evaluation.report_data import (
    FEW_BINS,
    NO_FINITE_SLOPE,
    NO_LOCAL_FIT,
    NOT_REPORTED,
    Joining,
    Judged,
    LeftOut,
    MethodShown,
    Prediction,
)
from medfed.evaluation.report_effect import pooled_sentence
from medfed.evaluation.report_labels import Labels
from medfed.language import number

_ORDER = {"federated": 0, "local": 1, "pooled": 2}


def prediction_answer(prediction: Prediction, labels: Labels) -> tuple[str, str]:
    """The answer in one sentence, and how many patients it rests on."""
    _ = labels.translate
    main = _main(prediction)
    overall = _find(main.results, "federated", None) if main else None
    if overall is None or overall.auc is None:
        ranking = _left_out_range(prediction, labels) or _(
            "How well the federated model ranks patients is {why}"
        ).format(why=labels.why((overall.reason if overall else None) or (FEW_BINS if overall else NOT_REPORTED)))
    else:
        words = {
            "auc": number(overall.auc),
            "interval": labels.ends(overall.auc_low, overall.auc_high),
        }
        if overall.auc_low is not None and overall.auc_low <= 0.5:
            ranking = _(
                "The federated model ranks patients no better than chance (AUC {auc}, 95% interval {interval})"
            ).format(**words)
        else:
            ranking = _(
                "The federated model ranks patients with an AUC of {auc} (95% interval {interval}; 0.5 is chance)"
            ).format(**words)
    joining = _joining_clause(main.joining, labels) if main else ""
    answer = (
        _("{ranking}; {joining}.").format(ranking=ranking, joining=joining)
        if joining
        else _("{sentence}.").format(sentence=ranking)
    )
    if overall is None:
        return answer, ""
    detail = _(
        "Judged on {patients} patients, {events} of them with the event, each by a model that had not seen the patient."
    )
    return answer, detail.format(patients=number(overall.n, 0), events=number(overall.events, 0))


def _left_out_range(prediction: Prediction, labels: Labels) -> str:
    _ = labels.translate
    shown = sorted((row for row in _left_out_main(prediction) if row.auc is not None), key=lambda row: row.auc or 0)
    if not shown:
        return ""
    ends = [
        f"{labels.site(row.site)} {labels.with_interval(row.auc, row.auc_low, row.auc_high, FEW_BINS)}"
        for row in (shown[0], shown[-1])
    ]
    return _("At a site that it had not seen, the model's AUC lay between {lowest} and {highest}").format(
        lowest=ends[0], highest=ends[1]
    )


def _joining_clause(joining: Sequence[Joining], labels: Labels) -> str:
    _ = labels.translate
    if not joining:
        return ""
    verdicts = {row.site: verdict_of(row) for row in joining}
    gaining = [site for site, verdict in verdicts.items() if verdict == "gain"]
    losing = [site for site, verdict in verdicts.items() if verdict == "loss"]
    if gaining and losing:
        return _("joining helps {sites} and does worse than {others} alone").format(
            sites=labels.site_list(gaining), others=labels.site_list(losing)
        )
    if gaining:
        return _("joining clearly helps {sites}").format(sites=labels.site_list(gaining))
    if losing:
        return _("it does worse than the own model of {sites}").format(sites=labels.site_list(losing))
    if all(verdict == "not shown" for verdict in verdicts.values()):
        return _("whether joining helps can't be shown")
    return _("joining shows no clear gain at any site")


def verdict_of(joining: Joining) -> str:
    """gain, loss, no clear gain, or not shown: from the interval of the difference alone."""
    if joining.difference is None or joining.low is None or joining.high is None:
        return "not shown"
    return "gain" if joining.low > 0 else "loss" if joining.high < 0 else "no clear gain"


def prediction_sections(prediction: Prediction, labels: Labels) -> list[Section]:
    """Ranking and joining; calibration; sites left out; the model itself."""
    _ = labels.translate
    sections = []
    if any(method.results for method in prediction.methods):
        sections.append(Section("prediction", _("How well patients are ranked"), _ranking(prediction, labels)))
        sections.append(Section("calibration", _("Are the predicted risks true?"), _calibration(prediction, labels)))
    if prediction.left_out or prediction.recalibration:
        sections.append(Section("unseen", _("At a site that was not seen"), _unseen(prediction, labels)))
    model = [*_coefficients(prediction, labels), Text(pooled_sentence(prediction.difference_from_pooled, labels))]
    sections.append(Section("model", _("The model"), model))
    return sections


def _main(prediction: Prediction) -> MethodShown | None:
    return next(
        (method for method in prediction.methods if method.name == "main"), next(iter(prediction.methods), None)
    )


def _find(results: Sequence[Judged], where: str, site: str | None) -> Judged | None:
    return next((row for row in results if row.where == where and row.site == site), None)


def _sites_of(prediction: Prediction) -> list[str | None]:
    found = dict.fromkeys(row.site for method in prediction.methods for row in method.results)
    return sorted(found, key=lambda site: site is not None)


def _auc_reason(row: Judged) -> str:
    return row.reason or (NO_LOCAL_FIT if row.where == "local" and row.n == 0 else FEW_BINS)


def _ranking(prediction: Prediction, labels: Labels) -> list[Block]:
    _ = labels.translate
    single = len(prediction.methods) == 1
    groups = []
    for site in _sites_of(prediction):
        members = []
        for method in prediction.methods:
            for row in sorted(method.results, key=lambda row: _ORDER[row.where]):
                if row.site == site:
                    name = labels.where(row.where)
                    name = (
                        name
                        if single
                        else _("{method}, {where}").format(method=labels.method(method.name, method.use), where=name)
                    )
                    members.append(Estimated(name, row.auc, row.auc_low, row.auc_high, why=_(_auc_reason(row))))
        groups.append((_("All sites, within each") if site is None else labels.site(site), members))
    figure = dots(
        groups,
        title=_("AUC: local, federated and pooled"),
        caption=_(
            "How often a patient with the event has the higher score than one without; 0.5 is chance, 1 is perfect. Computed from "
            "grouped scores: every group holds at least {minimum} patients with and without the event, and with fewer than 3 "
            "groups nothing is shown. Patients are compared within their own site."
        ).format(minimum=labels.data.minimum_cell),
        heads=(_("Site"), _("Model"), _("AUC (95% interval)")),
        reference=0.5,
        lang=labels.lang,
    )
    blocks: list[Block] = [figure, *_not_shown(prediction, labels), Heading(_("Does joining help this site?"))]
    for method in prediction.methods:
        if method.joining:
            if not single:
                blocks.append(Text(labels.method(method.name, method.use), "verdict"))
            blocks.append(Bullets(tuple(joining_sentence(row, labels) for row in method.joining)))
    if not any(method.joining for method in prediction.methods):
        blocks.append(
            Text(_("The comparison with each site's own model is {why}.").format(why=labels.why(NOT_REPORTED)))
        )
    return blocks + _rocs(prediction, labels)


def joining_sentence(row: Joining, labels: Labels) -> str:
    """The verdict for one site, with the difference it rests on."""
    _ = labels.translate
    words = {"site": labels.site(row.site), "difference": number(row.difference, 3)}
    if row.difference is not None:
        words["interval"] = labels.ends(row.low, row.high, 3)
    return {
        "gain": _(
            "{site}: joining helps. The federated model's AUC is higher than the own model's by {difference} (95% interval {interval})."
        ),
        "loss": _(
            "{site}: joining does not help. The own model's AUC is higher; difference {difference} (95% interval {interval})."
        ),
        "no clear gain": _(
            "{site}: no clear gain. The difference in AUC is {difference} (95% interval {interval}), which includes 0."
        ),
        "not shown": _("{site}: can't be said; the difference is {why}."),
    }[verdict_of(row)].format(**words, why=labels.why(row.reason or FEW_BINS))


def _not_shown(prediction: Prediction, labels: Labels) -> list[Block]:
    _ = labels.translate
    reasons: dict[str, list[str]] = {}
    for method in prediction.methods[:1]:
        for site, held in method.not_shown.items():
            reasons.setdefault(held.reason, []).append(site)
    return [
        Text(
            _("Figures of {sites} alone are {why}.").format(sites=labels.site_list(sites), why=labels.why(reason)),
            "note",
        )
        for reason, sites in reasons.items()
    ]


def _rocs(prediction: Prediction, labels: Labels) -> list[Block]:
    _ = labels.translate
    curves = [
        Roc(
            _("{method}, {where}").format(method=labels.method(method.name, method.use), where=labels.where(each.where)),
            each.false_positive_rate, each.true_positive_rate, labels.site(each.site),
        )
        for method in prediction.methods
        for each in method.roc
    ]  # fmt: skip
    if not curves:
        return []
    caption = _("From grouped scores, joined by straight lines. The dashed diagonal is chance.")
    return [roc(curves, title=_("ROC curves"), caption=caption, lang=labels.lang)]


def _calibration(prediction: Prediction, labels: Labels) -> list[Block]:
    _ = labels.translate
    columns = (
        _("Model"),
        _("Site"),
        "n",
        _("Events"),
        _("Observed / expected"),
        _("Calibration slope"),
        _("Brier score"),
    )
    rows = []
    for method in prediction.methods:
        for row in sorted(method.results, key=lambda row: (row.site is not None, row.site or "", _ORDER[row.where])):
            name = _("{method}, {where}").format(
                method=labels.method(method.name, method.use), where=labels.where(row.where)
            )
            rows.append((name, labels.site(row.site), *_calibration_cells(row, labels)))
    caption = _("Calibration and accuracy, with 95% intervals")
    note = _(
        "Observed / expected events: 1 is right, above 1 the risks are too low. Calibration slope: 1 is right, below 1 the risks are "
        "too extreme; it is estimated over all sites only. Brier score: mean squared error of the risks, lower is better."
    )
    blocks: list[Block] = [Tabled(caption, Table(columns, tuple(rows))), Text(note, "note")]
    for method in prediction.methods:
        for each in method.calibration:
            place = _("{method}, {site}").format(
                method=labels.method(method.name, method.use), site=labels.site(each.site)
            )
            blocks.append(_calibration_figure(place, [CalibrationGroup(g.n, g.predicted, g.observed, g.low, g.high) for g in each.groups],
                                              each.reason, labels))  # fmt: skip
    return blocks


def _calibration_cells(row: Judged, labels: Labels) -> tuple[str, ...]:
    _ = labels.translate
    if row.n == 0:
        return ("–", "–", labels.why(_auc_reason(row)), "–", "–")
    slope = "–" if row.site is not None or row.where != "federated" else labels.why(NO_FINITE_SLOPE)
    if row.slope is not None:
        slope = labels.with_interval(row.slope, row.slope_low, row.slope_high, NO_FINITE_SLOPE)
    ratio = labels.with_interval(row.oe, row.oe_low, row.oe_high, NOT_REPORTED)
    return (number(row.n, 0), number(row.events, 0), ratio, slope, number(row.brier, 3))


def _calibration_figure(
    place: str, groups: list[CalibrationGroup], reason: str | None, labels: Labels
) -> Figure | Text:
    _ = labels.translate
    if not groups:
        return Text(_("Calibration curve of {place}: {why}.").format(place=place, why=labels.why(reason or FEW_BINS)))
    return calibration(
        groups,
        title=_("Calibration: {place}").format(place=place),
        caption=_(
            "Each point is a group of patients of similar predicted risk, at least {minimum} of them with and without the event; lines "
            "are 95% intervals. On the dashed diagonal predicted and observed risk are the same."
        ).format(minimum=labels.data.minimum_cell),
        lang=labels.lang,
    )


def _left_out_main(prediction: Prediction) -> list[LeftOut]:
    main = [row for row in prediction.left_out if row.method == "main"]
    return main or prediction.left_out


def _unseen(prediction: Prediction, labels: Labels) -> list[Block]:
    _ = labels.translate
    blocks: list[Block] = []
    if prediction.left_out:
        blocks.append(Text(_("The model is fitted on the other sites and judged at the one that was left out.")))
        columns = (
            _("Site left out"),
            "n",
            _("Events"),
            "AUC",
            _("Observed / expected"),
            _("Brier score"),
            _("Difference from pooled"),
        )
        several = len({row.method for row in prediction.left_out}) > 1
        rows = []
        for row in prediction.left_out:
            name = labels.site(row.site) + (f" ({labels.method(row.method)})" if several else "")
            auc = labels.with_interval(row.auc, row.auc_low, row.auc_high, _auc_reason(row), 3)
            ratio = labels.with_interval(row.oe, row.oe_low, row.oe_high, NOT_REPORTED)
            pooled = "–" if row.difference_from_pooled is None else f"{row.difference_from_pooled:.1e}"
            rows.append((name, number(row.n, 0), number(row.events, 0), auc, ratio, number(row.brier, 3), pooled))
        blocks.append(Tabled(_("One site left out in turn, with 95% intervals"), Table(columns, tuple(rows))))
    if prediction.recalibration:
        blocks.append(_recalibration(prediction, labels))
    return blocks


def _recalibration(prediction: Prediction, labels: Labels) -> Figure:
    _ = labels.translate
    rows = [
        (
            labels.site(row.site),
            [
                Estimated(_("as received"), row.before, why=_(row.reason or NOT_REPORTED)),
                Estimated(
                    _("after {patients} patients").format(patients=row.patients),
                    row.median, row.low, row.high, why=_(row.reason or NOT_REPORTED),
                ),
            ],
        )
        for row in prediction.recalibration
    ]  # fmt: skip
    needed = [
        _("{site} {patients}").format(site=labels.site(row.site), patients=number(row.needed, 0))
        for row in prediction.recalibration
        if row.needed is not None
    ]
    caption = _(
        "Observed over expected events after the intercept was updated on a few local patients: median over {draws} random draws, and "
        "the range of the middle 90% of draws."
    ).format(draws=number(max(row.draws for row in prediction.recalibration), 0))
    if needed:
        caption += " " + _("Patients needed for 90% of draws to lie within 0.9 to 1.1: {needed}.").format(
            needed=_(", ").join(needed)
        )
    return dots(
        rows,
        title=_("Recalibration on local patients"),
        caption=caption,
        heads=(_("Site"), _("Model"), _("Observed / expected")),
        reference=1.0,
        lang=labels.lang,
    )


def _coefficients(prediction: Prediction, labels: Labels) -> list[Block]:
    _ = labels.translate
    if not prediction.coefficients:
        return [Text(_("The coefficients are {why}.").format(why=labels.why(NOT_REPORTED)))]

    def ratio(value: float | None) -> float | None:
        return None if value is None else math.exp(min(max(value, -50.0), 50.0))

    rows = [
        Estimated(
            labels.feature(row.name),
            ratio(row.value),
            ratio(row.low),
            ratio(row.high),
            why=_(row.reason or NOT_REPORTED),
        )
        for row in prediction.coefficients
        if row.name != "intercept"
    ]
    intercept = next((row.value for row in prediction.coefficients if row.name == "intercept"), None)
    caption = _(
        "Odds ratios of the federated model per unit of each variable, with Wald's 95% intervals where the method gives them."
    )
    if intercept is not None:
        caption += " " + _("Intercept, as log odds: {value}.").format(value=number(intercept, 3))
    heads = (_("Variable"), "", _("Odds ratio (95% interval)"))
    return [forest(rows, title=_("Odds ratios in the model"), caption=caption, heads=heads, lang=labels.lang)]
