"""A site's side of a network: the folder that a kit makes, and what the site knows of its consortium."""

import json
import shutil
from dataclasses import asdict, dataclass

from medfed.canonical import private_folder, write_atomically
from medfed.data.site_folder import SiteFolder
from medfed.engines.nvflare.certificates import Pair, belongs_together, fingerprint, why_unusable
from medfed.engines.nvflare.guard import TOKEN_FILE, make_token
from medfed.engines.nvflare.kit import Kit
from medfed.engines.nvflare.workspace import write_certificate, write_site
from medfed.errors import FederationError
from medfed.federation.keys import load_signing_key

HALTED = "halted"


@dataclass(frozen=True)
class Membership:
    """What a site knows of its consortium, without the secrets. coordinator_key, authority: Ed25519, hex."""

    consortium: str
    name: str
    site: str
    host: str
    port: int
    scheme: str
    coordinator_key: str
    authority: str = ""


class SiteNetwork:
    """SITE/network: paths, membership, halt."""

    def __init__(self, site: SiteFolder) -> None:
        self.site = site
        self.folder = site.folder / "network"
        self.run = self.folder / "run"
        self.workspace = self.folder / "nvflare"
        self.inbox = self.folder / "inbox"
        self.incoming = self.folder / "incoming"
        self.log = self.folder / "service.log"
        self.state_path = self.run / "state.json"
        self._membership = self.folder / "membership.json"
        self._halted = self.folder / HALTED

    @property
    def joined(self) -> bool:
        return self._membership.exists()

    def membership(self) -> Membership:
        """FederationError where the site has not joined or the file is damaged."""
        try:
            return Membership(**json.loads(self._membership.read_text()))
        except FileNotFoundError:
            raise FederationError(
                f"site {self.site.name!r} has joined no consortium; `medfed site join KIT {self.site.folder}` does"
            ) from None
        except (ValueError, TypeError):
            raise FederationError(f"{self._membership} is damaged; join again with the kit, or restore it") from None

    @property
    def is_halted(self) -> bool:
        return self._halted.exists()

    def halt(self, why: str) -> None:
        """Stays until it is lifted, over restarts."""
        private_folder(self.folder)
        write_atomically(self._halted, why.encode(), mode=0o600)

    def lift_halt(self) -> None:
        self._halted.unlink(missing_ok=True)

    def certificate(self) -> bytes:
        return (self.workspace / "startup" / "client.crt").read_bytes()

    def root(self) -> bytes:
        return (self.workspace / "startup" / "rootCA.pem").read_bytes()

    def why_unusable(self) -> str:
        """``certificates.why_unusable`` for what lies in the workspace."""
        try:
            key = (self.workspace / "startup" / "client.key").read_bytes()
            return why_unusable(self.certificate(), key, self.root(), self.site.name)
        except OSError as problem:
            return f"{problem.filename} can't be read; join again with a new kit, or restore it"

    def use_certificate(self, pair: Pair) -> None:
        """Replace certificate and key (renewal)."""
        write_certificate(self.workspace, pair, self.root())

    def write_token(self) -> None:
        """What the site shows when it registers: written by the service, which has the key, for NVFLARE's process."""
        key = load_signing_key(self.site.keys)
        enrolment = (self.folder / "enrolment").read_text()
        token = make_token(
            self.membership().consortium, self.site.name, fingerprint(self.certificate()), key, enrolment
        )
        private_folder(self.run)
        write_atomically(self.run / TOKEN_FILE, token.encode(), mode=0o600)


def join(site: SiteFolder, kit: Kit) -> Membership:
    """Make SITE/network from an opened kit. FederationError where it is another site's, or the site has joined already."""
    network = SiteNetwork(site)
    if kit.site != site.name:
        raise FederationError(
            f"the kit is for the site {kit.site!r}, and {site.folder} is {site.name!r}; nothing was done"
        )
    if network.joined and network.membership().consortium != kit.consortium:
        raise FederationError(
            f"site {site.name!r} belongs to the consortium {network.membership().name!r} already; nothing was done"
        )
    load_signing_key(site.keys)
    pair = Pair(kit.certificate.encode(), kit.key.encode())
    if not belongs_together(pair.certificate, pair.key, kit.root.encode(), site.name):
        raise FederationError("the kit's certificate, key and root don't belong together; ask for a new kit")
    membership = Membership(
        kit.consortium, kit.name, kit.site, kit.host, kit.port, kit.scheme, kit.coordinator_key, kit.authority
    )
    made = not network.folder.exists()
    try:
        private_folder(network.folder)
        write_site(network.workspace, site.name, kit.name, host=kit.host, port=kit.port, scheme=kit.scheme)
        write_certificate(network.workspace, pair, kit.root.encode())
        write_atomically(network.folder / "enrolment", kit.enrolment.encode(), mode=0o600)
        write_atomically(network.folder / "membership.json", json.dumps(asdict(membership)).encode(), mode=0o600)
    except OSError:
        if made:
            shutil.rmtree(network.folder, ignore_errors=True)
        raise
    return membership
