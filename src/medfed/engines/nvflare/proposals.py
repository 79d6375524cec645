"""Studies that the coordinator has proposed: kept in its folder, sent to each invited site, and asked after."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from medfed.canonical import private_folder, write_atomically
from medfed.engines.nvflare.channel import Unanswered, coordinator_sealer, line_to
from medfed.engines.nvflare.consortium import Network
from medfed.engines.nvflare.envelope import Message, Sealer
from medfed.study import Study

NOT_CONNECTED = "the site is not connected; it gets the study when it is back"
NOT_JOINED = "the site has not joined yet; it gets the study when it has"


def propose(network: Network, study: Study, note: str) -> dict[str, dict[str, Any]]:
    """Keep the proposal and send it to every invited site; where each stands (``state`` "away" where it is not there)."""
    folder = private_folder(_folder(network))
    entry = {"study": study.model_dump_json(), "note": note, "sites": list(study.sites.invited)}
    write_atomically(folder / f"{study.hash}.json", json.dumps(entry, ensure_ascii=False).encode(), mode=0o600)
    content = {"study": study.model_dump_json(), "note": note, "roster": network.signed_roster()}
    return _ask_all(network, study, Message("propose", content))


def standings(network: Network, study: Study) -> dict[str, dict[str, Any]]:
    """Where every invited site stands on a study."""
    return _ask_all(network, study, Message("standing", {"study": study.hash}))


def deliver(network: Network, sealer: Sealer, site: str, public_key: str) -> None:
    """Send a site that is back all that was proposed to it; what it has already is not changed."""
    for path in sorted(_folder(network).glob("*.json")):
        entry: Mapping[str, Any] = json.loads(path.read_text())
        if site in entry["sites"]:
            with line_to(network.relay, sealer, site, public_key) as line:
                content = {"study": entry["study"], "note": entry["note"], "roster": network.signed_roster()}
                line.ask(Message("propose", content), timeout=15.0)


def _folder(network: Network) -> Path:
    return network.folder / "proposals"


def _ask_all(network: Network, study: Study, message: Message) -> dict[str, dict[str, Any]]:
    sealer, members = coordinator_sealer(network.keys, network.identity()), network.members()

    def one(site: str) -> dict[str, Any]:
        member = members.get(site)
        if member is None or member.state != "joined":
            return {"state": "away", "reason": NOT_JOINED}
        try:
            with line_to(network.relay, sealer, site, member.public_key) as line:
                found = dict(line.ask(message, timeout=15.0).content)
        except Unanswered:
            return {"state": "away", "reason": NOT_CONNECTED}
        return {"state": "away", "reason": str(found.get("reason", ""))} if found.get("state") == "failure" else found

    with ThreadPoolExecutor(max(len(study.sites.invited), 1)) as pool:
        return dict(zip(study.sites.invited, pool.map(one, study.sites.invited), strict=True))
