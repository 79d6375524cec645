"""Who takes part in a secure sum: names and long-term keys, signed by somebody whom a site trusts beforehand.

Keys come from nowhere else: a coordinator that could name keys itself would invent sites and hold all masks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfed.canonical import digest
from medfed.errors import PrivacyError
from medfed.privacy.signatures import is_key, is_signed, sign

MINIMUM_SITES = 3


def quorum(sites: int) -> int:
    """floor(2n/3) + 1 of n sites: any two such groups share more than n/3 sites, so two sets never both get signed
    while fewer than a third of the sites help the coordinator to cheat."""
    return 2 * sites // 3 + 1


@dataclass(frozen=True)
class Roster:
    """Sites in order of their names, and each one's Ed25519 public key (64 hex digits).

    Raises PrivacyError for fewer than three sites, a name or a key that stands twice, or a key that is none.
    """

    sites: tuple[str, ...]
    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.sites) != len(self.keys) or list(self.sites) != sorted(set(self.sites)):
            raise PrivacyError("a roster names each site once, in order, with one key")
        if len(self.sites) < MINIMUM_SITES:
            raise PrivacyError(
                f"a secure sum needs at least {MINIMUM_SITES} sites, this roster has {len(self.sites)}: "
                "of two, each would learn the other's terms"
            )
        for site, key in zip(self.sites, self.keys, strict=True):
            if not site.isprintable() or "/" in site:
                raise PrivacyError(f"a site's name is printable text without a slash, not {site!r}", (site,))
            if not is_key(key):
                raise PrivacyError(f"the roster's key of site {site!r} is not an Ed25519 public key", (site,))
        if len(set(self.keys)) < len(self.keys):
            twice = tuple(site for site, key in zip(self.sites, self.keys, strict=True) if self.keys.count(key) > 1)
            raise PrivacyError(f"the sites {', '.join(twice)} have the same key: one institution, one name", twice)

    @classmethod
    def of(cls, keys: Mapping[str, str]) -> "Roster":
        """From {site: public key}."""
        return cls(tuple(sorted(keys)), tuple(keys[site] for site in sorted(keys)))

    @cached_property
    def digest(self) -> str:
        return digest("medfed roster", *self.sites, *self.keys)

    @property
    def quorum(self) -> int:
        return quorum(len(self.sites))

    @cached_property
    def _keys(self) -> Mapping[str, str]:
        return dict(zip(self.sites, self.keys, strict=True))

    def __contains__(self, site: object) -> bool:
        return site in self._keys

    def key_of(self, site: str) -> str:
        """The site's public key. Raises PrivacyError for a stranger."""
        if site not in self._keys:
            raise PrivacyError(f"{site!r} is not on the roster", (site,))
        return self._keys[site]


@dataclass(frozen=True)
class SignedRoster:
    """All sites of a consortium, with the signature (128 hex digits) of the authority that vouches for their keys."""

    sites: tuple[str, ...]
    keys: tuple[str, ...]
    signature: str


def sign_roster(roster: Roster, authority: Ed25519PrivateKey) -> SignedRoster:
    """Vouch for every name and key of a roster."""
    return SignedRoster(roster.sites, roster.keys, sign(authority, "roster", roster.digest).hex())


def call_roster(directory: SignedRoster, authority: str, sites: Sequence[str]) -> Roster:
    """The sites of one call, with the keys that ``authority`` (public key, hex) vouched for.

    ``authority`` is what the site itself trusts: the consortium's officer, or its own key where its officer signed the
    directory. Raises PrivacyError when the directory is unsigned, changed, signed by another, or lacks a site.
    """
    whole = Roster(tuple(directory.sites), tuple(directory.keys))
    try:
        signature = bytes.fromhex(directory.signature)
    except ValueError:
        signature = b""
    if not is_signed(authority, signature, "roster", whole.digest):
        raise PrivacyError("the roster is not signed by the authority that this site trusts; nothing was sent")
    if len(set(sites)) < len(sites):
        raise PrivacyError("the call's roster names a site twice")
    return Roster.of({site: whole.key_of(site) for site in sites})
