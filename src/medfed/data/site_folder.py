"""A site's folder: site.yaml (sources and mapping), keys, exports, tables. The site owns all of it."""

import json
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from medfed.canonical import canonical_json, digest, write_atomically
from medfed.data.mapping import SiteFile
from medfed.declarations import Lines, read_text, read_yaml, validate
from medfed.errors import MappingError
from medfed.study.variables import text_in

PSEUDONYM_KEY = "pseudonym.key"


@dataclass(frozen=True)
class SiteFolder:
    """A site's folder with its declaration, and the lines of site.yaml for messages."""

    folder: Path
    declared: SiteFile
    lines: Lines

    @property
    def name(self) -> str:
        return self.declared.site

    def title(self, lang: str = "en") -> str:
        return text_in(self.declared.title, lang) if self.declared.title else self.name

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def policy_path(self) -> Path:
        return self.folder / "policy.yaml"

    @property
    def ledger_path(self) -> Path:
        return self.folder / "ledger.db"

    def table_folder(self, study_hash: str) -> Path:
        return self.folder / "tables" / study_hash[:12]

    @property
    def mapping_hash(self) -> str:
        return digest(canonical_json(self.declared.model_dump(mode="json")))

    def where(self, *path: str) -> str:
        """ "site.yaml, line 14" for a key path, or for the nearest key above it."""
        keys = list(path)
        while keys and tuple(keys) not in self.lines:
            keys.pop()
        line = self.lines.get(tuple(keys))
        return f"site.yaml, line {line}" if line else "site.yaml"

    def pseudonym_key(self) -> bytes:
        """The key of this site's pseudonyms. Refused when it is missing or open to others."""
        path = self.keys / PSEUDONYM_KEY
        if not path.exists():
            raise MappingError(f"{path} is missing; `medfed site init` makes the site's keys")
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise MappingError(f"{path} can be read by other users of this machine; run: chmod 600 {path}")
        try:
            key = bytes.fromhex(path.read_text().strip())
        except ValueError:
            key = b""
        if len(key) < 16:
            raise MappingError(f"{path} is not a key made by `medfed site init`; restore it from a backup")
        return key


def load_site(folder: Path | str) -> SiteFolder:
    """Read a site's folder. MappingError names file, line and remedy."""
    folder = Path(folder)
    path = folder / "site.yaml"
    text = read_text(path, MappingError, "`medfed site init FOLDER --name NAME` makes a site's folder")
    raw, lines = read_yaml(text, str(path), MappingError)
    return SiteFolder(folder, validate(SiteFile, raw, lines, str(path), MappingError), lines)


SITE_TEMPLATE = """\
# How this site's exports become the variables of a study. It belongs to the site; nothing here leaves it.
site: {name}
title: {title}
sources:
  export: {{path: data/export.csv, format: csv, delimiter: ",", encoding: utf-8}}   # or format: parquet
missing_codes: ["", "NA"]                    # what stands for "not known", in every column
patient: {{source: export, column: patient_id}}   # becomes a pseudonym that only this site can form
duplicates: refuse                           # refuse | first | last, where a patient has several rows
mapping:
  # A number: its column, and the unit in which this site records it; medfed converts it to the study's unit.
  age: {{column: age, unit: year}}
  # An age from two dates:
  # age: {{column: birth_date, date_format: "%d.%m.%Y", years_until: {{column: visit_date, date_format: "%d.%m.%Y"}}}}
  # A code: this site's codes, and the study's code for each.
  # sex: {{column: SEX, codes: {{"1": male, "2": female}}}}
  # A column worked out from others (ratio, product, sum, difference), columns or numbers:
  # bmi: {{derive: {{ratio: [weight_kg, height_m2]}}, unit: kg/m**2}}
  # A code that any of several columns decides:
  # diabetes: {{derive: {{any_of: [DM1, DM2], gives: "yes"}}, codes: {{"1": "yes", "0": "no"}}}}
"""


def init_site(folder: Path, name: str, title: str = "") -> Path:
    """Make a site's folder: a commented site.yaml and the pseudonym key (0600). An existing site or key is left alone.

    MappingError where the name is not one that a study can invite, or the folder can't be written; then nothing is made.
    """
    path = folder / "site.yaml"
    if path.exists():
        raise MappingError(f"{path} exists already; edit it, or choose another folder. Nothing was changed")
    text = SITE_TEMPLATE.format(name=name, title=json.dumps(title or name, ensure_ascii=False))
    raw, lines = read_yaml(text, "site.yaml", MappingError)
    validate(SiteFile, raw, lines, "--name", MappingError)
    try:
        if not (folder / "keys" / PSEUDONYM_KEY).exists():
            write_pseudonym_key(folder)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as problem:
        raise MappingError(f"{folder} can't be written ({problem.strerror}); choose another folder") from None
    return path


def write_pseudonym_key(folder: Path, key: bytes | None = None) -> Path:
    """A fresh pseudonym key in folder/keys, readable by its owner only. An existing key is never overwritten.

    key: 32 bytes, for public data only, where the same pseudonyms are wanted every time.
    """
    keys = folder / "keys"
    path = keys / PSEUDONYM_KEY
    if path.exists():
        raise MappingError(f"{path} exists already; with another key no pseudonym would match, so nothing was changed")
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(keys, 0o700)
    write_atomically(path, (key or secrets.token_bytes(32)).hex().encode() + b"\n", mode=0o600)
    return path
