"""medfed site: everything a site does for itself: folder, policy, approval, ledger."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from medfed.canonical import write_atomically
from medfed.cli import site_data, site_model, site_network, site_preflight
from medfed.cli.console import AsJson, Language, out, print_json, say
from medfed.cli.site_cost import outlook_at, show_outlook
from medfed.data.site_folder import SiteFolder, init_site, load_site
from medfed.data.stored import open_table
from medfed.engines.site_roster import add_to_roster, fingerprint, protection_for, read_roster, shares_for
from medfed.errors import LedgerError, PolicyViolation
from medfed.evaluation.study_run import StudyRun, step_names, steps_of
from medfed.federation.approval import MOST_CALLS, approved_names, packages_of
from medfed.federation.approval import approve as sign_approval
from medfed.federation.approval import revoke as sign_revocation
from medfed.federation.keys import SIGNING_KEY, load_signing_key, public_hex, write_signing_key
from medfed.federation.ledger import heads_of, open_store, rows_of, sign_head, verify_ledger
from medfed.federation.opening import secure_roster, why_plain
from medfed.federation.policy import POLICY_TEMPLATE, load_policy
from medfed.federation.preview import Preview
from medfed.federation.preview import preview as preview_of
from medfed.federation.private import charges_of
from medfed.federation.store import RunnerStore
from medfed.language import translator
from medfed.study import load_study

app = typer.Typer(no_args_is_help=True, help="A site's own side: folder, data, policy, approval, ledger, predictions.")
site_data.register(app)
site_model.register(app)
site_network.register(app)
site_preflight.register(app)

SiteFolderPath = Annotated[Path, typer.Argument(help="The site's folder (holds site.yaml).")]
StudyFile = Annotated[Path, typer.Argument(help="The study.yaml that was proposed.")]
Proposed = Annotated[
    str, typer.Argument(help="The study.yaml that was proposed, or its name or hash in the site's inbox.")
]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _ledger(site: SiteFolder) -> Iterator[sqlite3.Connection]:
    """The site's ledger, made where there is none. LedgerError where its file is damaged."""
    with closing(open_store(site.ledger_path, "call")) as db:
        try:
            yield db
        except sqlite3.DatabaseError as problem:
            raise LedgerError(f"{site.ledger_path} is damaged ({problem}); restore it from a backup") from None


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    name: Annotated[str, typer.Option(help="The site's name, as studies invite it: a-z, 0-9, hyphen.")],
    title: Annotated[str, typer.Option(help="The institution's name for people.")] = "",
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Make a site's folder: site.yaml and policy.yaml to edit, and the site's keys (readable by you alone).

    A policy and keys that are there already are kept.
    """
    made = init_site(folder, name, title)
    try:
        if not (folder / "policy.yaml").exists():
            write_atomically(folder / "policy.yaml", POLICY_TEMPLATE.encode())
        keys = folder / "keys"
        key = load_signing_key(keys) if (keys / SIGNING_KEY).exists() else write_signing_key(keys)
        add_to_roster(folder, name, public_hex(key))
    except (OSError, PolicyViolation):
        made.unlink()  # so that init can be run again
        raise
    if json:
        print_json({"site": name, "folder": str(folder), "public_key": public_hex(key)})
        return
    _ = translator(lang)
    say(_("{folder} is ready. Edit site.yaml (mapping) and policy.yaml (what may leave)."), folder=folder)
    say(_("Public key of this site, for the coordinator: {key}"), key=public_hex(key))


@app.command()
def preview(folder: SiteFolderPath, study: Proposed, lang: Language = "en", json: AsJson = False) -> None:
    """Show exactly what would leave the site if it approved this study, and what its policy would hold back."""
    site = load_site(folder)
    loaded = site_network.study_of(site, study)
    table, policy = open_table(site, loaded), load_policy(site.policy_path)
    found = preview_of(
        site.name, loaded, table, policy, steps_of(loaded), protection_for(site, loaded),
        charges=charges_of(loaded, StudyRun(loaded)), shares=shares_for(site, loaded),
        outlook=outlook_at(site, loaded, policy),
    )  # fmt: skip
    if json:
        print_json(found)
    else:
        show_preview(found, lang)


def show_preview(found: Preview, lang: str) -> None:
    _ = translator(lang)
    out.print(f"[bold]{found.study}[/bold] · {found.site} · {found.patients} {_('patients')}")
    out.print(f"{_('Hash')}: {found.hash}", soft_wrap=True)
    out.print(f"{_('Table version')}: {found.table_version}", soft_wrap=True)
    if found.outlook is not None:
        show_outlook(found.outlook, lang)
    if found.protection == "secure" and found.epsilon is not None:
        say(_("Sums are secure: only totals over several sites are seen, and this site adds a share of their noise; the shares of {shares} sites make up the whole."),
            shares=found.shares)  # fmt: skip
    elif found.protection == "secure":
        say(_("Sums are secure: only totals over several sites are seen, and counts are held to {minimum} in total."),
            minimum=found.minimum_cell)  # fmt: skip
    else:
        say(_("Sums are plain: the coordinator sees those of this site."))
    for step in found.steps:
        out.print(f"\n[bold]{step.step}[/bold]", soft_wrap=True)
        out.print(f"  {_(step.meaning)}", markup=False, soft_wrap=True)
        if step.takes:
            out.print(f"  {_('Is asked with')}: {'; '.join(step.takes)}", markup=False, soft_wrap=True)
        if step.keeps:
            out.print(f"  {_('Keeps at the site')}: {', '.join(step.keeps)}")
        table = Table(show_edge=False, pad_edge=False)
        headings = [_("Leaves the site"), _("Kind"), _("Shape"), _("Values"), _("Bytes"), _("Largest")]
        for heading in headings + ([_("Noise (SD)")] if found.epsilon is not None else []):
            table.add_column(heading)
        for release in step.releases:
            shape = " x ".join(map(str, release.shape)) or "1"
            noise = [] if found.epsilon is None else ["–" if release.noise is None else f"{release.noise:.4g}"]
            table.add_row(
                release.name, release.kind, shape, str(release.values), str(release.bytes), release.limit, *noise
            )
        out.print(table)
        out.print(f"  {_('Values for each patient')}: {step.values_per_patient:.3f}")
        if step.held_back:
            out.print(f"  [yellow]{_('Would be held back')}: {_(step.held_back)}[/yellow]", soft_wrap=True)


@app.command()
def approve(
    folder: SiteFolderPath,
    study: Proposed,
    study_hash: Annotated[str, typer.Option("--hash", help="The study's hash, as you read it; it must match.")] = "",
    until: Annotated[str, typer.Option(help="Last day of the approval, YYYY-MM-DD. Default: in 180 days.")] = "",
    table_version: Annotated[
        str, typer.Option(help="Table version (or its beginning) to approve. Default: the built one.")
    ] = "",
    most_calls: Annotated[
        int, typer.Option(min=1, help="How many calls the site answers in all, over all runs.")
    ] = MOST_CALLS,
    officer: Annotated[str, typer.Option(help="Who approves, for the record.")] = "",
    budget: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Epsilon that this study may spend here over all its runs. Default: its own epsilon."
        ),
    ] = None,
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Approve a study: a signed record, in the ledger, of its hash, steps, package hashes, table version and last day."""
    site = load_site(folder)
    loaded = site_network.study_of(site, study)
    if site.name not in loaded.sites.invited:
        raise PolicyViolation(
            f"study {loaded.name!r} does not invite the site {site.name!r}; it invites {', '.join(loaded.sites.invited)}. "
            "Not approved: ask the coordinator, or correct `site` in site.yaml"
        )
    if study_hash and not (len(study_hash) >= 8 and loaded.hash.startswith(study_hash)):
        raise PolicyViolation(
            f"{study} has the hash {loaded.hash}, not {study_hash}; it is not the study you read. Not approved"
        )
    table = open_table(site, loaded)
    if table_version and not table.version.startswith(table_version):
        raise PolicyViolation(
            f"the table built for this study has version {table.version}, not {table_version}. Not approved"
        )
    last = _last_day(until)
    key = load_signing_key(site.keys)
    policy = load_policy(site.policy_path)
    # What can't be given noise under the study's epsilon is told now, and what can't be paid for.
    cost = outlook_at(site, loaded, policy, study_budget=budget)
    names = step_names(loaded)
    if refused := [name for name in names if not policy.allows_step(name)]:
        raise PolicyViolation(f"the policy of site {site.name!r} does not allow the step {refused[0]}; not approved")
    packages, roster = packages_of(names), read_roster(site)
    if cost is not None and not json:
        show_outlook(cost, lang)
    with _ledger(site) as db:
        head = sign_approval(
            db, site=site.name, study=loaded, steps=names, packages=packages, table_version=table.version,
            until=last.isoformat(), key=key, at=_now(), most_calls=most_calls, officer=officer or os.environ.get("USER", ""),
            budget=budget, roster=roster,
        )  # fmt: skip
    among = secure_roster(loaded, roster)
    if json:
        print_json({"site": site.name, "study": loaded.hash, "until": last.isoformat(), "table_version": table.version,
                    "steps": names, "packages": packages, "ledger_row": head.number, "roster": among, "cost": cost})  # fmt: skip
        return
    _ = translator(lang)
    say(_("{site} approves {study} ({hash}) until {until}; row {row} of its ledger."), site=site.name, study=loaded.name,
        hash=loaded.hash[:16], until=last, row=head.number)  # fmt: skip
    for package in packages:
        say("  " + _("Package: {name} {version}, files {hash}"), name=package.name, version=package.version,
            hash=package.sha256[:16])  # fmt: skip
    if among:
        say("  " + _("Sums are secure, hidden among {sites}. Fingerprint of their keys, to be compared with the other officers: {fingerprint}"),
            sites=", ".join(among), fingerprint=fingerprint(among))  # fmt: skip
    else:
        say("  " + _("Sums are plain, because {reason}."), reason=_(why_plain(loaded, roster) or ""))


