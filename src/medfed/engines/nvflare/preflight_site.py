"""A site looked at by itself: membership, permissions, keys, disk, package, mapping, policy, ledger, halt."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from shlex import quote
from typing import Any

from medfed import __version__
from medfed.data.site_folder import SiteFolder
from medfed.data.stored import open_table
from medfed.engines.nvflare.certificates import belongs_together
from medfed.engines.nvflare.finding import Finding, Limits, _
from medfed.engines.nvflare.join import SiteNetwork
from medfed.errors import MappingError, MedfedError, StudyError
from medfed.federation.approval import packages_of
from medfed.federation.keys import load_signing_key
from medfed.federation.ledger import open_store, verify_ledger
from medfed.federation.packages import Package, installed_package
from medfed.federation.policy import Policy, load_policy
from medfed.study import Study

StepsOf = Callable[[Study], Sequence[str]]


def guarded(name: str, check: Callable[[], Finding]) -> Finding:
    """A check's finding; what it can't read is a failure of that check and not of the others."""
    try:
        return check()
    except OSError as problem:
        return Finding(
            name, "failed", _("{file} can't be used ({error})."),
            _("Run this as the user who owns the site's folder, and mend the file's permissions."),
            {"file": problem.filename or name, "error": problem.strerror or str(problem)},
        )  # fmt: skip
    except MedfedError as problem:
        return Finding(name, "failed", "{problem}", _("Do what the sentence says, then check again."), {"problem": str(problem)})  # fmt: skip


def check_joined(network: SiteNetwork) -> Finding:
    if not network.joined:
        return Finding(
            "joined", "failed", _("The site has joined no consortium."),
            _("Ask the coordinator for a kit, then `medfed site join`."),
        )  # fmt: skip
    member = network.membership()
    return Finding(
        "joined", "ok", _("The site {site} belongs to the consortium {consortium}; its coordinator is at {host}, port {port}."),
        values={"site": member.site, "consortium": member.name, "host": member.host, "port": member.port},
    )  # fmt: skip


def check_permissions(network: SiteNetwork) -> Finding:
    """Keys, secrets and sockets are for the site's own user alone."""
    site = network.site
    open_ones = [path for path in _private(network) if path.stat().st_mode & 0o077]
    if open_ones:
        places = [quote(str(path)) for path in (site.keys, network.folder) if path.exists()]
        return Finding(
            "permissions", "failed", _("{count} private files or folders can be read by other users of this machine, first {file}."),
            _("Run: chmod -R go-rwx {places}"),
            {"count": len(open_ones), "file": str(open_ones[0]), "places": " ".join(places)},
        )  # fmt: skip
    if site.folder.stat().st_mode & 0o007:
        return Finding(
            "permissions", "warning", _("Keys and sockets are private, but tables and ledger in {folder} can be read by every user of this machine."),
            _("Run: chmod o-rwx {folder}"), {"folder": quote(str(site.folder))},
        )  # fmt: skip
    return Finding("permissions", "ok", _("Keys, sockets and the site's folder are for the site's own user alone."))


def _private(network: SiteNetwork) -> Iterator[Path]:
    startup = network.workspace / "startup"
    folders = (network.site.keys, network.folder, network.run, network.inbox, network.incoming, startup)
    files = [network.folder / name for name in ("membership.json", "enrolment", "renewal.key")]
    files += [startup / "client.key", network.run / "registration.json", network.run / "door"]
    yield from (path for path in folders if path.is_dir())
    yield from sorted(path for path in network.site.keys.glob("*") if not path.is_dir())
    yield from (path for path in files if path.exists())


def check_keys(network: SiteNetwork) -> Finding:
    site = network.site
    load_signing_key(site.keys)
    site.pseudonym_key()
    if not network.joined:
        return Finding("keys", "ok", _("The site's signing key and pseudonym key are whole."))
    if not pair_is_whole(network):
        return Finding(
            "keys", "failed", _("The site's certificate, its key and the consortium's root do not belong together."),
            _("Ask the coordinator for a new kit, and join with it."),
        )  # fmt: skip
    return Finding("keys", "ok", _("The site's signing key, pseudonym key, certificate and its key are whole."))


