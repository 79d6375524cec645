"""What a site says of its units before any secure sum: its words of the count, from its table, policy and key."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.canonical import digest
from medfed.federation import gate
from medfed.federation.admission import Access
from medfed.federation.approval import Approval
from medfed.federation.call import Call
from medfed.federation.packages import find_step
from medfed.federation.step import Reply
from medfed.federation.units import Layout, lot_at
from medfed.study import Study


def noise_secret(access: Access, call: Call, what: str) -> bytes:
    """Bytes that only this site can work out, the same at every try of one call."""
    return bytes.fromhex(digest("medfed presence", what, access.key.private_bytes_raw(), call.key))


def passes_alone(access: Access, study: Study) -> bool:
    """Whether sums over every part of this table might be seen for this site by itself."""
    table, policy = access.table, access.policy
    views = [table.on(part) for part in Layout(study, 1).parts()]
    reasons = [gate.judge_rows(table.on("all"), view, study, policy, "plain", ()) for view in views if view.rows]
    return bool(reasons) and not any(reasons)


def lists_figures(access: Access, approval: Approval) -> bool:
    """Whether the policy lists every figure of one site that the approved steps give."""
    kinds = {
        name: kind
        for step in approval.steps
        for name, kind in find_step(step).releases.items()
        if isinstance(kind, Reply)
    }
    policy = access.policy
    return all(n in policy.replies and (policy.site_terms_visible or not kind.site_terms) for n, kind in kinds.items())


class SiteUnits:
    """Counts the units of the sites behind one store; a table is counted once."""

    def __init__(self, sites: Mapping[str, Access], study: Study) -> None:
        self.sites = sites
        self.study = study
        self._counted: dict[tuple[str, str], NDArray[np.int64]] = {}
        self._passing: dict[tuple[str, str], bool] = {}

    def answers(
        self, call: Call, approvals: Mapping[str, Approval]
    ) -> tuple[dict[str, NDArray[np.int64]], None, list[Any], int]:
        """As a step's answers: the words of every site that approved (S, length), no keep, nothing local, how many numbers."""
        layout = Layout(self.study, len(call.roster))
        words = np.stack([self._words(site, layout, call, approval) for site, approval in approvals.items()])
        return {"units": words}, None, [None] * len(approvals), layout.length

    def _words(self, site: str, layout: Layout, call: Call, approval: Approval) -> NDArray[np.int64]:
        access = self.sites[site]
        key = (site, access.table.version)
        if key not in self._counted:
            self._counted[key] = layout.count(access.table.on("all"), self._atoms(access))
            self._passing[key] = passes_alone(access, self.study)
        passing = self._passing[key]
        showing = passing and lists_figures(access, approval)
        secret = noise_secret(access, call, "units")
        lot = lot_at(self.study.privacy.minimum_cell, call.roster, site)
        return layout.words(self._counted[key], lot=lot, passing=passing, showing=showing, secret=secret)

    def _atoms(self, access: Access) -> NDArray[np.int64]:
        table = access.table
        return np.zeros(table.rows, np.int64) if self.study.parts.kind == "all" else table.part_index
