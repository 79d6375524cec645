"""What things are called in a report, in its language: sites, arms, features, methods, and reasons for what is missing."""

import re
from dataclasses import dataclass
from functools import cached_property

from medfed.evaluation.figure import interval_text, why_text
from medfed.evaluation.report_data import ReportData
from medfed.language import Translate, number, percent, translator
from medfed.study.variables import Text, text_in


@dataclass(frozen=True)
class Labels:
    """Labels of one report in one language."""

    data: ReportData
    lang: str

    @cached_property
    def translate(self) -> Translate:
        return translator(self.lang)

    def text(self, value: Text) -> str:
        """A text of the study in this language."""
        return text_in(value, self.lang)

    def site(self, name: str | None) -> str:
        """A site's title; all sites where there is none."""
        _ = self.translate
        if name is None:
            return _("All sites")
        return next((self.text(site.title) for site in self.data.sites if site.name == name), name)

    def place(self, name: str | None) -> int:
        """Where a site stands among the invited ones; all sites together come first, unknown ones last."""
        names = [site.name for site in self.data.sites]
        return -1 if name is None else names.index(name) if name in names else len(names)

    def joined(self, *sentences: str) -> str:
        """Sentences one after the other; Chinese ones without a space between them."""
        return ("" if self.lang == "zh" else " ").join(sentence for sentence in sentences if sentence)

    def site_list(self, names: list[str]) -> str:
        """Titles in a row."""
        _ = self.translate
        return _(", ").join(self.site(name) for name in names)

    def arm(self, level: str) -> str:
        """A treatment arm."""
        return self._level(self.data.study.arm or "", level)

    def _level(self, variable: str, level: str) -> str:
        _ = self.translate
        if level == "unknown":
            return _("not known")
        shown = self.data.study.variables.get(variable)
        return self.text((shown.codes or {}).get(level, level)) if shown else level

    def feature(self, name: str) -> str:
        """A feature column: "arm=indomethacin" -> its meaning and level, "age" -> its meaning and unit."""
        _ = self.translate
        variable, _sign, level = name.partition("=")
        if name == "intercept":
            return _("Intercept")
        shown = self.data.study.variables.get(variable)
        meaning = short_meaning(self.text(shown.meaning)) if shown and shown.meaning else variable
        if level:
            return _("{meaning}: {level}").format(meaning=meaning, level=self._level(variable, level))
        unit = shown.unit if shown else None
        return _("{meaning}, per {unit}").format(meaning=meaning, unit=unit_text(unit, _)) if unit else meaning

    @cached_property
    def event(self) -> str:
        """What the outcome means."""
        shown = self.data.study.variables.get(self.data.study.outcome or "")
        return self.text(shown.meaning) if shown and shown.meaning else (self.data.study.outcome or "")

    def method(self, name: str, use: str = "") -> str:
        """A method of learning."""
        _ = self.translate
        known = {
            "Newton": _("Exact regression"),
            "FedAvg": _("Federated averaging"),
            "Scaffold": _("SCAFFOLD"),
            "FedSGD": _("Federated gradient descent"),
        }
        return known.get(use, use or name)

    def where(self, where: str) -> str:
        """Where a model was fitted."""
        _ = self.translate
        return {"local": _("local"), "federated": _("federated"), "pooled": _("pooled")}[where]

    def why(self, reason: str) -> str:
        """ "not shown: ..." in this language."""
        return why_text(self.translate(reason), self.translate)

    def ends(self, low: float | None, high: float | None, digits: int = 2) -> str:
        """ "0.55 to 0.67"."""
        return interval_text(low, high, lambda end: number(end, digits), self.translate)

    def percent_ends(self, low: float | None, high: float | None) -> str:
        """ "6.3% to 13.1%"."""
        return interval_text(low, high, percent, self.translate)

    def with_interval(
        self, value: float | None, low: float | None, high: float | None, reason: str, digits: int = 2
    ) -> str:
        """ "0.61 (0.55 to 0.67)", or why there is no number."""
        if value is None:
            return self.why(reason)
        inside = self.ends(low, high, digits)
        return f"{number(value, digits)} ({inside})" if inside else number(value, digits)

    def p_value(self, p: float | None) -> str:
        """A P value as journals write it."""
        if p is None:
            return "–"
        return "<0.001" if p < 0.001 else number(p, 3 if p < 0.1 else 2)


# Where an aside begins in a variable's meaning.
_ASIDE = re.compile(r", | \(|，|（|；|; ")


def short_meaning(meaning: str) -> str:
    """A variable's meaning without its asides, for the margin of a chart: the report's last part has all of it."""
    return _ASIDE.split(meaning)[0].strip() or meaning


def unit_text(unit: str, _: Translate) -> str:
    """A unit, for people: the few that have a name of their own, others as they are."""
    known = {"1": _("point"), "year": _("year"), "1/minute": "1/min"}
    return known.get(unit, unit)
