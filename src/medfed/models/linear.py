"""Linear and logistic models as artefacts: what is sent back to a hospital and applied there. No federation here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.canonical import digest, pack, unpack, write_atomically
from medfed.errors import LedgerError, StudyError

FloatArray = NDArray[np.float64]
_NORMAL_975 = 1.959963984540054


@dataclass(frozen=True)
class LinearModel:
    """A fitted model on standardised features.

    kind: logistic | gaussian. names: feature columns, intercept first. centre, scale, coefficients: (p,).
    covariance: (p, p) of the coefficients, or zeros where the method gives none. low, high: (p,) the range that the
    study declares for each feature. study: hash of the study. provenance: run, method, sites, patients (JSON values).
    """

    kind: str
    names: tuple[str, ...]
    centre: FloatArray
    scale: FloatArray
    coefficients: FloatArray
    covariance: FloatArray
    low: FloatArray
    high: FloatArray
    study: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def standardised(self, raw: FloatArray) -> FloatArray:
        """Features in the study's units (n, p), missing NaN -> standardised, missing at the mean."""
        x = (np.asarray(raw, dtype=np.float64) - self.centre) / self.scale
        return np.where(np.isfinite(x), x, 0.0)

    def linear_predictor(self, raw: FloatArray) -> FloatArray:
        """(n, p) -> (n,)."""
        return np.asarray(self.standardised(raw) @ self.coefficients)

    def predict(self, raw: FloatArray) -> FloatArray:
        """Risk (logistic) or mean (gaussian): (n, p) -> (n,)."""
        return self._mean(self.linear_predictor(raw))

    def interval(self, raw: FloatArray) -> tuple[FloatArray, FloatArray]:
        """95 % interval of the prediction from the coefficients' covariance (Wald on the linear predictor)."""
        x = self.standardised(raw)
        middle = x @ self.coefficients
        half = _NORMAL_975 * np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", x, self.covariance, x), 0.0))
        return self._mean(middle - half), self._mean(middle + half)

    @property
    def has_interval(self) -> bool:
        return bool(np.any(self.covariance))

    def outside(self, raw: FloatArray, most_deviations: float = 4.0) -> NDArray[np.bool_]:
        """Rows (n,) that the model has not learned from: outside the declared range, or far from the training mean."""
        raw = np.asarray(raw, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            beyond = (raw < self.low) | (raw > self.high)
            far = (np.abs(raw - self.centre) > most_deviations * self.scale) & (self.scale != 1.0)
        return np.asarray((beyond | far).any(1))

    def with_intercept(self, change: float, slope: float = 1.0) -> "LinearModel":
        """The model after recalibration: a + b x linear predictor."""
        coefficients = self.coefficients * slope
        coefficients[0] += change
        return LinearModel(
            self.kind, self.names, self.centre, self.scale, coefficients, self.covariance * slope**2, self.low,
            self.high, self.study, {**self.provenance, "recalibrated": {"intercept": change, "slope": slope}},
        )  # fmt: skip

    def _mean(self, eta: FloatArray) -> FloatArray:
        return np.asarray(0.5 * (1 + np.tanh(0.5 * eta)) if self.kind == "logistic" else eta)

    # -- bytes -----------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        tree = {
            "format": "medfed linear model 1",
            "kind": self.kind,
            "names": list(self.names),
            "centre": self.centre,
            "scale": self.scale,
            "coefficients": self.coefficients,
            "covariance": self.covariance,
            "low": self.low,
            "high": self.high,
            "study": self.study,
            "provenance": dict(self.provenance),
        }
        return pack(tree)

    @property
    def hash(self) -> str:
        """SHA-256 of the model's bytes: what a prediction names."""
        return digest(self.to_bytes())

    def save(self, path: Path) -> None:
        write_atomically(path, self.to_bytes())


def load_model(path: Path) -> LinearModel:
    """Read a model file. StudyError when it is missing, damaged or no model."""
    if not path.exists():
        raise StudyError(f"{path} does not exist; `medfed run` writes model files into the coordinator's folder")
    try:
        tree = unpack(path.read_bytes())
        if tree.pop("format", None) != "medfed linear model 1":
            raise KeyError("format")
        names: Sequence[str] = tree.pop("names")
        return LinearModel(names=tuple(names), **tree)
    except (LedgerError, KeyError, TypeError):
        raise StudyError(f"{path} is not a medfed model, or is damaged; ask the coordinator for it again") from None
