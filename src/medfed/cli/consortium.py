"""medfed consortium: set a consortium up, invite and remove sites, propose studies. The coordinator's side."""

import getpass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from medfed.canonical import write_atomically
from medfed.cli.console import AsJson, Language, out, print_json
from medfed.cli.network import need_network
from medfed.cli.site_network import show_units
from medfed.errors import FederationError
from medfed.language import translator
from medfed.study import Study, load_study

app = typer.Typer(
    no_args_is_help=True,
    help="A consortium over a network: set it up, invite sites, propose studies. For one machine alone none of this is needed.",
)

Folder = Annotated[Path, typer.Option("--consortium", "-c", help="The consortium's folder.")]
SiteArgument = Annotated[str, typer.Argument(help="The site's name, as studies invite it.")]
StudyArgument = Annotated[Path, typer.Argument(help="The study.yaml.")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The consortium's folder.")] = Path(),
    name: Annotated[str, typer.Option(help="Its name, where consortium.yaml is not there yet: a-z, 0-9, hyphen.")] = "",
    host: Annotated[str, typer.Option(help="The name by which every site's machine finds this one.")] = "",
    port: Annotated[int, typer.Option(help="The one port that sites connect to.")] = 8002,
    json: AsJson = False,
) -> None:
    """Make the coordinator's side from a short consortium.yaml: keys, certificates, NVFLARE's workspace.

    Where there is no consortium.yaml, --name and --host write one.
    """
    need_network()
    from medfed.engines.nvflare import renewal
    from medfed.engines.nvflare.consortium import TEMPLATE, Network

    declaration = folder / "consortium.yaml"
    written = False
    if not declaration.exists():
        if not name or not host:
            raise FederationError(
                f"{declaration} does not exist; give --name and --host, and it is written, or write it yourself"
            )
        write_atomically(declaration, TEMPLATE.format(name=name, host=host, port=port).encode())
        written = True
    network = Network(folder)
    try:
        declared = network.declared()
        renewal.create(network, declared)
    except BaseException:
        if written:
            declaration.unlink(missing_ok=True)
        raise
    if json:
        print_json({"consortium": declared.name, "folder": str(network.folder), "host": declared.coordinator.host,
                    "port": declared.coordinator.port})  # fmt: skip
        return
    out.print(
        f"{network.folder} is ready. Keys and certificates in it are readable by you alone: back them up.",
        soft_wrap=True,
    )
    out.print("Next: `medfed coordinator start`, and `medfed consortium invite SITE` for each site.", soft_wrap=True)


