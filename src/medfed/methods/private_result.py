"""Results of private methods as a statistician reads them: what was released, with what the noise alone leaves open.

There are no standard errors of coefficients: they are not released. ``medfed privacy plan`` says what error to expect.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medfed.language import number, power_of_ten, translator
from medfed.methods.tables import Shown, text_of
from medfed.study import Study

_RATIOS = ("logistic", "poisson")


@dataclass(frozen=True)
class PrivateFit:
    """A model of noisy sums. values: the result of a run of ``PrivateGLM`` or ``PrivateFedAvg``."""

    study: Study
    values: Mapping[str, Any]

    @property
    def family(self) -> str:
        return str(self.study.method.settings.get("family", "logistic"))

    @property
    def params(self) -> "pd.Series[float]":
        """Coefficients on the scale of the linear predictor, in study units."""
        coefficients, centre, scale = (np.asarray(self.values[each]) for each in ("coefficients", "centre", "scale"))
        found = coefficients / scale
        found[0] = coefficients[0] - (coefficients * centre / scale)[1:].sum()
        return pd.Series(found, index=list(self.study.design.names))

    def to_frame(self) -> pd.DataFrame:
        """One row a coefficient: estimate, and of logistic and Poisson models its ratio."""
        frame = pd.DataFrame({"estimate": self.params})
        if self.family in _RATIOS:
            frame["ratio"] = np.exp(self.params)
        return frame

    def summary(self, lang: str = "en") -> str:
        """The fit as a text table."""
        return text_of(self.tables(lang))

    def tables(self, lang: str = "en") -> list[Shown]:
        """What ``summary`` prints, for pages as well."""
        _ = translator(lang)
        ratio = {"logistic": _("odds ratio"), "poisson": _("ratio")}.get(self.family)
        facts = [
            (_("Model"), self.family),
            (_("Patients, with noise"), number(float(self.values["patients"]), 0)),
            (_("Sites"), ", ".join(self.values["sites"])),
            *_promise(self.study, lang),
            (_("Standard errors"), _("not released")),
        ]
        words = {"intercept": _("intercept")}
        rows = [
            [words.get(str(name), str(name)), number(row["estimate"], 4)]
            + ([number(row["ratio"], 3) if name != "intercept" else ""] if ratio else [])
            for name, row in self.to_frame().iterrows()
        ]
        return [Shown(facts, ["", _("estimate"), *([ratio] if ratio else [])], rows)]


@dataclass(frozen=True)
class PrivateDescription:
    """Counts, means and histograms with noise. values: the result of a run of ``PrivateDescribe``."""

    study: Study
    values: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row a mean and a count: variable, code ("" for a mean), value, deviation of its noise, lower, upper (95 %).

        Intervals hold the noise alone. A mean whose count is within the noise is NaN.
        """
        rows = [
            {"variable": name, "code": "", **_figures(found)} for name, found in self.values["means"].items()
        ] + [
            {"variable": name, "code": code, **_figures(found)}
            for name, codes in self.values["levels"].items()
            for code, found in codes.items()
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["variable", "code", "value", "deviation", "lower", "upper"])

    def histogram(self, name: str) -> pd.DataFrame:
        """One row a bin of a number's declared range: low, high, patients, deviation of the noise."""
        found = self.values["histograms"][name]
        edges = np.asarray(found["edges"])
        return pd.DataFrame(
            {"low": edges[:-1], "high": edges[1:], "patients": found["counts"], "deviation": found["deviation"]}
        )

    def summary(self, lang: str = "en") -> str:
        """The description as text tables."""
        return text_of(self.tables(lang))

    def tables(self, lang: str = "en") -> list[Shown]:
        """What ``summary`` prints, for pages as well."""
        _ = translator(lang)
        patients = self.values["patients"]
        facts = [
            (_("Patients, with noise"), f"{number(patients['value'], 0)} (± {number(patients['deviation'], 1)})"),
            (_("Sites"), ", ".join(self.values["sites"])),
            *_promise(self.study, lang),
            (_("Intervals"), _("hold the noise alone")),
        ]
        frame = self.to_frame()
        limits = [_("95% lower"), _("95% upper")]
        means = [
            [row["variable"], *(number(row[each], 3) for each in ("value", "lower", "upper"))]
            for _index, row in frame[frame["code"] == ""].iterrows()
        ]
        counts = [
            [row["variable"], row["code"], *(number(row[each], 0) for each in ("value", "lower", "upper"))]
            for _index, row in frame[frame["code"] != ""].iterrows()
        ]
        bins = [
            [
                name,
                f"{number(row['low'], 2)} – {number(row['high'], 2)}",
                number(row["patients"], 0),
                number(row["deviation"], 1),
            ]
            for name in self.values["histograms"]
            for _index, row in self.histogram(name).iterrows()
        ]
        found = [
            Shown([], ["", _("mean"), *limits], means),
            Shown([], [_("Variable"), _("code"), _("Patients"), *limits], counts),
            Shown([], [_("Variable"), _("bin"), _("Patients"), _("SD of the noise")], bins),
        ]
        filled = [table for table in found if table.rows]
        return [Shown(facts, filled[0].header, filled[0].rows), *filled[1:]]


def _figures(found: Mapping[str, Any]) -> dict[str, float]:
    """value, deviation, lower, upper; NaN for what is not known."""
    known = {key: np.nan if found[key] is None else float(found[key]) for key in ("value", "deviation", "low", "high")}
    return {"value": known["value"], "deviation": known["deviation"], "lower": known["low"], "upper": known["high"]}


def _promise(study: Study, lang: str) -> list[tuple[str, str]]:
    _ = translator(lang)
    if study.privacy.epsilon is None or study.privacy.delta is None:
        return []
    words = {"epsilon": f"{study.privacy.epsilon:g}", "delta": power_of_ten(study.privacy.delta)}
    return [(_("Differential privacy"), _("epsilon {epsilon} at delta {delta}").format(**words))]
