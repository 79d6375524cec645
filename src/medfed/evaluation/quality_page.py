"""A site's own quality page: what became of its rows, and what each variable looks like, before anything runs.

The page stays at the site, which may see its own counts; nothing here is held back.
"""

import re
from collections.abc import Mapping
from typing import Any

from medfed.evaluation.charts import Dropped, Estimated, bars, flow
from medfed.evaluation.figure import Table
from medfed.evaluation.page import Block, Bullets, Head, Section, Tabled, Text, render_page
from medfed.evaluation.report_labels import unit_text
from medfed.language import Translate, number, percent, translator
from medfed.study import Study
from medfed.study.variables import text_in


def render(quality: Mapping[str, Any], study: Study, site_title: str, lang: str = "en") -> str:
    """The page of one site and study.

    quality: ``Quality.to_dict()``, or the same read back from table.json. Raises MedfedError for an unknown language.
    """
    _ = translator(lang)
    read, kept = int(quality["rows_read"]), int(quality["rows_kept"])
    rows = {"kept": number(kept, 0), "read": number(read, 0), "share": percent(kept / read) if read else "–"}
    missing = [name for name, found in quality["variables"].items() if found["missing"]]
    detail = (
        _("Values are missing in {variables}.").format(variables=_(", ").join(missing))
        if missing
        else _("No value of the study's variables is missing.")
    )
    head = Head(
        kicker=_("Quality page · stays at the site"),
        title=site_title,
        question=text_in(study.title, lang),
        answer=_("{kept} of {read} rows go into the study table ({share}).").format(**rows),
        detail=detail,
        facts=(
            (_("Rows read"), rows["read"]),
            (_("Rows kept"), rows["kept"]),
            (_("Rows of repeated patients"), number(quality["duplicates"], 0)),
            (_("Table version"), str(quality.get("version", ""))[:12] or "–"),
        ),
    )
    sections = [
        Section("rows", _("What became of the rows"), [_flow(quality, study, _, lang), *_warnings(quality, _)]),
        Section(
            "variables", _("Variables"), [*_numbers(quality, study, _, lang), *_missingness(quality, study, _, lang)]
        ),
        Section("levels", _("Codes"), _levels(quality, study, _, lang)),
        Section("lineage", _("Where the table comes from"), _lineage(quality, _)),
    ]
    foot = [_("Hash of the study: {hash}").format(hash=study.hash)]
    return render_page(head, [section for section in sections if section.blocks], lang=lang, foot=foot)


# The reasons and warnings of the table builder, which names variables in them.
_NOBODY = re.compile(r"(?P<variable>.+) is missing for every patient; check its mapping")
_MISSING = re.compile(r"(?P<variable>.+) is missing")
_OUTSIDE = re.compile(r"outside the cohort: (?P<variable>.+)")
_ONE_CLASS = re.compile(r"every patient has the same outcome \((?P<variable>.+)\); .*")
_CONSTANT = re.compile(r"(?P<variable>.+) has the same value for every patient; check its mapping")


def reason_text(reason: str, _: Translate) -> str:
    """A reason why rows were dropped, or a warning, in the page's language."""
    if found := _NOBODY.fullmatch(reason):
        return _("{variable} is missing for every patient; check its mapping").format(**found.groupdict())
    if found := _MISSING.fullmatch(reason):
        return _("{variable} is missing").format(**found.groupdict())
    if found := _OUTSIDE.fullmatch(reason):
        return _("outside the cohort: {variable}").format(**found.groupdict())
    if found := _ONE_CLASS.fullmatch(reason):
        return _(
            "every patient has the same outcome ({variable}); with plain sums the site can't take part in most methods"
        ).format(**found.groupdict())
    if found := _CONSTANT.fullmatch(reason):
        return _("{variable} has the same value for every patient; check its mapping").format(**found.groupdict())
    fixed = {
        "no patient identifier": _("no patient identifier"),
        "another row of the same patient": _("another row of the same patient"),
    }
    return fixed.get(reason, reason)