@app.command()
def invite(
    site: SiteArgument,
    consortium: Folder = Path(),
    to: Annotated[
        Path | None, typer.Option("--out", help="Where to write the kit. Default: coordinator/network/kits.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Make the one file that a site joins with, the code that opens it, and a fingerprint to compare on the phone.

    Send the file by any way; say the code on the phone or hand it over, never with the file.
    """
    need_network()
    from medfed.engines.nvflare import renewal
    from medfed.engines.nvflare.consortium import Network
    from medfed.engines.nvflare.wire import is_site_name

    if not is_site_name(site) or site in ("coordinator", "server"):
        raise FederationError(f"{site!r} is no name for a site; it has a-z, 0-9 and hyphens, and begins with a letter")
    network = Network(consortium)
    path, code, fingerprint = renewal.invite(network, network.declared(), site)
    if to is not None:
        write_atomically(to, path.read_bytes(), mode=0o600)
        path = to
    if json:
        print_json({"site": site, "kit": str(path), "code": code, "fingerprint": fingerprint})
        return
    out.print(f"Kit for {site}: {path}", soft_wrap=True)
    out.print(f"Code, to be said on the phone: [bold]{code}[/bold]")
    out.print(f"Fingerprint, to be compared: {fingerprint}")
    out.print("The code is shown once. A new invitation makes the old kit worthless.")


@app.command()
def remove(site: SiteArgument, consortium: Folder = Path(), json: AsJson = False) -> None:
    """Take a site off the roster. Its certificate and key open nothing from now on, also in a run that is under way."""
    need_network()
    from medfed.engines.nvflare import renewal
    from medfed.engines.nvflare.consortium import Network

    renewal.remove(Network(consortium), site)
    if json:
        print_json({"site": site, "removed": True})
        return
    out.print(f"{site} is off the roster. What it has answered stays in the results and in its own ledger.")


@app.command()
def roster(consortium: Folder = Path(), lang: Language = "en", json: AsJson = False) -> None:
    """List the sites: invited, joined or removed, and the fingerprints of their keys and certificates."""
    from medfed.engines.nvflare.consortium import Network

    members = Network(consortium).members()
    if json:
        print_json([{"site": m.name, "state": m.state, "certificate": m.certificate, "public_key": m.public_key,
                     "invited": m.invited, "joined": m.joined, "removed": m.removed} for m in members.values()])  # fmt: skip
        return
    _ = translator(lang)
    table = Table(show_edge=False)
    for heading in (_("Site"), _("State"), _("Since"), _("Signing key"), _("Certificate")):
        table.add_column(heading)
    states = {"invited": _("invited"), "joined": _("joined"), "removed": _("removed")}
    for member in members.values():
        since = member.removed or member.joined or member.invited
        table.add_row(
            member.name,
            states[member.state],
            since[:16].replace("T", " "),
            member.public_key[:16],
            member.certificate[:16],
        )
    out.print(table)


@app.command()
def propose(
    study: StudyArgument,
    consortium: Folder = Path(),
    note: Annotated[str, typer.Option(help="A word to the sites' officers.")] = "",
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Send a study to the sites that it invites; it lands in their inboxes. One that is away gets it when it is back."""
    need_network()
    from medfed.engines.nvflare.consortium import Network
    from medfed.engines.nvflare.proposals import propose as send_proposal

    loaded, network = load_study(study), Network(consortium)
    strangers = [site for site in loaded.sites.invited if site not in network.members()]
    if strangers:
        raise FederationError(
            f"{study} invites {', '.join(strangers)}, not on the roster; invite first: `medfed consortium invite {strangers[0]}`"
        )
    _show_standings(loaded, send_proposal(network, loaded, note), lang, json)


@app.command()
def standing(study: StudyArgument, consortium: Folder = Path(), lang: Language = "en", json: AsJson = False) -> None:
    """Ask every site where it stands on a study: pending, approved until when, declined and why, withdrawn."""
    need_network()
    from medfed.engines.nvflare.consortium import Network
    from medfed.engines.nvflare.proposals import standings

    loaded = load_study(study)
    _show_standings(loaded, standings(Network(consortium), loaded), lang, json)


def _show_standings(study: Study, found: dict[str, dict[str, Any]], lang: str, json: bool) -> None:
    if json:
        print_json({"study": study.name, "hash": study.hash, "sites": found})
        return
    _ = translator(lang)
    states = {
        "pending": _("pending"), "approved": _("approved"), "declined": _("declined"), "withdrawn": _("withdrawn"),
        "ended": _("ended"), "away": _("away"),
    }  # fmt: skip
    out.print(f"[bold]{study.name}[/bold] {study.hash}", soft_wrap=True)
    table = Table(show_edge=False)
    for heading in (_("Site"), _("State"), _("Until"), _("Table"), _("Why")):
        table.add_column(heading)
    tables = {"none": _("not built"), "built": _("built"), "other": _("another version"), "": ""}
    for site, how in found.items():
        table.add_row(site, states.get(how["state"], how["state"]), str(how.get("until", "")),
                      tables.get(str(how.get("table", "")), ""), _(how["reason"]) if how.get("reason") else "")  # fmt: skip
    out.print(table)


@app.command()
def renew(site: SiteArgument, consortium: Folder = Path(), json: AsJson = False) -> None:
    """Give a connected site a new certificate now, for a key that it makes itself. The service does so a month before the end."""
    need_network()
    from medfed.engines.nvflare.certificates import Root
    from medfed.engines.nvflare.channel import Unanswered, coordinator_sealer
    from medfed.engines.nvflare.consortium import Network
    from medfed.engines.nvflare.renewal import renew_site

    network = Network(consortium)
    member = network.joined().get(site)
    if member is None:
        raise FederationError(f"site {site!r} has not joined, so there is nothing to renew")
    sealer = coordinator_sealer(network.keys, network.identity())
    try:
        found = renew_site(network, Root.load(network.keys), sealer, member, network.declared().certificate_days)
    except Unanswered:
        raise FederationError(f"site {site!r} is not connected; `medfed status` says how it stands") from None
    if json:
        print_json({"site": site, "certificate": found})
        return
    out.print(f"{site} has a new certificate, {found[:16]}; it takes over at the site's next quiet moment.")


coordinator_app = typer.Typer(no_args_is_help=True, help="The coordinator's service, which keeps a network going.")


@coordinator_app.command()
def start(
    consortium: Folder = Path(),
    foreground: Annotated[bool, typer.Option(help="Stay, as systemd wants it.")] = False,
    json: AsJson = False,
) -> None:
    """Start the coordinator's service: NVFLARE's server and the dispatcher, watched and started again when they end."""
    need_network()
    from medfed.cli.network import run_in_foreground, start_in_background
    from medfed.engines.nvflare.consortium import Network
    from medfed.engines.nvflare.processes import ServiceLock

    network = Network(consortium)
    network.identity()
    module, lock = "medfed.engines.nvflare.coordinator_service", ServiceLock(network.run)
    if foreground:
        run_in_foreground(module, consortium)
    process = start_in_background(
        module, consortium, network.folder / "service.log", network.state_path.exists, lock.holder
    )
    if json:
        print_json({"process": process, "log": str(network.folder / "service.log")})
        return
    out.print(f"The coordinator's service runs (process {process}); `medfed status` says how the sites stand.")


@coordinator_app.command()
def stop(consortium: Folder = Path(), json: AsJson = False) -> None:
    """Stop the coordinator's service and all that it started. Runs wait, and go on when it is back."""
    need_network()
    from medfed.engines.nvflare.consortium import Network
    from medfed.engines.nvflare.processes import ServiceLock

    was = ServiceLock(Network(consortium).run).stop_holder()
    if json:
        print_json({"stopped": was})
        return
    out.print("The coordinator's service has stopped." if was else "It was not running.")


@coordinator_app.command("install-service")
def install_service(
    consortium: Folder = Path(),
    user: Annotated[str, typer.Option(help="The system user the service runs as. Default: you.")] = "",
    json: AsJson = False,
) -> None:
    """Write a systemd unit and an environment file for the coordinator's service, and say how to switch it on."""
    from medfed.engines.nvflare.consortium import Network
    from medfed.engines.nvflare.units import coordinator_unit

    network = Network(consortium)
    files = coordinator_unit(consortium.resolve(), network.declared().name, user or getpass.getuser())
    show_units(files, consortium, json)
