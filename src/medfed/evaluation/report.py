"""A finished run as a page for people: the question, the answer with its interval, the sites, and what left each of them.

``render_report`` draws one language, ``write_report`` both, with the same data as JSON beside them. It shows; it
computes nothing but the verdicts that follow from an interval, and differences of figures that stand side by side.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medfed.canonical import write_atomically
from medfed.evaluation.alarms import FEWEST_SITES
from medfed.evaluation.charts import Line, curve
from medfed.evaluation.figure import Table
from medfed.evaluation.page import Block, Bullets, Head, Notice, Section, Tabled, Text, render_page
from medfed.evaluation.report_data import NO_ANSWER, ReportData, read_report_data
from medfed.evaluation.report_effect import effect_answer, effect_section
from medfed.evaluation.report_guide import guide_section
from medfed.evaluation.report_labels import Labels
from medfed.evaluation.report_leaving import leaving_section
from medfed.evaluation.report_prediction import prediction_answer, prediction_sections
from medfed.evaluation.report_statistics import statistics_answer, statistics_section
from medfed.language import power_of_ten

FILES = {"en": "report.html", "zh": "report.zh.html"}
_NAMES = {"en": "English", "zh": "中文"}


def render_report(result: Mapping[str, Any], lang: str = "en", *, linked: bool = False) -> str:
    """The report of a run as one HTML page.

    result: what ``ReportData`` describes. linked: whether the other language lies beside it. Raises StudyError where
    the result does not fit, MedfedError for an unknown language.
    """
    return _render(read_report_data(result), lang, linked=linked)


def write_report(result: Mapping[str, Any], folder: Path) -> tuple[Path, ...]:
    """Write report.html, report.zh.html and result.json into a folder, each whole or not at all; returns their paths."""
    data = read_report_data(result)
    pages = {folder / FILES[lang]: _render(data, lang, linked=True) for lang in FILES}
    pages[folder / "result.json"] = data.model_dump_json(indent=2, exclude_unset=True) + "\n"
    for path, text in pages.items():
        write_atomically(path, text.encode())
    return tuple(pages)


def _render(data: ReportData, lang: str, *, linked: bool) -> str:
    labels = Labels(data, lang)
    _ = labels.translate
    sections = [_sites(labels)]
    if data.effect is not None:
        sections.append(effect_section(data.effect, labels))
    if data.prediction is not None:
        sections += prediction_sections(data.prediction, labels)
    if data.statistics is not None:
        sections.append(statistics_section(data.statistics, labels))
    if data.training:
        sections.append(_training(labels))
    if data.alarms is not None:
        sections.append(_alarms(labels))
    sections += [leaving_section(labels), guide_section(labels)]
    foot = [
        _("Run {run} of study {name}, {started} to {ended}, medfed {version}.").format(
            run=data.run,
            name=data.study.name,
            started=minute(data.started),
            ended=minute(data.ended),
            version=data.medfed,
        ),
        _("Hash of the study: {hash}").format(hash=data.study.hash),
    ]
    if data.study.seed is not None:
        foot.append(_("Seed of everything drawn at random: {seed}").format(seed=data.study.seed))
    if data.model is not None:
        foot.append(_("Model file {file}, hash {hash}").format(file=data.model.file, hash=data.model.hash))
    return render_page(_head(labels, linked=linked), sections, lang=lang, foot=foot)


def _head(labels: Labels, *, linked: bool) -> Head:
    _, data = labels.translate, labels.data
    answer, detail = "", ""
    if data.effect is not None:
        answer, detail = effect_answer(data.effect, labels)
    elif data.prediction is not None:
        answer, detail = prediction_answer(data.prediction, labels)
    elif data.statistics is not None:
        answer, detail = statistics_answer(data.statistics, labels)
    counted = [site for site in data.sites if site.counted]
    facts = [
        (
            _("Sites in the answer"),
            _("{counted} of {invited} invited").format(counted=len(counted), invited=len(data.sites)),
        ),
        *([(_("Smallest count that may be seen"), str(data.minimum_cell))] if data.epsilon is None else []),
        (
            _("Protection of sums"),
            _("secure: only totals are seen") if data.protection == "secure" else _("plain: each site's sums are seen"),
        ),
        (
            _("Unit of privacy"),
            _("none: the rows are aggregated") if data.study.protects == "none" else _("the patient"),
        ),
    ]
    if data.epsilon is not None and data.delta is not None:
        spends = _("epsilon {epsilon} at delta {delta}; every figure carries noise")
        words = {"epsilon": f"{data.epsilon:g}", "delta": power_of_ten(data.delta)}
        facts.append((_("Differential privacy of a patient"), spends.format(**words)))
    other = next(lang for lang in FILES if lang != labels.lang)
    return Head(
        kicker=_("medfed report · {name}").format(name=data.study.name),
        title=labels.text(data.study.title),
        question=labels.text(data.study.question),
        answer=answer or _("This run has no answer yet: nothing was evaluated."),
        detail=detail,
        facts=tuple(facts),
        notices=tuple(_notices(labels)),
        other_language=(FILES[other], "zh-Hans" if other == "zh" else other, _NAMES[other]) if linked else None,
    )


def _notices(labels: Labels) -> list[Notice]:
    _, data = labels.translate, labels.data
    found = []
    if data.what_if:
        sentence = _(
            "This is a what-if for public data, in one place: its policies allow counts down to {minimum}, and figures of "
            "single sites. Between real institutions the default policy would hold much of this back."
        ).format(minimum=data.minimum_cell)
        found.append(Notice(" ".join(part for part in (sentence, labels.text(data.what_if_note)) if part), "warning"))
    found += [Notice(sentence) for sentence in held_back_sentences(labels)]
    if data.alarms:
        names = labels.site_list(list(dict.fromkeys(alarm.site for alarm in data.alarms)))
        found.append(
            Notice(_("Stands apart from the others, and needs a look: {sites}.").format(sites=names), "warning")
        )
    return found


def held_back_sentences(labels: Labels) -> list[str]:
    """One sentence for each reason why invited sites are not in the answer."""
    _ = labels.translate
    reasons: dict[str, list[str]] = {}
    for site in labels.data.sites:
        if not site.counted:
            reasons.setdefault(site.reason or NO_ANSWER, []).append(site.name)
    return [
        _("Not in this answer: {sites}, because {reason}.").format(sites=labels.site_list(names), reason=_(reason))
        for reason, names in reasons.items()
    ]


def minute(moment: str) -> str:
    """An ISO time as people write it, in UTC; other text as it is."""
    try:
        return datetime.fromisoformat(moment).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return moment or "–"


def _sites(labels: Labels) -> Section:
    _, data = labels.translate, labels.data
    with_reasons = any(not site.counted for site in data.sites)
    rows = tuple(
        (
            labels.text(site.title),
            _("yes") if site.counted else _("no"),
            *([] if not with_reasons else [""] if site.counted else [_(site.reason or NO_ANSWER)]),
        )
        for site in data.sites
    )
    columns = (_("Site"), _("Counted"), *([_("Reason")] if with_reasons else []))
    blocks: list[Block] = [Tabled(_("Invited sites"), Table(columns, rows))]
    if data.protection == "plain" and data.plain_because:
        blocks.append(Text(_("Sums are plain, because {reason}.").format(reason=_(data.plain_because)), "note"))
    if data.epsilon is not None:
        secure = _(
            "Sums are secure and carry noise: only totals are seen, and the noise of a total is spread over the sites. What protects "
            "a patient is the noise, so counts are held to no minimum, and a site of a few patients can take part."
        )
        plain = _(
            "Every site's sums carry the full noise. What protects a patient is the noise, so counts are held to no minimum, and "
            "a site of a few patients can take part."
        )
        blocks.append(Text(secure if data.protection == "secure" else plain, "note"))
    elif data.protection == "secure":
        blocks.append(
            Text(
                _(
                    "Sums are secure: every site's terms are hidden among those of the others, and only totals are seen. Counts "
                    "are held to the minimum of {minimum} in total, so that a site of a few patients can take part."
                ).format(minimum=data.minimum_cell),
                "note",
            )
        )
    if data.protection == "plain" and data.epsilon is None and with_reasons:
        blocks.append(
            Text(
                _(
                    "Sums are plain in this run: the coordinator sees those of each site. So only a site all of whose counts reach "
                    "the minimum of {minimum} contributes; the others are held back by rule, whatever their data say. Secure sums, "
                    "of which only the total is seen, would let them take part."
                ).format(minimum=data.minimum_cell),
                "note",
            )
        )
    return Section("sites", _("Sites"), blocks)


def _training(labels: Labels) -> Section:
    _, data = labels.translate, labels.data
    blocks: list[Block] = []
    measures = {"log-loss": _("Log-loss (nats per patient)")}
    for measure in dict.fromkeys(each.measure for each in data.training):
        curves = [each for each in data.training if each.measure == measure]
        blocks.append(
            curve(
                [Line(labels.method(each.name, each.name), each.rounds, each.values) for each in curves],
                title=_("Training by round"),
                caption=_("On the training rows of the counted sites, after each round."),
                x_label=_("Round"),
                y_label=measures.get(measure, measure),
                lang=labels.lang,
            )
        )
    return Section("training", _("Training"), blocks)


def _alarms(labels: Labels) -> Section:
    _, data = labels.translate, labels.data
    title = _("Does one site stand apart?")
    compared = sum(site.counted for site in data.sites) if data.sites_compared is None else data.sites_compared
    if not data.alarms and compared == 0:
        sentence = _(
            "Nobody looked: no site's own figures are seen beside the total, so none can be compared with the others."
        )
        return Section("alarms", title, [Text(sentence)])
    if not data.alarms and compared < FEWEST_SITES:
        sentence = _(
            "With fewer than {sites} sites nobody can tell which of them stands apart: event rates and signs of "
            "coefficients were not compared. Ranking worse than chance was looked for, and not found."
        ).format(sites=FEWEST_SITES)
        return Section("alarms", title, [Text(sentence)])
    if not data.alarms:
        sentence = _("No alarm: event rates, signs of coefficients and ranking set no site apart from the others.")
        return Section("alarms", title, [Text(sentence)])
    items = []
    for alarm in data.alarms:
        parameters = {**alarm.parameters, "site": labels.site(alarm.site)}
        items.append(_(alarm.sentence).format(**parameters))
    note = _(
        "An alarm asks a person to look; it proves nothing. Sites that differ by chance alone raise one in about 1 study of 20."
    )
    return Section("alarms", title, [Bullets(tuple(items)), Text(note, "note")])
