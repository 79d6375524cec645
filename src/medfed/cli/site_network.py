"""medfed site join, start, stop, status, halt, inbox, decline, install-service: a site in a network."""

import getpass
import sys
import time
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from rich.table import Table

from medfed.cli.console import AsJson, Language, err, out, print_json, say
from medfed.cli.network import need_network, run_in_foreground, start_in_background
from medfed.cli.run import clock_time
from medfed.cli.site_cost import outlook_at
from medfed.data.site_folder import SiteFolder, load_site
from medfed.data.stored import open_table
from medfed.engines.site_roster import protection_for, shares_for
from medfed.errors import FederationError, MedfedError, PolicyViolation
from medfed.evaluation.study_run import StudyRun, step_names, steps_of
from medfed.federation.approval import packages_of
from medfed.federation.policy import load_policy
from medfed.federation.preview import preview as preview_of
from medfed.federation.private import charges_of
from medfed.language import Translate, translator
from medfed.sentences import meaning_of
from medfed.study import Study

Folder = Annotated[Path, typer.Argument(help="The site's folder (holds site.yaml).")]
SERVICE = "medfed.engines.nvflare.site_service"
LONG_SILENCE = 60.0


def register(app: typer.Typer) -> None:
    """Add the commands to ``medfed site``."""
    for name, command in (
        ("join", join), ("start", start), ("stop", stop), ("status", status), ("halt", halt), ("inbox", inbox),
        ("decline", decline), ("install-service", install_service),
    ):  # fmt: skip
        app.command(name)(command)


