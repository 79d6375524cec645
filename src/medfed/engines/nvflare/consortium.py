"""What a consortium is: its declaration (consortium.yaml) and its roster, kept by the coordinator.

The roster binds each site's name to its certificate and to its signing key. A site is invited, joined or removed; its key
is bound when it first comes, and only then.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from medfed.canonical import write_atomically
from medfed.declarations import read_text, read_yaml, validate
from medfed.engines.nvflare.wire import is_site_name
from medfed.errors import FederationError
from medfed.federation.keys import SIGNING_KEY, load_signing_key, public_hex
from medfed.privacy import Roster, sign_roster
from medfed.privacy.roster import MINIMUM_SITES
from medfed.study.variables import Text, text_in

Scheme = Literal["tcp", "grpc", "http"]


def _site_name(text: str) -> str:
    if not is_site_name(text) or text in ("coordinator", "server"):
        raise ValueError(f"{text!r} is no name for a site; it has a-z, 0-9 and hyphens, and begins with a letter")
    return text


def _host(text: str) -> str:
    labels = text.split(".")
    if not 1 <= len(text) <= 63 or not all(
        label and label.replace("-", "").isalnum() and label.isascii() for label in labels
    ):
        raise ValueError(f"{text!r} is no host name or address; write it as in fl.example.org")
    return text


SiteName = Annotated[str, AfterValidator(_site_name)]


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CoordinatorAddress(_Declared):
    """Where sites find the coordinator. host: a name that every site resolves; port: the one that sites connect to."""

    host: Annotated[str, AfterValidator(_host)]
    port: int = Field(default=8002, ge=1024, le=65535)
    scheme: Scheme = "tcp"
    listen_on: str = Field(default="", max_length=60)


class InvitedSite(_Declared):
    title: Text | None = None


class Consortium(_Declared):
    """consortium.yaml."""

    medfed: Literal[1]
    name: SiteName
    title: Text | None = None
    coordinator: CoordinatorAddress
    certificate_days: int = Field(default=365, ge=2, le=825)
    sites: dict[SiteName, InvitedSite] = Field(default_factory=dict)


TEMPLATE = """\
medfed: 1
name: {name}
title: {{en: "{name}", zh: "{name}"}}
coordinator:
  # The name by which every site's machine finds this one. It stands in the certificate.
  host: {host}
  # The one port that sites connect to; nothing connects to a site.
  port: {port}
# Certificates are renewed by themselves, a month before they end.
certificate_days: 365
# What people read in reports: {{north: {{title: {{en: North Hospital, zh: 北方医院}}}}}}
sites: {{}}
"""


def load_consortium(path: Path) -> Consortium:
    """Read consortium.yaml. FederationError names file, line, key and remedy."""
    text = read_text(path, FederationError, "`medfed consortium init --name NAME --host HOST` writes one")
    raw, lines = read_yaml(text, str(path), FederationError)
    return validate(Consortium, raw, lines, str(path), FederationError)


@dataclass(frozen=True)
class Member:
    """One site on the roster. certificate: SHA-256 of the certificate it may use (hex); next: one that renews it.

    enrolment: the secret in its kit, with which it proves on its first visit that it holds the kit; "" once joined.
    """

    name: str
    state: Literal["invited", "joined", "removed"]
    certificate: str = ""
    next_certificate: str = ""
    public_key: str = ""
    enrolment: str = ""
    title: Mapping[str, str] = field(default_factory=dict)
    invited: str = ""
    joined: str = ""
    removed: str = ""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Network:
    """The coordinator's network folder: coordinator/network below the consortium's. Paths, roster, one lock."""

    def __init__(self, consortium: Path) -> None:
        self.consortium = consortium
        self.folder = consortium / "coordinator" / "network"
        self.run = self.folder / "run"
        self.keys = self.folder / "keys"
        self.kits = self.folder / "kits"
        self.server = self.folder / "nvflare" / "server"
        self.admin = self.folder / "nvflare" / "admin"
        self.job = self.folder / "nvflare" / "job"
        self.authority = self.folder / "authority"
        self.roster_path = self.folder / "roster.json"
        self.relay = self.run / "relay"
        self.state_path = self.run / "state.json"

    @property
    def exists(self) -> bool:
        return self.roster_path.exists()

    def declared(self) -> Consortium:
        return load_consortium(self.consortium / "consortium.yaml")

    def identity(self) -> str:
        """The consortium's random identity, in every message."""
        return str(self._read()["id"])

    def members(self) -> dict[str, Member]:
        """The roster as it stands. FederationError where there is none or it is damaged."""
        try:
            return {name: Member(**entry) for name, entry in self._read()["sites"].items()}
        except (TypeError, KeyError, AttributeError):
            raise FederationError(f"{self.roster_path} is damaged; restore it from a backup") from None

    def joined(self) -> dict[str, Member]:
        return {name: member for name, member in self.members().items() if member.state == "joined"}

    def authority_key(self) -> str:
        """The public key that vouches for the sites' keys; "" in a consortium that was made without one."""
        return public_hex(load_signing_key(self.authority)) if (self.authority / SIGNING_KEY).exists() else ""

    def signed_roster(self) -> dict[str, Any] | None:
        """Names and keys of all sites that have joined, signed by the authority; None of fewer than three."""
        keys = {name: member.public_key for name, member in self.joined().items()}
        if len(keys) < MINIMUM_SITES or not self.authority_key():
            return None
        return asdict(sign_roster(Roster.of(keys), load_signing_key(self.authority)))

    def title(self, site: str, lang: str) -> str:
        """What people read: as consortium.yaml has it now, else as it was when the site was invited."""
        with suppress(FederationError):
            entry = self.declared().sites.get(site)
            if entry and entry.title:
                return text_in(entry.title, lang)
        member = self.members().get(site)
        return member.title.get(lang, site) if member else site

    def create(self, identity: str) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(self.folder, 0o700)
        self._write({"id": identity, "sites": {}})

    @contextmanager
    def changing(self) -> Iterator[dict[str, Member]]:
        """The roster to change in place; written when the block ends without an error. One writer at a time."""
        with open(self.folder / "roster.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            raw, members = self._read(), self.members()
            yield members
            raw["sites"] = {name: asdict(member) for name, member in sorted(members.items())}
            self._write(raw)

    def change(self, site: str, **values: str) -> Member:
        """Set fields of one member; returns it."""
        with self.changing() as members:
            members[site] = replace(members[site], **values)  # type: ignore[arg-type]
            return members[site]

    def _read(self) -> dict[str, Any]:
        try:
            value = json.loads(self.roster_path.read_text())
        except FileNotFoundError:
            raise FederationError(
                f"{self.consortium} is not a network's folder; `medfed consortium init` makes it one"
            ) from None
        except ValueError:
            raise FederationError(f"{self.roster_path} is damaged; restore it from a backup") from None
        return value if isinstance(value, dict) else {}

    def _write(self, value: Mapping[str, object]) -> None:
        write_atomically(self.roster_path, json.dumps(value, ensure_ascii=False, indent=1).encode(), mode=0o600)
