"""The last part of a report: what its words mean, for readers who are no statisticians."""

from medfed.evaluation.figure import Table
from medfed.evaluation.page import Section, Tabled
from medfed.evaluation.report_labels import Labels, unit_text


def guide_section(labels: Labels) -> Section:
    """Words of this report, those that its kind of question needs."""
    _ = labels.translate
    common = [
        (
            _("Site, coordinator"),
            _(
                "A site is an institution with data of its own. The coordinator runs the study and never holds a patient's record."
            ),
        ),
        (
            _("95% interval"),
            _("Values that fit the data well: in 95 of 100 such studies the interval would contain the true value."),
        ),
        (
            _("Held back"),
            _(
                "A site's own policy did not let an answer out, as for a count of patients below the smallest that may be seen."
            ),
        ),
        (
            _("Federated"),
            _("Learned across sites from sums that each of them released, while every row stayed where it is."),
        ),
        (
            _("Pooled"),
            _(
                "What the same method gives on all rows in one place; known only where one process holds them, as in a what-if."
            ),
        ),
    ]
    if labels.data.kind == "treatment_effect":
        own = [
            (
                _("Risk ratio"),
                _("Risk in one arm divided by the risk in the other: 1 is no difference, 0.5 half the risk."),
            ),
            (
                _("Odds ratio"),
                _(
                    "The same for odds, events divided by non-events. Further from 1 than the risk ratio unless events are rare."
                ),
            ),
            (_("Adjusted"), _("With the other variables in the model held the same.")),
        ]
    elif labels.data.statistics is not None:
        own = [
            (_("Adjusted"), _("With the other variables in the model held the same.")),
            (
                _("P"),
                _("How often chance alone would give a difference at least as large, were there none."),
            ),
            (
                _("standardised difference"),
                _("Difference between two groups in standard deviations: 0.1 is small, 0.5 is large."),
            ),
        ]
    else:
        own = [
            (_("Local"), _("Learned by a site from its own rows alone, with the same method.")),
            (
                _("AUC"),
                _(
                    "Chance that a patient with the event has a higher score than one without: 0.5 is chance, 1 is perfect."
                ),
            ),
            (_("Observed / expected"), _("Events that happened, divided by those the model predicted: 1 is right.")),
            (_("Calibration slope"), _("1 is right; below 1 the model's risks are too extreme, above 1 too timid.")),
            (_("Brier score"), _("Mean squared difference between risk and outcome: 0 is perfect.")),
        ]
    blocks = [Tabled("", Table((_("Word"), _("Meaning")), (*common, *own)))]
    variables = tuple(
        (name, labels.text(shown.meaning), unit_text(shown.unit, _) if shown.unit else "")
        for name, shown in labels.data.study.variables.items()
        if shown.meaning
    )
    if variables:
        blocks.append(Tabled(_("Variables of the study"), Table((_("Variable"), _("Meaning"), _("Unit")), variables)))
    return Section("words", _("Words in this report"), blocks)