def _last_day(until: str) -> date:
    if not until:
        return date.today() + timedelta(days=180)
    try:
        last = date.fromisoformat(until)
    except ValueError:
        raise PolicyViolation(f"--until is a day like 2027-06-30, not {until!r}") from None
    if last < date.today():
        raise PolicyViolation(f"--until {until} has passed; choose a later day")
    return last


@app.command()
def revoke(
    folder: SiteFolderPath,
    study: Annotated[
        str, typer.Argument(help="The study.yaml that was approved, its name, or the beginning of its hash.")
    ],
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Withdraw an approval. The site answers no further call of this study, also in a run that is under way."""
    site = load_site(folder)
    if not site.ledger_path.exists():
        raise PolicyViolation(f"site {site.name!r} has approved nothing yet, so nothing can be withdrawn")
    wanted = load_study(study).hash if Path(study).exists() else study
    with _ledger(site) as db:
        approved = approved_names(db, site.name, standing=True)
        found = [study_hash for study_hash in approved if study_hash.startswith(wanted) and len(wanted) >= 8]
        found = found or [study_hash for study_hash, name in approved.items() if name == wanted]
        # From another version of the file nothing would be withdrawn, and the officer would think it was.
        if len(found) != 1:
            standing = ", ".join(f"{name} {study_hash[:12]}" for study_hash, name in approved.items()) or "none"
            raise PolicyViolation(
                f"site {site.name!r} has not approved the study of the hash {wanted[:16]}; nothing was withdrawn. "
                f"Name one that stands by its hash: {standing}"
                if not found
                else f"site {site.name!r} has approved {len(found)} versions of {wanted}; nothing was withdrawn. "
                f"Name one by its hash: {standing}"
            )
        key = load_signing_key(site.keys)
        head = sign_revocation(db, site=site.name, study_hash=found[0], key=key, at=_now())
    if json:
        print_json({"site": site.name, "study": found[0], "ledger_row": head.number})
        return
    _ = translator(lang)
    say(_("{site} has withdrawn its approval of {study}; row {row} of its ledger."), site=site.name,
        study=approved[found[0]], row=head.number)  # fmt: skip


@app.command()
def packages(study: StudyFile, lang: Language = "en", json: AsJson = False) -> None:
    """Print version and file hash of the installed packages that a study's steps come from, to pin them in policy.yaml."""
    found = packages_of(step_names(load_study(study)))
    if json:
        print_json(found)
        return
    for package in found:
        out.print(f'{package.name}: {{version: "{package.version}", sha256: {package.sha256}}}', soft_wrap=True)


@app.command()
def ledger(folder: SiteFolderPath, lang: Language = "en", json: AsJson = False) -> None:
    """List everything that was approved, released and recorded at this site."""
    site = load_site(folder)
    rows: list[dict[str, Any]] = []
    if site.ledger_path.exists():
        with _ledger(site) as db:
            rows = [
                {k: v for k, v in row.items() if k not in ("bytes", "file", "id")} for row in rows_of(db, site.name)
            ]
    if json:
        print_json(rows)
        return
    _ = translator(lang)
    table = Table(show_edge=False)
    for heading in ("#", _("When"), _("Kind"), _("Round"), _("Step"), _("Values"), _("Bytes"), "ε", _("Hash")):
        table.add_column(heading)
    for row in rows:
        step = str(row["step"] or "").rpartition(".")[2]
        table.add_row(str(row["number"]), str(row["at"]), str(row["kind"]), str(row["round"] or ""), step, str(row["amount"]),
                      str(row["size"]), f"{row['charge']:g}", str(row["hash"])[:12])  # fmt: skip
    out.print(table)


@app.command()
def verify(
    folder: SiteFolderPath,
    coordinator: Annotated[
        Path | None, typer.Option(help="A coordinator's folder: check against the head it holds.")
    ] = None,
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Verify the ledger: no row edited, removed or moved; with --coordinator also: none cut off at the end."""
    site = load_site(folder)
    if not site.ledger_path.exists():
        raise LedgerError(f"{site.ledger_path} does not exist; the site has approved nothing yet")
    known = None
    if coordinator is not None:
        store = RunnerStore(coordinator, read_only=True)
        held = store.heads().get(site.name)
        store.close()
        known = held[0] if held else None
    with _ledger(site) as db:
        head = verify_ledger(db, site.name, known)
        signed = sign_head(site.name, heads_of(db).get(site.name, head), load_signing_key(site.keys))
    if json:
        print_json({"site": site.name, "rows": head.number + 1, "head": head.hash, "signature": signed.signature,
                    "epsilon": head.spent, "checked_against_coordinator": known is not None})  # fmt: skip
    else:
        _ = translator(lang)
        whole = _("{site}: the ledger is whole, {rows} rows. Head {head}")
        if known:
            whole = _(
                "{site}: the ledger is whole, {rows} rows, and ends at or after the head the coordinator holds (row {row}). Head {head}"
            )
        say(whole, site=site.name, rows=head.number + 1, head=head.hash[:16], row=known.number if known else 0)
