"""The part of a report that answers a question on treatment: risks by arm, ratios, adjusted ratios, sites beside the total."""

from medfed.evaluation.charts import Estimated, bars, forest
from medfed.evaluation.figure import Table
from medfed.evaluation.page import Block, Heading, Section, Tabled, Text
from medfed.evaluation.report_data import ROWS_APART, SITES_HIDDEN, Effect, Interval, Named
from medfed.evaluation.report_labels import Labels
from medfed.language import number, percent, power_of_ten


def effect_answer(effect: Effect, labels: Labels) -> tuple[str, str]:
    """The answer in one sentence with its interval, and how many patients it rests on."""
    _ = labels.translate
    reference, arm = effect.arms[0], effect.arms[1]
    ratio = effect.risk_ratio
    words = {
        "arm": labels.arm(arm.name),
        "reference": labels.arm(reference.name),
        "risk": percent(arm.value),
        "reference_risk": percent(reference.value),
        "ratio": number(ratio.value),
        "interval": labels.ends(ratio.low, ratio.high),
    }
    if ratio.value is None:
        answer = _("The risks can't be compared: an arm has no event.")
    elif ratio.high is not None and ratio.high < 1:
        answer = _(
            "The risk was lower with {arm} than with {reference}: {risk} against {reference_risk}, "
            "risk ratio {ratio} (95% interval {interval})."
        ).format(**words)
    elif ratio.low is not None and ratio.low > 1:
        answer = _(
            "The risk was higher with {arm} than with {reference}: {risk} against {reference_risk}, "
            "risk ratio {ratio} (95% interval {interval})."
        ).format(**words)
    else:
        answer = _(
            "The risks with {arm} and with {reference} do not clearly differ: {risk} against {reference_risk}, "
            "risk ratio {ratio} (95% interval {interval}, which includes 1)."
        ).format(**words)
    counts = [
        _("{events} of {patients} with {arm}").format(
            events=number(each.events, 0), patients=number(each.patients, 0), arm=labels.arm(each.name)
        )
        for each in (arm, reference)
    ]
    detail = _("Patients with the event: {counts}.").format(counts=_(", ").join(counts))
    if labels.event:
        detail = labels.joined(detail, _("The event: {event}.").format(event=labels.event))
    return answer, detail


def effect_section(effect: Effect, labels: Labels) -> Section:
    """Figures and tables of a treatment's effect."""
    _ = labels.translate
    blocks: list[Block] = [_risks(effect, labels), *_ratios(effect, labels), *_adjusted(effect, labels)]
    blocks += _by_site(effect, labels)
    blocks += [Heading(_("Compared with pooled data")), Text(pooled_sentence(effect.difference_from_pooled, labels))]
    return Section("effect", _("Effect of the treatment"), blocks)


def pooled_sentence(difference: float | None, labels: Labels) -> str:
    """How far the federated figures are from those of all rows in one place, or why that is not shown."""
    _ = labels.translate
    if difference is None:
        return _("The difference from a fit on all rows in one place is {why}.").format(why=labels.why(ROWS_APART))
    return _(
        "Fitted on all rows in one place, the same model gives the same figures: the largest difference is {difference}."
    ).format(difference=power_of_ten(difference))


def _risks(effect: Effect, labels: Labels) -> Block:
    _ = labels.translate
    rows = [
        Estimated(
            labels.arm(arm.name), arm.value, arm.low, arm.high,
            _("{events} of {patients}").format(events=number(arm.events, 0), patients=number(arm.patients, 0)),
        )
        for arm in effect.arms
    ]  # fmt: skip
    return bars(
        rows,
        title=_("Risk by arm"),
        caption=_("Share of patients with the event in each arm, with 95% score intervals (Wilson)."),
        heads=(_("Arm"), _("Patients with the event"), _("Risk (95% interval)")),
        lang=labels.lang,
        form=percent,
    )


