"""The part of a report that judges a risk model: local, federated and pooled side by side, ranking and calibration."""

from collections.abc import Sequence

from medfed.evaluation.charts import CalibrationGroup, Estimated, Roc, calibration, dots, roc
from medfed.evaluation.figure import Figure, Table
from medfed.evaluation.page import Block, Bullets, Section, Tabled, Text
from medfed.evaluation.report_data import (
    FEW_BINS,
    NO_FINITE_SLOPE,
    NOT_REPORTED,
    Judged,
    MethodShown,
    Prediction,
)
from medfed.evaluation.report_effect import pooled_sentence
from medfed.evaluation.report_joining import joining_blocks, joining_clause
from medfed.evaluation.report_labels import Labels
from medfed.evaluation.report_model import (
    auc_reason,
    calibration_sentence,
    calibration_summary,
    coefficient_blocks,
    main_left_out,
    unseen_blocks,
)
from medfed.language import number, power_of_ten

_ORDER = ("local", "federated", "pooled")
# More ROC curves in one square can't be followed by eye.
_CURVES = 4


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
                "The federated model does not rank patients clearly better than chance (AUC {auc}, 95% interval {interval})"
            ).format(**words)
        else:
            ranking = _(
                "The federated model ranks patients with an AUC of {auc} (95% interval {interval}; 0.5 is chance)"
            ).format(**words)
    joining = joining_clause(main.joining, labels) if main else ""
    answer = (
        _("{ranking}; {joining}.").format(ranking=ranking, joining=joining)
        if joining
        else _("{sentence}.").format(sentence=ranking)
    )
    left_out = main_left_out(prediction)
    if overall is None and left_out:
        detail = _(
            "Judged on {patients} patients, {events} of them with the event, each by a model that had not seen the "
            "patient's site."
        )
        counts = (sum(row.n for row in left_out), sum(row.events or 0 for row in left_out))
        detail = detail.format(patients=number(counts[0], 0), events=number(counts[1], 0))
        return answer, labels.joined(detail, calibration_summary(left_out, labels))
    if overall is None:
        return answer, ""
    detail = _(
        "Judged on {patients} patients, {events} of them with the event, each by a model that had not seen the patient."
    )
    detail = detail.format(patients=number(overall.n, 0), events=number(overall.events, 0))
    return answer, labels.joined(detail, calibration_summary(main.results if main else [], labels))


def _left_out_range(prediction: Prediction, labels: Labels) -> str:
    _ = labels.translate
    shown = sorted((row for row in main_left_out(prediction) if row.auc is not None), key=lambda row: row.auc or 0)
    if not shown:
        return ""
    words = {}
    for end, row in (("low", shown[0]), ("high", shown[-1])):
        words[end] = number(row.auc)
        words[f"{end}_interval"] = labels.ends(row.auc_low, row.auc_high)
        words[f"{end}_site"] = labels.site(row.site)
    if len(shown) == 1:
        sentence = _("At {low_site}, which it had not seen, the model's AUC was {low} (95% interval {low_interval})")
        return sentence.format(**words)
    return _(
        "At a site that it had not seen, the model's AUC lay between {low} (95% interval {low_interval}; {low_site}) and "
        "{high} (95% interval {high_interval}; {high_site})"
    ).format(**words)


def prediction_sections(prediction: Prediction, labels: Labels) -> list[Section]:
    """Ranking and joining; calibration; sites left out; the model itself."""
    _ = labels.translate
    sections = []
    if any(method.results for method in prediction.methods):
        sections.append(Section("prediction", _("How well patients are ranked"), _ranking(prediction, labels)))
        sections.append(Section("calibration", _("Are the predicted risks true?"), _calibration(prediction, labels)))
    if prediction.left_out or prediction.recalibration:
        sections.append(Section("unseen", _("At a site that was not seen"), unseen_blocks(prediction, labels)))
    model = [*coefficient_blocks(prediction, labels), Text(_beside_pooled(prediction, labels))]
    sections.append(Section("model", _("The model"), model))
    return sections


def _beside_pooled(prediction: Prediction, labels: Labels) -> str:
    """How far the federated model is from the pooled one: as the run says, or by the figures that stand side by side."""
    _ = labels.translate
    if prediction.difference_from_pooled is not None:
        return pooled_sentence(prediction.difference_from_pooled, labels)
    main = _main(prediction)
    results = main.results if main is not None else []
    differences = []
    for row in results:
        other = _find(results, "pooled", row.site) if row.where == "federated" else None
        if other is not None:
            pairs = ((row.auc, other.auc), (row.oe, other.oe), (row.brier, other.brier))
            differences += [abs(one - two) for one, two in pairs if one is not None and two is not None]
    if differences:
        sentence = _(
            "Beside the same method on all rows in one place, the largest difference in AUC, observed / expected or Brier "
            "score is {difference}."
        )
        return sentence.format(difference=power_of_ten(max(differences)))
    known = (row.difference_from_pooled for row in prediction.left_out)
    differences = [difference for difference in known if difference is not None]
    if not differences:
        return pooled_sentence(None, labels)
    sentence = _(
        "Beside the same method on the same rows in one place, the largest difference in AUC at a site left out is "
        "{difference}."
    )
    return sentence.format(difference=power_of_ten(max(differences, key=abs)))


def _main(prediction: Prediction) -> MethodShown | None:
    return next(
        (method for method in prediction.methods if method.name == "main"), next(iter(prediction.methods), None)
    )


def _find(results: Sequence[Judged], where: str, site: str | None) -> Judged | None:
    return next((row for row in results if row.where == where and row.site == site), None)