def pair_is_whole(network: SiteNetwork) -> bool:
    """Whether the site's certificate has its key and comes from its root."""
    startup = network.workspace / "startup"
    key = (startup / "client.key").read_bytes()
    return belongs_together(network.certificate(), key, network.root(), network.site.name)


def check_disk(network: SiteNetwork, limits: Limits) -> Finding:
    """Room for the ledger and for what comes in, on each disk that they lie on."""
    ledger = network.site.folder
    incoming = next(place for place in (network.incoming, network.folder, ledger) if place.exists())
    place = min((ledger, incoming), key=lambda folder: shutil.disk_usage(folder).free)
    free = shutil.disk_usage(place).free
    sizes = {"folder": str(place), "free": _gigabytes(free), "least": _gigabytes(limits.disk_least), "wanted": _gigabytes(limits.disk_wanted)}  # fmt: skip
    if closed := [folder for folder in (ledger, incoming) if not os.access(folder, os.W_OK)]:
        return Finding("disk", "failed", _("{folder} can't be written, so nothing could be sealed."),
                       _("Run this as the user who owns the site's folder, and mend the file's permissions."),
                       {"folder": str(closed[0])})  # fmt: skip
    if free < limits.disk_least:
        return Finding("disk", "failed", _("Only {free} GB are free for {folder}; {least} are the least."),
                       _("Free space or move the site's folder: {wanted} GB hold what can come in and the ledger."), sizes)  # fmt: skip
    if free < limits.disk_wanted:
        return Finding("disk", "warning", _("{free} GB are free for {folder}; large models may need {wanted}."),
                       _("Free space or move the site's folder: {wanted} GB hold what can come in and the ledger."), sizes)  # fmt: skip
    return Finding("disk", "ok", _("{free} GB are free for ledger and incoming inputs."), values=sizes)


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f}"


def check_package(coordinator: Mapping[str, Any], loaded: Mapping[str, Any]) -> Finding:
    """The installed medfed beside the coordinator's, and beside what the running service has in memory.

    coordinator, loaded: {"medfed": version, "package": hash of its files}; empty where not known.
    """
    own = installed_package("medfed", "medfed")
    values = {"version": __version__, "hash": own.sha256[:16], "other": str(coordinator.get("medfed", ""))[:40],
              "other_hash": str(coordinator.get("package", ""))[:16]}  # fmt: skip
    if loaded.get("package") not in (None, own.sha256):
        return Finding("package", "failed", _("medfed was changed on this machine since the site's service started."),
                       _("Start the service again: `medfed site stop`, then `medfed site start`."), values)  # fmt: skip
    if not coordinator.get("package"):
        return Finding("package", "skipped", _("medfed {version}, files {hash}; the coordinator's are not known yet, it tells them to the running service."),
                       _("Start the site's service and check again, or compare by phone."), values)  # fmt: skip
    if coordinator.get("medfed") != __version__:
        return Finding("package", "failed", _("This site has medfed {version}, the coordinator {other}."),
                       _("Install medfed {other} here, or ask the coordinator to change to {version}; then approve again."), values)  # fmt: skip
    if coordinator["package"] != own.sha256:
        return Finding("package", "failed", _("medfed {version} is here and at the coordinator, but its files differ ({hash} here, {other_hash} there)."),
                       _("Install medfed {version} from the same source on both sides; then approve again."), values)  # fmt: skip
    return Finding("package", "ok", _("medfed {version}, files {hash}, as at the coordinator."), values=values)


