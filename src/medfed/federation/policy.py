"""A site's policy: what its data-protection officer allows, in one file that belongs to the site (policy.yaml)."""

import difflib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

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

    model_config = ConfigDict(extra="forbid", frozen=True)

    packages: dict[str, AllowedPackage] = Field(default_factory=lambda: {"medfed": AllowedPackage()})
    steps: tuple[str, ...] = ("medfed:medfed.methods.*", "medfed:medfed.evaluation.*")
    minimum_cell: int = Field(default=10, ge=1)
    minimum_patients: int = Field(default=10, ge=1)
    values_per_patient: dict[Kind, float] = Field(default_factory=lambda: dict(VALUES_PER_PATIENT))
    site_terms_visible: bool = False
    replies: tuple[str, ...] = ()
    input_limits: dict[str, float] = Field(default_factory=dict)
    budget: float = Field(default=0.0, ge=0.0)

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
site_terms_visible: false # may figures of this site alone be asked for or shown?
replies: []               # names of figures that may be seen for this site by itself
input_limits: {}          # stricter limits on what a step may be asked, by input name
budget: 0                 # epsilon that may be spent, over all studies
"""


def load_policy(path: Path) -> Policy:
    """Read policy.yaml. PolicyViolation names file, key and remedy."""
    if not path.exists():
        raise PolicyViolation(f"{path}: the site has no policy file; `medfed site init` writes one with safe defaults")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        mark = getattr(problem, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise PolicyViolation(f"{path}{place}: this is not readable YAML; correct it") from None
    if not isinstance(raw, dict):
        raise PolicyViolation(f"{path}: a policy is a list of `key: value` lines; start from `medfed site init`")
    try:
        return Policy.model_validate(raw)
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(str(word) for word in first["loc"])
        hint = first["msg"]
        if first["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(first["loc"][-1]), list(Policy.model_fields), 1)
            hint = f"there is no such key; did you mean {close[0]!r}?" if close else "there is no such key; remove it"
        raise PolicyViolation(f"{path}, {key}: {hint}") from None
