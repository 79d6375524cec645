"""A consortium on disk for tests: a coordinator's folder, and invented sites that have built their table and joined."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medfed.data.build import build_table
from medfed.data.site_folder import SiteFolder, init_site, load_site
from medfed.engines.nvflare import renewal
from medfed.engines.nvflare.channel import coordinator_sealer
from medfed.engines.nvflare.consortium import TEMPLATE, Consortium, Network
from medfed.engines.nvflare.envelope import Sealer
from medfed.engines.nvflare.inbox import Inbox
from medfed.engines.nvflare.join import SiteNetwork, join
from medfed.engines.nvflare.kit import open_kit
from medfed.evaluation.study_run import step_names
from medfed.federation.approval import approve, packages_of
from medfed.federation.keys import load_signing_key, write_signing_key
from medfed.federation.ledger import open_store
from medfed.federation.policy import POLICY_TEMPLATE
from medfed.study import Study, study_from_dict

SITES = ("north", "south", "west")
AT = "2026-01-01T00:00:00+00:00"
NEWTON = {"use": "medfed:medfed.methods.newton.Newton", "settings": {}}
PLUGIN = "medfed-test-plugin"


@dataclass(frozen=True)
class Joined:
    """coordinator: the network's folder; codes: of the kits, by site."""

    folder: Path
    coordinator: Network
    declared: Consortium
    codes: dict[str, str]

    def site(self, name: str) -> SiteFolder:
        return load_site(self.folder / "sites" / name)

    def site_network(self, name: str) -> SiteNetwork:
        return SiteNetwork(self.site(name))

    @property
    def sealer(self) -> Sealer:
        """The coordinator's end, with the right key."""
        return coordinator_sealer(self.coordinator.keys, self.coordinator.identity())


def a_study(sites: Sequence[str] = SITES, **changes: Any) -> Study:
    declared: dict[str, Any] = {
        "medfed": 1,
        "name": "event",
        "title": "Who has the event?",
        "question": "Who has the event?",
        "variables": {
            "event": {"meaning": "Event", "type": "code", "role": "outcome", "codes": {"no": "No", "yes": "Yes"}, "event": "yes"},
            "age": {"meaning": "Age", "type": "number", "role": "covariate", "unit": "year", "range": [18, 110]},
            "weight": {"meaning": "Weight", "type": "number", "role": "covariate", "unit": "kg", "range": [30, 200], "missing": "mean"},
        },
        "task": {"kind": "risk_prediction"},
        "method": NEWTON,
        "parts": {"kind": "all"},
        "evaluation": {"design": "none"},
        "sites": {"invited": list(sites), "minimum": 2},
    }  # fmt: skip
    return study_from_dict(declared | changes)


def export(index: int, count: int = 150) -> str:
    """A site's export of invented patients."""
    rng = np.random.default_rng(index)
    age, weight = rng.integers(20, 90, count), np.round(rng.normal(75, 12, count), 1)
    event = rng.random(count) < 1 / (1 + np.exp(-(0.06 * (age - 55) + 0.03 * (weight - 75) - 0.2)))
    rows = [f"P{index}{i:05d},{event[i]:d},{age[i]},{weight[i]}" for i in range(count)]
    return "\n".join(["patient_id,EVENT,AGE,WEIGHT", *rows])


def make_site(folder: Path, name: str, data: str) -> SiteFolder:
    """folder/sites/NAME as its officer would have it: export, mapping, policy, keys."""
    home = folder / "sites" / name
    init_site(home, name)
    (home / "site.yaml").write_text(
        f"site: {name}\nsources: {{export: {{path: data/export.csv}}}}\npatient: {{source: export, column: patient_id}}\n"
        'mapping:\n  event: {column: EVENT, codes: {"0": no, "1": yes}}\n  age: {column: AGE, unit: year}\n'
        "  weight: {column: WEIGHT, unit: kg}\n"
    )
    (home / "data" / "export.csv").write_text(data)
    policy = POLICY_TEMPLATE.replace("  medfed: {}", f"  medfed: {{}}\n  {PLUGIN}: {{}}")
    (home / "policy.yaml").write_text(policy.replace("steps: [", f'steps: ["{PLUGIN}:*", '))
    write_signing_key(home / "keys")
    return load_site(home)


def make_joined(folder: Path, sites: Sequence[str] = SITES, *, port: int = 8002, days: int = 365) -> Joined:
    """Everything up to the start of the services; nothing is proposed or approved yet."""
    folder.mkdir(parents=True, exist_ok=True)
    text = TEMPLATE.format(name="trial", host="localhost", port=port)
    (folder / "consortium.yaml").write_text(text.replace("certificate_days: 365", f"certificate_days: {days}"))
    coordinator = Network(folder)
    declared = coordinator.declared()
    renewal.create(coordinator, declared)
    found = Joined(folder, coordinator, declared, {})
    for index, name in enumerate(sites):
        make_site(folder, name, export(index))
        invite_and_join(found, name)
    return found


def invite_and_join(joined: Joined, name: str) -> None:
    path, joined.codes[name], _ = renewal.invite(joined.coordinator, joined.declared, name)
    join(joined.site(name), open_kit(path, joined.codes[name]))


def propose_and_approve(joined: Joined, study: Study, sites: Sequence[str] = SITES, **changes: Any) -> None:
    """The sites have the study in their inbox, have built its table and approved it. changes: of the approval."""
    for name in sites:
        site = joined.site(name)
        Inbox(site).receive(study.model_dump_json(), "", AT)
        table, _ = build_table(site, study)
        steps = step_names(study)
        asked: dict[str, Any] = dict(
            site=name, study=study, steps=steps, packages=packages_of(steps), table_version=table.version,
            until="2099-12-31", key=load_signing_key(site.keys), at=AT,
        )  # fmt: skip
        with closing(open_store(site.ledger_path, "call")) as db:
            approve(db, **asked | changes)


def ledger_rows(site: SiteFolder) -> list[tuple[Any, ...]]:
    """The whole ledger: kind, charge, running total."""
    if not site.ledger_path.exists():
        return []
    with closing(open_store(site.ledger_path, "call")) as db:
        return db.execute("select number, kind, charge, spent from ledger order by number").fetchall()
