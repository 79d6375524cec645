"""The part of a report on the model itself: at sites that it had not seen, after recalibration, and its coefficients."""

import math
from collections.abc import Sequence

from medfed.evaluation.charts import Estimated, dots, forest
from medfed.evaluation.figure import Figure, Table
from medfed.evaluation.page import Block, Bullets, Tabled, Text
from medfed.evaluation.report_data import FEW_BINS, NO_LOCAL_FIT, NOT_REPORTED, Judged, LeftOut, Prediction
from medfed.evaluation.report_labels import Labels
from medfed.language import number, power_of_ten


def auc_reason(row: Judged) -> str:
    """Why a row has no AUC."""
    return row.reason or (NO_LOCAL_FIT if row.where == "local" and row.n == 0 else FEW_BINS)


def unseen_blocks(prediction: Prediction, labels: Labels) -> list[Block]:
    """One site left out in turn; and what updating the intercept on local patients does."""
    _ = labels.translate
    blocks: list[Block] = []
    if prediction.left_out:
        blocks += [Text(_("The model is fitted on the other sites and judged at the one that was left out.")),
                   _left_out_figure(prediction.left_out, labels), _left_out_table(prediction.left_out, labels)]  # fmt: skip
        verdicts = [sentence for row in main_left_out(prediction) if (sentence := calibration_sentence(row, labels))]
        if verdicts:
            blocks.append(Bullets(tuple(verdicts)))
    if prediction.recalibration:
        blocks.append(_recalibration(prediction, labels))
    return blocks


def main_left_out(prediction: Prediction) -> list[LeftOut]:
    """Sites left out from the study's own method, or from the first one that there is."""
    first = next((row.method for row in prediction.left_out if row.method == "main"), None)
    return [row for row in prediction.left_out if first in (None, row.method)]


def calibration_sentence(row: Judged, labels: Labels) -> str:
    """What observed over expected means for a site that would use the federated model; empty where nothing is wrong."""
    _ = labels.translate
    if row.where != "federated" or row.site is None or row.oe is None or row.oe_low is None or row.oe_high is None:
        return ""
    words = {"site": labels.site(row.site), "ratio": number(row.oe), "interval": labels.ends(row.oe_low, row.oe_high)}
    if row.oe_low > 1:
        return _(
            "{site}: the federated model's risks are too low here, observed / expected {ratio} (95% interval {interval}); "
            "recalibrate it before use."
        ).format(**words)
    if row.oe_high < 1:
        return _(
            "{site}: the federated model's risks are too high here, observed / expected {ratio} (95% interval {interval}); "
            "recalibrate it before use."
        ).format(**words)
    return ""


def calibration_summary(rows: Sequence[Judged], labels: Labels) -> str:
    """Where the federated model's risks are wrong, in one sentence; empty where no site's could be judged."""
    _ = labels.translate
    judged = [
        (row.site, row.oe_low, row.oe_high)
        for row in rows
        if row.where == "federated" and row.site and row.oe_low is not None and row.oe_high is not None
    ]
    if not judged:
        return ""
    words = {
        "low": labels.site_list([site for site, low, _high in judged if low > 1]),
        "high": labels.site_list([site for site, _low, high in judged if high < 1]),
    }
    if words["low"] and words["high"]:
        sentence = _("Its risks are too low at {low} and too high at {high}: recalibrate it there before use.")
    elif words["low"]:
        sentence = _("Its risks are too low at {low}: recalibrate it there before use.")
    elif words["high"]:
        sentence = _("Its risks are too high at {high}: recalibrate it there before use.")
    else:
        sentence = _("Its risks do not clearly differ from what was observed at any site that could be judged.")
    return sentence.format(**words)


def _left_out_name(row: LeftOut, rows: Sequence[LeftOut], labels: Labels) -> str:
    several = len({each.method for each in rows}) > 1
    return labels.method(row.method) if several else labels.where("federated")


def _left_out_figure(rows: Sequence[LeftOut], labels: Labels) -> Figure:
    _ = labels.translate
    groups = []
    for site in dict.fromkeys(row.site for row in rows):
        members = [
            Estimated(_left_out_name(row, rows, labels), row.auc, row.auc_low, row.auc_high, why=_(auc_reason(row)))
            for row in rows
            if row.site == site
        ]
        groups.append((labels.site(site), members))
    return dots(
        groups,
        title=_("AUC at the site that was left out"),
        caption=_("0.5 is chance, 1 is perfect; lines are 95% intervals."),
        heads=(_("Site left out"), _("Model"), _("AUC (95% interval)")),
        reference=0.5,
        lang=labels.lang,
    )


def _left_out_table(rows: Sequence[LeftOut], labels: Labels) -> Tabled:
    _ = labels.translate
    several = len({row.method for row in rows}) > 1
    cells = []
    for row in rows:
        judged = row.n > 0
        cells.append(
            (
                labels.site(row.site),
                *([_left_out_name(row, rows, labels)] if several else []),
                number(row.n if judged else None, 0),
                number(row.events if judged else None, 0),
                labels.with_interval(row.auc, row.auc_low, row.auc_high, auc_reason(row), 3),
                labels.with_interval(row.oe, row.oe_low, row.oe_high, NOT_REPORTED) if judged else "–",
                number(row.brier, 3),
                "–" if row.difference_from_pooled is None else power_of_ten(row.difference_from_pooled),
            )
        )
    columns = (
        _("Site left out"), *([_("Model")] if several else []), "n", _("Events"), "AUC", _("Observed / expected"),
        _("Brier score"), _("AUC: difference from pooled"),
    )  # fmt: skip
    return Tabled(_("One site left out in turn, with 95% intervals"), Table(columns, tuple(cells)))


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
        sentence = _("Patients needed for 90% of draws to lie within 0.9 to 1.1: {needed}.")
        caption = labels.joined(caption, sentence.format(needed=_(", ").join(needed)))
    return dots(
        rows,
        title=_("Recalibration on local patients"),
        caption=caption,
        heads=(_("Site"), _("Model"), _("Observed / expected")),
        reference=1.0,
        lang=labels.lang,
    )


def coefficient_blocks(prediction: Prediction, labels: Labels) -> list[Block]:
    """The federated model's odds ratios."""
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
        caption = labels.joined(caption, _("Intercept, as log odds: {value}.").format(value=number(intercept, 3)))
    heads = (_("Variable"), "", _("Odds ratio (95% interval)"))
    return [forest(rows, title=_("Odds ratios in the model"), caption=caption, heads=heads, lang=labels.lang)]