def _ratios(effect: Effect, labels: Labels) -> list[Block]:
    _ = labels.translate
    measures: list[tuple[str, Interval, float, int]] = [
        (_("Risk ratio"), effect.risk_ratio, 1, 2),
        (_("Risk difference, in percentage points"), effect.risk_difference, 100, 1),
    ]
    if effect.crude_odds_ratio is not None:
        measures.append((_("Odds ratio, not adjusted"), effect.crude_odds_ratio, 1, 2))
    measures += [(_("Odds ratio, adjusted"), row, 1, 2) for row in effect.adjusted if _is_arm(row, labels)][:1]
    with_p = all(found.p is not None for _name, found, _factor, _digits in measures)
    rows = []
    for name, found, factor, digits in measures:
        value, low, high = (None if end is None else factor * end for end in (found.value, found.low, found.high))
        cells = (name, number(value, digits), labels.ends(low, high, digits))
        rows.append((*cells, labels.p_value(found.p)) if with_p else cells)
    caption = _("{arm} compared with {reference}").format(
        arm=labels.arm(effect.arms[1].name), reference=labels.arm(effect.arms[0].name)
    )
    columns = (_("Measure"), _("Estimate"), _("95% interval"), *(["P"] if with_p else []))
    return [Tabled(caption[:1].upper() + caption[1:], Table(columns, tuple(rows)))]


def _is_arm(row: Named, labels: Labels) -> bool:
    return row.name.partition("=")[0] == (labels.data.study.arm or "arm")


def _adjusted(effect: Effect, labels: Labels) -> list[Block]:
    _ = labels.translate
    if not effect.adjusted:
        return []
    rows = [
        Estimated(
            labels.feature(row.name),
            row.value,
            row.low,
            row.high,
            labels.p_value(row.p) if row.p is not None else "",
        )
        for row in effect.adjusted
    ]
    return [
        forest(
            rows,
            title=_("Adjusted odds ratios"),
            caption=_(
                "One logistic regression over all counted sites, without a term for each site. An odds ratio of 1 means "
                "no association; intervals are Wald's."
            ),
            heads=(
                _("Variable"),
                "P" if any(row.p is not None for row in effect.adjusted) else "",
                _("Odds ratio (95% interval)"),
            ),
            lang=labels.lang,
        )
    ]


def _by_site(effect: Effect, labels: Labels) -> list[Block]:
    _ = labels.translate
    if not effect.by_site:
        return [
            Heading(_("Risk ratio by site")),
            Text(
                _("Risk ratios of single sites are {why}.").format(
                    why=labels.why(effect.by_site_reason or SITES_HIDDEN)
                )
            ),
        ]
    rows = [
        Estimated(
            labels.site(row.site), row.value, row.low, row.high, _counts(row.counts, labels) if row.counts else "",
            why=_(row.reason or SITES_HIDDEN),
        )
        for row in sorted(effect.by_site, key=lambda row: labels.place(row.site))
    ]  # fmt: skip
    arm, reference = effect.arms[1], effect.arms[0]
    ratio = effect.risk_ratio
    total = _counts((arm.events, arm.patients, reference.events, reference.patients), labels)
    rows.append(Estimated(_("All counted sites"), ratio.value, ratio.low, ratio.high, total, total=True))
    names = {"arm": labels.arm(arm.name), "reference": labels.arm(reference.name)}
    return [
        forest(
            rows,
            title=_("Risk ratio by site"),
            caption=_(
                "Each square is one site, the diamond all counted sites together; lines are 95% intervals, on a log scale."
            ),
            heads=(_("Site"), _("Events: {arm}, {reference}").format(**names), _("Risk ratio (95% interval)")),
            favours=(_("lower risk with {arm}").format(**names), _("higher risk with {arm}").format(**names)),
            lang=labels.lang,
        )
    ]


def _counts(counts: tuple[int, int, int, int], labels: Labels) -> str:
    _ = labels.translate
    events, patients, reference_events, reference_patients = (number(count, 0) for count in counts)
    return _("{events} of {patients}, {reference_events} of {reference_patients}").format(
        events=events, patients=patients, reference_events=reference_events, reference_patients=reference_patients
    )
