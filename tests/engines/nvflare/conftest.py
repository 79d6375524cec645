import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from asking import Clock
from joined import Joined, make_joined
from network import Network, bring_up

from medfed.engines.nvflare import site_service
from medfed.engines.nvflare.envelope import Sealer
from medfed.engines.nvflare.site_service import SiteService


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Joined:
    """A coordinator's folder and two sites that have joined; no process runs."""
    return make_joined(tmp_path_factory.mktemp("joined") / "consortium", ["north", "south"])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service(joined: Joined, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[SiteService]:
    """The service of site north. A call that would reach the process of a study fails the test."""
    found = SiteService(joined.site("north").folder)
    found.fresh.clock = clock
    reached = []
    monkeypatch.setattr(
        site_service.StepProcess, "answer", lambda *asked: (reached.append(asked), ({"state": "answer"}, b""))[1]
    )
    yield found
    assert reached == []


@pytest.fixture
def sealer(joined: Joined, clock: Clock) -> Sealer:
    return Sealer(joined.coordinator.identity(), "coordinator", joined.sealer.key, clock)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A running network: a coordinator and three sites, in processes of their own, over TLS on this machine."""
    with bring_up(tmp_path_factory.mktemp("network")) as running:
        yield running
