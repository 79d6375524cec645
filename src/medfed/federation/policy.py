"""A site's policy: what its data-protection officer allows, in one file that belongs to the site (policy.yaml)."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from medfed.declarations import read_text, read_yaml, validate
from medfed.errors import PolicyViolation

Kind = Literal["sum", "count", "reply"]
VALUES_PER_PATIENT: dict[Kind, float] = {"sum": 1.0, "count": 1.0, "reply": 0.5}


class AllowedPackage(BaseModel):
    """An installed package that may bring steps; pinned to a version and the hash of its files where stated."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: str | None = None
    sha256: str | None = None


class Policy(BaseModel):
    """The rules of one site. The defaults are the safe ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    packages: dict[str, AllowedPackage] = Field(default_factory=lambda: {"medfed": AllowedPackage()})
    steps: tuple[str, ...] = ("medfed:medfed.methods.*", "medfed:medfed.evaluation.*")
    minimum_cell: int = Field(default=10, ge=1, strict=True)
    minimum_patients: int = Field(default=10, ge=1, strict=True)
    values_per_patient: dict[Kind, float] = Field(default_factory=lambda: dict(VALUES_PER_PATIENT))
    fewest_sites: int = Field(default=3, ge=3, strict=True)
    site_terms_visible: bool = False
    replies: tuple[str, ...] = ()
    input_limits: dict[str, float] = Field(default_factory=dict)
    steepest: float = Field(default=50.0, gt=0)
    budget: float = Field(default=0.0, ge=0.0)
    budget_delta: float = Field(default=1e-5, gt=0.0, lt=0.1)

    def allows_step(self, name: str) -> bool:
        """Whether a step's name matches one of the allowed patterns and its package is listed."""
        return name.split(":")[0] in self.packages and any(fnmatchcase(name, pattern) for pattern in self.steps)


POLICY_TEMPLATE = """\
# What may leave this site. It belongs to the data-protection officer; every release is checked against it.
# Packages whose steps may run here. Pin version and sha256 (`medfed site packages` prints them) to hold them fast.
packages:
  medfed: {}
steps: ["medfed:medfed.methods.*", "medfed:medfed.evaluation.*"]
minimum_cell: 10          # the smallest count of patients that may be seen
minimum_patients: 10      # fewer patients than this: nothing leaves
values_per_patient: {sum: 1.0, count: 1.0, reply: 0.5}   # numbers in one release, for each patient of this site
fewest_sites: 3           # a secure sum hides this site among so many at least; two that conspire with the coordinator see through three
site_terms_visible: false # may figures of this site alone be asked for or shown?
replies: []               # names of figures that may be seen for this site by itself
steepest: 50              # what one coefficient may add to a linear predictor, over the declared range of its feature
input_limits: {}          # stricter limits on what a step may be asked, by input name
budget: 0                 # epsilon that may be spent on noisy answers, over all studies (`medfed privacy budget`)
budget_delta: 1.0e-5      # the delta at which it is counted; well under one in the number of patients
"""


def load_policy(path: Path) -> Policy:
    """Read policy.yaml. PolicyViolation names file, line, key and remedy."""
    text = read_text(path, PolicyViolation, "`medfed site init` writes a policy with safe defaults")
    raw, lines = read_yaml(text, str(path), PolicyViolation)
    return validate(Policy, raw, lines, str(path), PolicyViolation)
