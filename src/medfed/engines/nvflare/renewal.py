"""Setting up and renewing: the coordinator's folder, kits for sites, new certificates before old ones end."""

import secrets
import shutil
from pathlib import Path

from medfed.canonical import private_folder, write_atomically
from medfed.engines.nvflare.certificates import ADMIN, Root, fingerprint, make_root
from medfed.engines.nvflare.channel import Unanswered, line_to
from medfed.engines.nvflare.consortium import Consortium, Member, Network, now
from medfed.engines.nvflare.envelope import Message, Sealer
from medfed.engines.nvflare.kit import Kit, fingerprint_of, new_code, seal_kit
from medfed.engines.nvflare.workspace import write_admin, write_job, write_server
from medfed.errors import FederationError
from medfed.federation.keys import load_signing_key, public_hex, write_signing_key
from medfed.study.variables import text_in

RENEW_DAYS = 30.0


def create(network: Network, declared: Consortium) -> None:
    """Make coordinator/network: keys, root, server and administrator. FederationError where there is one already."""
    if network.exists:
        raise FederationError(f"{network.folder} exists already; nothing was changed")
    made = not network.folder.exists()
    try:
        private_folder(network.folder)
        private_folder(network.run)
        write_signing_key(network.keys)
        write_signing_key(network.authority)
        make_root(declared.name).write(network.keys, "root")
        root = Root.load(network.keys)
        pem = (network.keys / "root.crt").read_bytes()
        renew_server(network, root, declared)
        admin = root.issue(ADMIN, days=3650, role="project_admin")
        write_admin(network.admin, declared.name, declared.coordinator, admin, pem)
        write_job(network.job)
        network.create(secrets.token_hex(8))
    except BaseException:
        if made:
            shutil.rmtree(network.folder, ignore_errors=True)
        raise


def renew_server(network: Network, root: Root, declared: Consortium) -> None:
    """A new certificate for the server, in its workspace."""
    address = declared.coordinator
    pair = root.issue(address.host, days=declared.certificate_days, host=address.host)
    write_server(network.server, declared.name, address, pair, (network.keys / "root.crt").read_bytes())


def invite(network: Network, declared: Consortium, site: str) -> tuple[Path, str, str]:
    """Make a kit for a site: (file, code, fingerprint). FederationError where the site is on the roster and has joined."""
    member = network.members().get(site)
    if member is not None and member.state == "joined":
        raise FederationError(
            f"site {site!r} has joined already; `medfed consortium remove {site}` first if it is to start anew"
        )
    root = Root.load(network.keys)
    pair = root.issue(site, days=declared.certificate_days)
    enrolment, code, address = secrets.token_hex(32), new_code(), declared.coordinator
    kit = Kit(
        consortium=network.identity(), name=declared.name, site=site, host=address.host, port=address.port,
        scheme=address.scheme, coordinator_key=public_hex(load_signing_key(network.keys)),
        root=(network.keys / "root.crt").read_text(), certificate=pair.certificate.decode(), key=pair.key.decode(),
        enrolment=enrolment, authority=network.authority_key(),
    )  # fmt: skip
    path = private_folder(network.kits) / f"{site}.kit"
    data = seal_kit(kit, code)
    write_atomically(path, data, mode=0o600)
    write_atomically(private_folder(network.folder / "issued") / f"{site}.crt", pair.certificate)
    entry = declared.sites.get(site)
    title = {lang: text_in(entry.title, lang) for lang in ("en", "zh")} if entry and entry.title else {}
    with network.changing() as members:
        members[site] = Member(
            site, "invited", fingerprint(pair.certificate), enrolment=enrolment, title=title, invited=now()
        )
    return path, code, fingerprint_of(data)


def remove(network: Network, site: str) -> None:
    """Take a site off the roster; its certificate and its key are worth nothing from now on."""
    with network.changing() as members:
        if site not in members or members[site].state == "removed":
            known = ", ".join(name for name, member in members.items() if member.state != "removed") or "nobody"
            raise FederationError(f"site {site!r} is not on the roster; on it are {known}")
        old = members[site]
        members[site] = Member(site, "removed", title=old.title, invited=old.invited, joined=old.joined, removed=now())
    (network.kits / f"{site}.kit").unlink(missing_ok=True)
    (network.folder / "issued" / f"{site}.crt").unlink(missing_ok=True)


def renew_site(network: Network, root: Root, sealer: Sealer, member: Member, days: float) -> str:
    """Give a connected site a certificate for a key that it makes itself; returns its fingerprint.

    The roster has both certificates until the site comes with the new one. Raises Unanswered where the site is not there.
    """
    with line_to(network.relay, sealer, member.name, member.public_key) as line:
        asked = line.ask(Message("renew", {}), timeout=30.0).content
        if asked.get("state") != "request":
            raise Unanswered("refused")
        certificate = root.issue_for_request(member.name, str(asked.get("request")).encode(), days=days)
        network.change(member.name, next_certificate=fingerprint(certificate))
        answer = line.ask(Message("renew", {"certificate": certificate.decode()}), timeout=30.0).content
        if answer.get("state") != "renewed" or answer.get("certificate") != fingerprint(certificate):
            raise Unanswered("refused")
    write_atomically(network.folder / "issued" / f"{member.name}.crt", certificate)
    return fingerprint(certificate)