def join(
    kit: Annotated[Path, typer.Argument(help="The kit that the coordinator sent.")],
    folder: Annotated[Path, typer.Argument(help="The site's folder, made with `medfed site init`.")],
    code: Annotated[
        str,
        typer.Option(
            help="The code that was said on the phone. Asked for when it is not given.", envvar="MEDFED_KIT_CODE"
        ),
    ] = "",
    fingerprint: Annotated[str, typer.Option(help="The fingerprint that was read out; it must match the file.")] = "",
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Join a consortium with a kit. Nothing is sent before `medfed site start`."""
    need_network()
    from medfed.engines.nvflare.join import SiteNetwork
    from medfed.engines.nvflare.join import join as join_with
    from medfed.engines.nvflare.kit import fingerprint_of, open_kit
    from medfed.engines.nvflare.processes import ServiceLock

    _, site = translator(lang), load_site(folder)
    if (process := ServiceLock(SiteNetwork(site).run).holder()) is not None:
        raise FederationError(
            f"the service of {site.name!r} runs (process {process}); stop it first, then join. Nothing was done"
        )
    if not kit.exists():
        raise FederationError(f"{kit} does not exist; ask the coordinator for the kit")
    found = fingerprint_of(kit.read_bytes())
    if fingerprint and "".join(fingerprint.split()).lower() != "".join(found.split()):
        raise FederationError(
            f"{kit} has the fingerprint {found}, not {fingerprint}: it is not the file that was sent. Nothing was done"
        )
    if not code:
        err.print(_("Fingerprint of the kit, to be compared on the phone: {found}").format(found=found), markup=False)
        code = getpass.getpass(_("Code of the kit: ")) if sys.stdin.isatty() else sys.stdin.readline()
    membership = join_with(site, open_kit(kit, code))
    if json:
        print_json({"site": site.name, "consortium": membership.name, "host": membership.host, "port": membership.port})
        return
    say(_("{site} is a site of {consortium}, coordinator {host}:{port}."), site=site.name, consortium=membership.name,
         host=membership.host, port=membership.port)  # fmt: skip
    say(_("Delete the kit. Next: `medfed site preflight {folder}`, then `medfed site start {folder}`."), folder=folder)


def start(
    folder: Folder,
    foreground: Annotated[bool, typer.Option(help="Stay, as systemd wants it.")] = False,
    lift_halt: Annotated[bool, typer.Option(help="Take an earlier halt back.")] = False,
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Start the site's service. It connects to the coordinator; nothing connects to the site."""
    need_network()
    from medfed.engines.nvflare.join import SiteNetwork
    from medfed.engines.nvflare.processes import ServiceLock

    _, network = translator(lang), SiteNetwork(load_site(folder))
    network.membership()
    lock = ServiceLock(network.run)
    if network.is_halted:
        if not lift_halt:
            raise PolicyViolation(
                f"site {network.site.name!r} was halted; when its officer agrees, `medfed site start {folder} --lift-halt`"
            )
        network.lift_halt()
        if (running := lock.holder()) is not None:  # as under systemd, which starts a halted service again
            if json:
                print_json({"site": network.site.name, "process": running, "log": str(network.log)})
            else:
                say(_("The halt is lifted; the service was running (process {process})."), process=running)
            return
    if foreground:
        run_in_foreground(SERVICE, folder)
    process = start_in_background(SERVICE, folder, network.log, (network.run / "door").exists, lock.holder)
    if json:
        print_json({"site": network.site.name, "process": process, "log": str(network.log)})
        return
    say(_("The service of {site} runs (process {process}). `medfed site status {folder}` says how it stands."),
         site=network.site.name, process=process, folder=folder)  # fmt: skip


def stop(folder: Folder, lang: Language = "en", json: AsJson = False) -> None:
    """Stop the site's service and all that it started. Runs wait for the site till their deadline."""
    need_network()
    from medfed.engines.nvflare.join import SiteNetwork
    from medfed.engines.nvflare.processes import ServiceLock

    _, site = translator(lang), load_site(folder)
    was = ServiceLock(SiteNetwork(site).run).stop_holder()
    if json:
        print_json({"site": site.name, "stopped": was})
        return
    say(_("The service of {site} has stopped.") if was else _("The service of {site} was not running."), site=site.name)


def halt(
    folder: Folder,
    why: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Emergency: nothing more leaves this site, at once and until `medfed site start --lift-halt`."""
    need_network()
    from medfed.engines.nvflare.join import SiteNetwork
    from medfed.engines.nvflare.processes import ServiceLock

    _, site = translator(lang), load_site(folder)
    network = SiteNetwork(site)
    network.halt(why)  # first: whatever still runs refuses from here on
    was = ServiceLock(network.run).stop_holder(patience=2.0)
    if json:
        print_json({"site": site.name, "halted": True, "was_running": was})
        return
    say(_("{site} is halted. Nothing leaves it until `medfed site start {folder} --lift-halt`."),
         site=site.name, folder=folder)  # fmt: skip


def status(folder: Folder, lang: Language = "en", json: AsJson = False) -> None:
    """Say how the site's service stands: running, halted, when the coordinator was last heard, what is being worked on."""
    from medfed.engines.standing import site_standing

    site = load_site(folder)
    found = site_standing(site.folder)
    if json:
        print_json({"site": site.name, **found})
        return
    _ = translator(lang)
    if found["halted"]:
        say(_("Halted: nothing leaves the site until `medfed site start {folder} --lift-halt`."), folder=folder)
    elif not found["joined"]:
        out.print(_("The site has joined no consortium."))
    elif not found["served"]:
        out.print(_("The service is not running; nothing leaves the site."))
    else:
        out.print(_("The service is running."))
        heard, ago = found["heard"], time.time() - found["heard"]
        say(_("Coordinator last heard: {when}"), when=clock_time(heard) if heard else _("not yet"))
        if found["why"]:
            say(_("It can't connect: {why}"), why=_(found["why"]))
        elif not heard or ago > LONG_SILENCE:
            say(
                _("It is not connected now; `medfed site preflight {folder}` says what stands in the way."),
                folder=folder,
            )
        if found["working"]:
            say(_("A step has been running since {since}."), since=clock_time(found["working"]))


def inbox(
    folder: Folder,
    study: Annotated[
        str, typer.Argument(help="Name, or the beginning of the hash, of one study to read in full.")
    ] = "",
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Read what was proposed: question, variables, steps, exactly what would leave, its cost, and what changed.

    Then `medfed site approve FOLDER STUDY` or `medfed site decline FOLDER STUDY --reason ...`.
    """
    from medfed.engines.nvflare.inbox import Inbox

    box, _ = Inbox(load_site(folder)), translator(lang)
    if study:
        _show_proposal(box, study, lang, json)
        return
    found = [(proposal, box.standing(proposal.study)) for proposal in box.proposals()]
    if json:
        print_json([{"name": p.study.name, "hash": p.study.hash, "received": p.received, "note": p.note, **how}
                    for p, how in found])  # fmt: skip
        return
    if not found:
        out.print(_("Nothing was proposed to this site."))
        return
    states = {"pending": _("pending"), "approved": _("approved"), "declined": _("declined"),
              "withdrawn": _("withdrawn"), "ended": _("ended")}  # fmt: skip
    table = Table(show_edge=False)
    for heading in (_("Study"), _("Hash"), _("Received"), _("State"), _("Until"), _("Title")):
        table.add_column(heading)
    for proposal, how in found:
        of = proposal.study
        table.add_row(of.name, of.hash[:12], proposal.received[:16].replace("T", " "), states[how["state"]],
                      str(how["until"]), of.text(of.title, lang))  # fmt: skip
    out.print(table)


def _show_proposal(box: Any, name: str, lang: str, json: bool) -> None:
    from medfed.cli.site import show_preview

    proposal, _ = box.find(name), translator(lang)
    study: Study = proposal.study
    earlier = box.before(proposal)
    changed = differences(earlier.study, study) if earlier else []
    try:
        table = open_table(box.site, study)
        policy, protection = load_policy(box.site.policy_path), protection_for(box.site, study)
        found = preview_of(
            box.site.name, study, table, policy, steps_of(study), protection,
            charges=charges_of(study, StudyRun(study)), shares=shares_for(box.site, study),
            outlook=outlook_at(box.site, study, policy),
        )  # fmt: skip
        not_built = ""
    except MedfedError as problem:
        found, not_built = None, str(problem)
    packages = packages_of(step_names(study))
    if json:
        print_json({"study": study.model_dump(mode="json"), "hash": study.hash, "note": proposal.note, "file": str(box.file(study)),
                    "received": proposal.received, "standing": box.standing(study), "changed": changed, "packages": packages,
                    "preview": found})  # fmt: skip
        return
    out.print(f"[bold]{study.text(study.title, lang)}[/bold]")
    out.print(study.text(study.question, lang), markup=False, soft_wrap=True)
    if proposal.note:
        out.print(f"{_('Note')}: {proposal.note}", markup=False, soft_wrap=True)
    out.print(f"{_('Hash')}: {study.hash}", soft_wrap=True)
    out.print(f"{_('File')}: {box.file(study)}", markup=False, soft_wrap=True)
    out.print(f"{_('Sites')}: {', '.join(study.sites.invited)}", soft_wrap=True)
    _show_changes(earlier is not None, changed, _)
    for package in packages:
        say(_("Package: {name} {version}, files {hash}"), name=package.name, version=package.version,
             hash=package.sha256[:16])  # fmt: skip
    table_of = Table(title=_("Variables"), title_justify="left", show_edge=False)
    for heading in (_("Name"), _("Meaning"), _("Unit"), _("Role")):
        table_of.add_column(heading)
    for key, variable in study.variables.items():
        table_of.add_row(
            key, study.text(variable.meaning, lang), str(getattr(variable, "unit", None) or ""), variable.role
        )
    out.print(table_of)
    if found is None:
        for step in steps_of(study):
            meaning = _(meaning_of(step.function.__doc__))
            out.print(f"  {step.name.rpartition('.')[2]}: {meaning}", markup=False, soft_wrap=True)
        say(_("What would leave, and its cost, is shown once the table is built: `medfed site build {folder} {study}`."),
             folder=box.site.folder, study=study.hash[:12])  # fmt: skip
        out.print(_(not_built), markup=False, soft_wrap=True)
    else:
        show_preview(found, lang)


def _show_changes(earlier: bool, changed: list[dict[str, str]], _: Translate) -> None:
    if not earlier:
        out.print(_("This is the first version of this study that came in."))
        return
    out.print(_("Changed since the version before:"))
    for change in changed:
        out.print(f"  {change['where']}: {change['before']} -> {change['now']}", markup=False, soft_wrap=True)


def differences(before: Study, now: Study) -> list[dict[str, str]]:
    """Every declared value that differs between two versions of a study, by its place in the file."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    return [
        {"where": key, "before": old.get(key, "–"), "now": new.get(key, "–")}
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        found: dict[str, str] = {}
        for key, inner in value.items():
            found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: str(value)}


def decline(
    folder: Folder,
    study: Annotated[str, typer.Argument(help="Name, or the beginning of the hash, of the study in the inbox.")],
    reason: Annotated[str, typer.Option(help="Why. The coordinator reads it.")] = "",
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Refuse a proposed study, with a reason that the coordinator reads. An approval of it is withdrawn."""
    from datetime import UTC, datetime

    from medfed.engines.nvflare.inbox import Inbox

    if not reason.strip():
        raise PolicyViolation("--reason says why, so that the study can be changed; nothing was recorded")
    box = Inbox(load_site(folder))
    proposal = box.find(study)
    box.decline(proposal.study, reason, datetime.now(UTC).isoformat(timespec="seconds"))
    if json:
        print_json({"site": box.site.name, "study": proposal.study.hash, "declined": True})
        return
    _ = translator(lang)
    say(_("{site} declines {study} ({hash}); it is in the ledger."), site=box.site.name,
         study=proposal.study.name, hash=proposal.study.hash[:16])  # fmt: skip


def install_service(
    folder: Folder,
    user: Annotated[str, typer.Option(help="The system user the service runs as. Default: you.")] = "",
    to: Annotated[
        Path | None, typer.Option("--out", help="Where to write the two files. Default: the site's folder.")
    ] = None,
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Write a systemd unit and an environment file for the site's service, and say how to switch it on."""
    from medfed.engines.nvflare.units import site_unit

    site = load_site(folder)
    files = site_unit(site.folder.resolve(), site.name, user or getpass.getuser(), (to or site.folder).resolve())
    show_units(files, to or site.folder, translator(lang), json)


def show_units(files: dict[str, str], folder: Path, _: Translate, json: bool) -> None:
    """Write the files of a systemd unit and say what to do with them."""
    from medfed.canonical import write_atomically

    for name, text in files.items():
        write_atomically(folder / name, text.encode(), mode=0o600 if name.endswith(".env") else 0o644)
    unit = next(name for name in files if name.endswith(".service"))
    if json:
        print_json({"files": [str(folder / name) for name in files]})
        return
    for name in files:
        out.print(str(folder / name), soft_wrap=True)
    say(_("Switch it on: {command}"), command=f"sudo cp {quote(str((folder / unit).resolve()))} /etc/systemd/system/"
         f" && sudo systemctl enable --now {unit}")  # fmt: skip
    say(_("From then on systemd keeps it running: stop and start it with `sudo systemctl stop|start {unit}`, and read what it says with `journalctl -u {unit}`."),
         unit=unit)  # fmt: skip


def study_of(site: SiteFolder, text: str) -> Study:
    """A study by its file, or by its name or hash in the site's inbox."""
    from medfed.study import load_study

    if Path(text).exists() or text.endswith((".yaml", ".yml")) or "/" in text:
        return load_study(Path(text))
    from medfed.engines.nvflare.inbox import Inbox

    found: Study = Inbox(site).find(text).study
    return found
