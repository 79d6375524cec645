"""Whose keys a site may believe in a secure sum: the roster of its consortium, which an approval takes over and signs.

Of site folders it is a file, CONSORTIUM/roster.json; `medfed site init` adds the site's own line. Over a network it comes
with a proposal, signed by the authority that the site's kit names, and lies in SITE/network/roster.json. What is changed
later changes nothing until the site's officer approves again.
"""

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path

from medfed.canonical import digest, write_atomically
from medfed.data.site_folder import SiteFolder
from medfed.errors import PolicyViolation, PrivacyError
from medfed.federation.call import Protection
from medfed.federation.opening import secure_roster
from medfed.federation.private import noise_shares
from medfed.privacy import SignedRoster, call_roster
from medfed.privacy.signatures import is_key
from medfed.study import Study

ROSTER_FILE = "roster.json"
MOST_SITES = 10_000


def roster_path(site: Path) -> Path | None:
    """Where the roster of a site's consortium lies; None where the folder is not CONSORTIUM/sites/NAME."""
    where = site.resolve().parent
    return where.parent / ROSTER_FILE if where.name == "sites" else None


def read_roster(site: SiteFolder) -> dict[str, str]:
    """Names and public keys of the consortium's sites; none where the site knows of no roster. Raises PolicyViolation."""
    if (site.folder / "network" / "membership.json").exists():
        path: Path | None = site.folder / "network" / ROSTER_FILE
    else:
        path = roster_path(site.folder)
    return _read(path) if path is not None else {}


def protection_for(site: SiteFolder, study: Study) -> Protection:
    """How sums of a study are protected at a site that approves it as things stand."""
    return "secure" if site.name in secure_roster(study, read_roster(site)) else "plain"


def shares_for(site: SiteFolder, study: Study) -> int:
    """Over how many sites the noise of a sum is spread at a site that approves a study as things stand."""
    return noise_shares(protection_for(site, study), len(secure_roster(study, read_roster(site))))


def keep_network_roster(site: SiteFolder, signed: object, authority: str) -> None:
    """Keep the roster that came over the network. PolicyViolation where the authority of the site's kit did not sign it."""
    fields = signed if isinstance(signed, dict) else {}
    names, keys, signature = fields.get("sites"), fields.get("keys"), fields.get("signature")
    lists = isinstance(names, list) and isinstance(keys, list) and len(names) == len(keys) <= MOST_SITES
    if not lists or not all(isinstance(word, str) for word in (*(names or ()), *(keys or ()), signature)):
        raise PolicyViolation("the roster that came with the study can't be read")
    directory = SignedRoster(tuple(names or ()), tuple(keys or ()), str(signature))
    try:
        roster = call_roster(directory, authority, directory.sites)
    except PrivacyError as problem:
        raise PolicyViolation(f"the roster that came with the study is not taken: {problem}") from None
    sites = dict(zip(roster.sites, roster.keys, strict=True))
    write_atomically(site.folder / "network" / ROSTER_FILE, (json.dumps({"sites": sites}, indent=1) + "\n").encode())


def _read(path: Path) -> dict[str, str]:
    try:
        sites = json.loads(path.read_text(encoding="utf-8"))["sites"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        sites = None
    if not isinstance(sites, dict) or not all(is_key(key) for key in sites.values()):
        raise PolicyViolation(
            f"{path} is damaged; it holds a name and a public key (`medfed site init` prints it) a site"
        )
    return dict(sites)


def add_to_roster(site: Path, name: str, key: str) -> Path | None:
    """Add a site's line to its consortium's roster; the file, or None where there is no consortium around the folder.

    Raises PolicyViolation where another key stands under the name.
    """
    path = roster_path(site)
    if path is None:
        return None
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sites = _read(path)
        if sites.get(name, key) != key:
            raise PolicyViolation(
                f"{path} has another public key of site {name!r}; if the site has new keys, take the old line out first"
            )
        if name not in sites:
            text = json.dumps({"sites": dict(sorted({**sites, name: key}.items()))}, indent=1)
            write_atomically(path, (text + "\n").encode())
    return path


def fingerprint(roster: Mapping[str, str]) -> str:
    """What officers compare: 16 hex digits of the names and keys, in fours."""
    text = digest("medfed roster of a consortium", *(word for site in sorted(roster) for word in (site, roster[site])))
    return " ".join(text[at : at + 4] for at in range(0, 16, 4))