def _flow(quality: Mapping[str, Any], study: Study, _: Translate, lang: str) -> Block:
    dropped = [Dropped(reason_text(reason, _), int(count)) for reason, count in quality["dropped"].items()]
    out = sum(each.count for each in dropped)
    return flow(
        (_("Rows in the export"), int(quality["rows_read"])),
        dropped,
        (_("Rows in the study table"), int(quality["rows_kept"])),
        title=_("From the export to the study table"),
        caption=_("A row is counted under the first reason that applies to it.")
        if dropped
        else _("No row was left out."),
        dropped_head=_("Left out: {count} rows").format(count=number(out, 0)),
        lang=lang,
    )


def _warnings(quality: Mapping[str, Any], _: Translate) -> list[Block]:
    warnings = tuple(reason_text(str(warning), _) for warning in quality["warnings"])
    return [Text(_("To look at:"), "verdict"), Bullets(warnings)] if warnings else []


def _meaning(study: Study, name: str, lang: str) -> str:
    variable = study.variables.get(name)
    return text_in(variable.meaning, lang) if variable is not None else name


def _numbers(quality: Mapping[str, Any], study: Study, _: Translate, lang: str) -> list[Block]:
    rows = []
    for name, found in quality["variables"].items():
        variable = study.variables.get(name)
        unit = variable.unit if variable is not None and variable.unit not in (None, "1") else ""
        spread = "–"
        if found.get("mean") is not None:
            spread = f"{number(found['mean'], 1)} ± {number(found['deviation'], 1)} {unit_text(unit, _) if unit else ''}".rstrip()
        rows.append(
            (
                _("{name}: {meaning}").format(name=name, meaning=_meaning(study, name, lang)),
                number(found["known"], 0),
                number(found["missing"], 0),
                number(found.get("out_of_range", 0), 0),
                spread,
            )
        )
    columns = (_("Variable"), _("Known"), _("Missing"), _("Out of range"), _("Mean ± SD"))
    note = _(
        "Known and missing count the rows read with one patient each; the mean is that of the rows kept. A value out of range counts as missing."
    )
    return [Tabled("", Table(columns, tuple(rows))), Text(note, "note")]


def _missingness(quality: Mapping[str, Any], study: Study, _: Translate, lang: str) -> list[Block]:
    rows = []
    for name, found in quality["variables"].items():
        total = found["known"] + found["missing"]
        if found["missing"] and total:
            counts = _("{events} of {patients}").format(events=number(found["missing"], 0), patients=number(total, 0))
            rows.append(Estimated(name, found["missing"] / total, detail=counts))
    if not rows:
        return []
    heads = (_("Variable"), _("Rows"), _("Missing"))
    caption = _("Share of rows without a value, before rows are dropped for it.")
    figure = bars(
        rows,
        title=_("Missing values"),
        caption=caption,
        heads=heads,
        lang=lang,
        form=percent,
    )
    return [figure]


def _levels(quality: Mapping[str, Any], study: Study, _: Translate, lang: str) -> list[Block]:
    blocks: list[Block] = []
    for name, found in quality["variables"].items():
        levels = found.get("levels") or {}
        total = sum(levels.values())
        if not total:
            continue
        variable = study.variables.get(name)
        codes = (variable.codes if variable is not None else None) or {}
        rows = [
            Estimated(text_in(codes.get(level, level), lang), count / total, detail=number(count, 0))
            for level, count in levels.items()
        ]
        blocks.append(
            bars(
                rows,
                title=_("{name}: {meaning}").format(name=name, meaning=_meaning(study, name, lang)),
                caption=_("Rows kept, {count} in all.").format(count=number(total, 0)),
                heads=(_("Code"), _("Rows"), _("Share")),
                lang=lang,
                form=percent,
            )
        )
    return blocks


def _lineage(quality: Mapping[str, Any], _: Translate) -> list[Block]:
    lineage = quality.get("lineage") or {}
    rows = [(str(path), str(hash_)[:16]) for path, hash_ in (lineage.get("sources") or {}).items()]
    known = {"mapping": _("Mapping (site.yaml)"), "study": _("Study")}
    rows += [(title, str(lineage[key])[:16]) for key, title in known.items() if lineage.get(key)]
    if not rows:
        return []
    return [Tabled("", Table((_("From"), _("Beginning of its SHA-256 hash")), tuple(rows)))]