def _sites_of(prediction: Prediction, labels: Labels) -> list[str | None]:
    found = dict.fromkeys(row.site for method in prediction.methods for row in method.results)
    return sorted(found, key=labels.place)


def _ordered(results: Sequence[Judged], site: str | None) -> list[Judged]:
    """A site's rows as they are compared: local, federated, pooled."""
    return sorted((row for row in results if row.site == site), key=lambda row: _ORDER.index(row.where))


def _ranking(prediction: Prediction, labels: Labels) -> list[Block]:
    _ = labels.translate
    blocks: list[Block] = []
    for method in prediction.methods:
        if method.results:
            blocks.append(_auc_figure(method, _sites_of(prediction, labels), labels))
    blocks += [*_not_shown(prediction, labels), *joining_blocks(prediction.methods, labels)]
    return blocks + _rocs(prediction, labels)


def _auc_figure(method: MethodShown, sites: Sequence[str | None], labels: Labels) -> Figure:
    _ = labels.translate
    groups = []
    for site in sites:
        members = [
            Estimated(labels.where(row.where), row.auc, row.auc_low, row.auc_high, why=_(auc_reason(row)))
            for row in _ordered(method.results, site)
        ]
        if members:
            groups.append((_("All sites, within each") if site is None else labels.site(site), members))
    ranking = _(
        "How often a patient with the event has the higher score than one without, both of one site: 0.5 is chance, "
        "1 is perfect."
    )
    grouping = _(
        "Computed from grouped scores: every group holds at least {minimum} patients with the event and {minimum} without, "
        "and with fewer than 3 groups nothing is shown."
    )
    if labels.data.minimum_cell <= 1:
        grouping = _("Computed from exact scores.")
    return dots(
        groups,
        title=_("AUC: {method}").format(method=labels.method(method.name, method.use)),
        caption=labels.joined(ranking, grouping.format(minimum=labels.data.minimum_cell)),
        heads=(_("Site"), _("Model"), _("AUC (95% interval)")),
        reference=0.5,
        styles=tuple(labels.where(where) for where in ("federated", "local", "pooled")),
        lang=labels.lang,
    )


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
    blocks: list[Block] = []
    for method in prediction.methods:
        curves = []
        for each in sorted(method.roc, key=lambda each: labels.place(each.site)):
            judged = _find(method.results, each.where, each.site)
            note = "" if judged is None else labels.with_interval(judged.auc, judged.auc_low, judged.auc_high, FEW_BINS)
            name = _("{site}, {where}").format(site=labels.site(each.site), where=labels.where(each.where))
            curves.append(Roc(name, each.false_positive_rate, each.true_positive_rate, f"AUC {note}" if note else ""))
        title = _("ROC curves: {method}").format(method=labels.method(method.name, method.use))
        caption = _("From grouped scores, joined by straight lines. The dashed diagonal is chance.")
        parts = [curves[start : start + _CURVES] for start in range(0, len(curves), _CURVES)]
        for index, part in enumerate(parts, start=1):
            numbered = _("{title} ({part} of {parts})").format(title=title, part=index, parts=len(parts))
            name = numbered if len(parts) > 1 else title
            blocks.append(roc(part, title=name, caption=caption, lang=labels.lang))
    return blocks


def _calibration(prediction: Prediction, labels: Labels) -> list[Block]:
    _ = labels.translate
    columns = (
        _("Site"), _("Model"), "n", _("Events"), _("Observed / expected"), _("Calibration slope"), _("Brier score")
    )  # fmt: skip
    blocks: list[Block] = []
    for method in prediction.methods:
        rows = [
            (labels.site(site), labels.where(row.where), *_calibration_cells(row, labels))
            for site in _sites_of(prediction, labels)
            for row in _ordered(method.results, site)
        ]
        caption = _("{method}: calibration and accuracy, with 95% intervals")
        table = Table(columns, tuple(rows))
        blocks.append(Tabled(caption.format(method=labels.method(method.name, method.use)), table))
    note = _(
        "Observed / expected events: 1 is right, above 1 the risks are too low. Calibration slope: 1 is right, below 1 "
        "the risks are too extreme; estimated for the federated model over all sites. Brier score: mean squared error of the "
        "risks, lower is better."
    )
    blocks.append(Text(note, "note"))
    main = _main(prediction)
    if main is None:
        return blocks
    verdicts = [
        sentence
        for row in sorted(main.results, key=lambda row: labels.place(row.site))
        if (sentence := calibration_sentence(row, labels))
    ]
    if verdicts:
        blocks.append(Bullets(tuple(verdicts)))
    for each in sorted(main.calibration, key=lambda each: labels.place(each.site)):
        groups = [CalibrationGroup(g.n, g.predicted, g.observed, g.low, g.high) for g in each.groups]
        blocks.append(_calibration_figure(labels.site(each.site), groups, each.reason, labels))
    return blocks


def _calibration_cells(row: Judged, labels: Labels) -> tuple[str, ...]:
    _ = labels.translate
    if row.n == 0:
        return ("–", "–", labels.why(auc_reason(row)), "–", "–")
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
        return Text(
            _("The calibration curve of {place} is {why}.").format(place=place, why=labels.why(reason or FEW_BINS))
        )
    caption = _(
        "Each point is a group of patients of similar predicted risk; lines are 95% intervals. On the dashed diagonal "
        "predicted and observed risk are the same."
    )
    if labels.data.minimum_cell > 1:
        least = _("Every group holds at least {minimum} patients with the event and {minimum} without.")
        caption = labels.joined(caption, least.format(minimum=labels.data.minimum_cell))
    title = _("Calibration: {place}").format(place=place)
    return calibration(groups, title=title, caption=caption, lang=labels.lang)