def check_policy(site: SiteFolder, study: Study | None, steps_of: StepsOf | None) -> Finding:
    """policy.yaml loads, its pins hold what is installed, and it allows every step of the study."""
    try:
        policy = load_policy(site.policy_path)
    except MedfedError as problem:
        return Finding("policy", "failed", "{problem}", _("Correct policy.yaml, or take the one that `medfed site init` writes."), {"problem": str(problem)})  # fmt: skip
    packages: dict[str, Package] = {}
    if "medfed" in policy.packages:
        packages["medfed"] = installed_package("medfed", "medfed")
    if study is not None and steps_of is not None:
        try:
            names = steps_of(study)
            packages |= {package.name: package for package in packages_of(names)}
        except MedfedError as problem:
            return Finding("policy", "failed", _("The study's steps are not all installed here: {problem}"),
                           _("Install the package that the study names, and list it in policy.yaml."), {"problem": str(problem)})  # fmt: skip
        if refused := [name for name in names if not policy.allows_step(name)]:
            return Finding("policy", "failed", _("The policy does not allow {count} of the study's {all} steps, first {step}."),
                           _("Ask the site's data protection officer whether policy.yaml may allow it, under packages and steps."),
                           {"count": len(refused), "all": len(names), "step": refused[0]})  # fmt: skip
    for name, package in packages.items():
        if name in policy.packages and not _is_pinned(policy, package):
            return Finding("policy", "failed", _("The policy pins another version or other files of {package} than are installed ({version}, files {hash})."),
                           _("Install the pinned version, or ask the data protection officer to pin this one."),
                           {"package": name, "version": package.version, "hash": package.sha256[:16]})  # fmt: skip
    if study is None:
        return Finding("policy", "ok", _("The policy can be read."))
    return Finding("policy", "ok", _("The policy allows every step of {study}."), values={"study": study.name})


def _is_pinned(policy: Policy, package: Package) -> bool:
    pin = policy.packages[package.name]
    return pin.version in (None, package.version) and pin.sha256 in (None, package.sha256)


def check_mapping(site: SiteFolder, study: Study | None) -> Finding:
    """site.yaml names files that are there; for a study: its table builds, and the built one is of today's export."""
    name = "mapping"
    if study is None:
        for key, source in site.declared.sources.items():
            if not (site.folder / source.path).is_file():
                return Finding(name, "failed", _("{file}, which {where} names, does not exist."),
                               _("Export it again, or correct `path`."),
                               {"file": str(site.folder / source.path), "where": site.where("sources", key)})  # fmt: skip
        return Finding(name, "ok", _("site.yaml can be read and its sources are there."))
    values: dict[str, object] = {"study": study.name, "site": site.name}
    if site.name not in study.sites.invited:
        return Finding(name, "failed", _("The study {study} does not invite the site {site}."),
                       _("Ask the coordinator to invite it, or correct `site` in site.yaml."), values)  # fmt: skip
    try:
        from medfed.data.build import check as check_data

        quality = check_data(site, study)
    except (MappingError, StudyError) as problem:
        return Finding(name, "failed", "{problem}", _("Correct site.yaml or the export; `medfed site check` goes through them."), {"problem": str(problem)})  # fmt: skip
    try:
        built = open_table(site, study).version
    except MappingError:
        return Finding(name, "warning", _("The mapping gives a table for {study}, which is not built yet or was damaged."),
                       _("Run `medfed site build`, then approve the study."), values)  # fmt: skip
    if built != quality.version:
        return Finding(name, "warning", _("The export or the mapping has changed since the table for {study} was built."),
                       _("Run `medfed site build` and approve again, if the new data are to be used."), values)  # fmt: skip
    return Finding(name, "ok", _("The table for {study} is built and is what the mapping gives today."), values=values)


def check_ledger(site: SiteFolder) -> Finding:
    if not site.ledger_path.exists():
        return Finding("ledger", "skipped", _("There is no ledger yet: the site has approved nothing so far."))
    try:
        with closing(open_store(site.ledger_path, "call")) as db:
            head = verify_ledger(db, site.name)
    except (MedfedError, sqlite3.Error) as problem:
        return Finding("ledger", "failed", _("The ledger is damaged or was changed: {problem}"),
                       _("Restore ledger.db from a backup; until then the site answers nothing."), {"problem": str(problem)})  # fmt: skip
    return Finding("ledger", "ok", _("The ledger is whole, {rows} rows."), values={"rows": head.number + 1})


def check_halted(network: SiteNetwork) -> Finding:
    if not network.is_halted:
        return Finding("halted", "ok", _("The site is not halted."))
    why = " ".join((network.folder / "halted").read_text(errors="replace").split())[:200]
    return Finding("halted", "failed", _("The site has halted, so nothing leaves it. Reason given: {why}"),
                   _("When its officer agrees: `medfed site start --lift-halt`."), {"why": why or "-"})  # fmt: skip
