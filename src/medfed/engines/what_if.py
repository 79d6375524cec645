"""A what-if consortium in memory: synthetic or public tables as sites, keys and approvals made on the spot.

For tests, benchmarks and planning. Nobody is isolated here, and the report of such a run says that it is a what-if.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medfed.data.table import StudyTable
from medfed.engines.embedded import Embedded
from medfed.federation.admission import Access
from medfed.federation.approval import approve, packages_of
from medfed.federation.door import Doors
from medfed.federation.keys import new_signing_key, public_hex
from medfed.federation.ledger import Durability, open_store
from medfed.federation.packages import Method, step_name
from medfed.federation.policy import Policy
from medfed.federation.step import Step
from medfed.study import Study

FAR_DAY = "9999-12-31"


def now() -> datetime:
    return datetime.now(UTC)


def what_if(
    folder: Path,
    tables: Mapping[str, StudyTable],
    study: Study,
    methods: Sequence[Method],
    *,
    policy: Policy | Mapping[str, Policy] | None = None,
    keys: Mapping[str, Any] | None = None,
    steps: Sequence[Step] = (),
    durability: Durability = "process",
    twins: bool = True,
    most_calls: int = 1_000_000,
    approved_budget: float | None = None,
    clock: Callable[[], datetime] = now,
    **options: Any,
) -> tuple[Embedded, dict[str, str]]:
    """One store for all sites, each with a key and an approval of every step of ``methods`` and ``steps``.

    Returns the engine and the sites' public keys (hex). A store that exists already is opened as it is, so give the
    same ``keys`` again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    signing = dict(keys) if keys is not None else {site: new_signing_key() for site in tables}
    policies = {
        site: policy.get(site, Policy()) if isinstance(policy, Mapping) else policy or Policy() for site in tables
    }
    sites = {site: Access(table, policies[site], signing[site]) for site, table in tables.items()}
    names = sorted({step_name(step) for method in methods for step in method.steps} | {step_name(s) for s in steps})
    packages = packages_of(names)
    public = {site: public_hex(key) for site, key in signing.items()}
    db = open_store(folder / "sites.db", durability)
    approved = {
        site for (site,) in db.execute("select site from ledger where kind='approval' and subject=?", (study.hash,))
    }
    for site, access in sites.items():
        if site not in approved:
            approve(
                db,
                site=site,
                study=study,
                steps=names,
                packages=packages,
                table_version=access.table.version,
                until=FAR_DAY,
                key=access.key,
                most_calls=most_calls,
                budget=approved_budget,
                at=clock().isoformat(timespec="seconds"),
                roster=public,
            )
    db.close()
    doors = Doors(folder / "sites.db", sites, study, durability=durability, twins=twins, clock=clock, **options)
    return Embedded([doors]), public
