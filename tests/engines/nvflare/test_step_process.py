"""The process that reads rows: one step's memory costs that step only, and a killed one is started again."""

import hashlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
from loopback import Loopback, synthetic, write_site

from medfed.canonical import canonical_json
from medfed.engines.nvflare import step_processes
from medfed.engines.nvflare.channel import coordinator_sealer
from medfed.engines.nvflare.envelope import Message, Sealer
from medfed.engines.nvflare.frames import CHUNK, parse
from medfed.engines.nvflare.site_service import SiteService
from medfed.engines.nvflare.wire import call_blob, call_content
from medfed.federation.call import Call, Own

SITES = ("north", "south")
STUDY = synthetic(SITES, name="echoes", method={"use": "medfed-test-plugin:medfed_test_plugin.echo.Echo"})


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Loopback:
    folder = tmp_path_factory.mktemp("steps")
    for index, name in enumerate(SITES):
        write_site(folder, name, 300, seed=index)
        path = folder / "sites" / name / "policy.yaml"
        text = path.read_text().replace("sum: 1.0", "sum: 100000.0")
        text = text.replace("  medfed: {}\n", "  medfed: {}\n  medfed-test-plugin: {}\n")
        path.write_text(
            text.replace('"medfed:medfed.evaluation.*"', '"medfed:medfed.evaluation.*", "medfed-test-plugin:*"')
        )
    net = Loopback(folder, SITES, [STUDY])
    net.set_up()
    return net


@pytest.fixture
def service(network: Loopback, monkeypatch: pytest.MonkeyPatch) -> Iterator[SiteService]:
    monkeypatch.setenv("MEDFED_STEP_MEMORY_GB", "4")
    starter = step_processes.Starter()
    monkeypatch.setattr(step_processes, "STARTER", starter)
    threading.Thread(target=starter.serve, daemon=True).start()
    found = SiteService(network.folder / "sites" / "north")
    yield found
    for steps in found.steps.values():
        steps.end()


@pytest.fixture
def sealer(network: Loopback) -> Sealer:
    return coordinator_sealer(network.network.keys, network.network.identity())


def asked(service: SiteService, sealer: Sealer, step: str, round_: int, **inputs: Any) -> dict[str, Any]:
    """The content of the site's reply, once it is no longer working."""
    call = Call(
        STUDY.hash, "run", round_, f"medfed-test-plugin:medfed_test_plugin.echo.{step}", 0, "train", SITES, inputs
    )
    content = call_content(call) | {"kept": None, "settled": None, "wait": 5.0}
    while True:
        blob = call_blob(call, Own())
        text, _ = service.handle(canonical_json(sealer.write(Message("call", content, blob), "north")), blob)
        reply: dict[str, Any] = parse(text)["content"]
        if reply["state"] != "working":
            return reply


def test_a_step_that_takes_all_memory_costs_that_step_only(service: SiteService, sealer: Sealer) -> None:
    model = np.random.default_rng(1).random(1_280)
    assert asked(service, sealer, "echo_10kb", 1, model=model)["state"] == "answer"
    failed = asked(service, sealer, "all_memory", 2)
    assert (failed["state"], failed["kind"]) == ("failure", "failed")
    assert "MemoryError" not in failed["reason"]
    assert asked(service, sealer, "echo_10kb", 3, model=model)["state"] == "answer"


def test_a_killed_step_process_is_started_again_and_gives_the_sealed_bytes(
    service: SiteService, sealer: Sealer
) -> None:
    model = np.random.default_rng(2).random(1_280)
    first = asked(service, sealer, "echo_10kb", 11, model=model)
    process = next(iter(service.steps.values())).process
    assert process is not None
    psutil.Process(process.pid).kill()
    time.sleep(0.2)
    again = asked(service, sealer, "echo_10kb", 11, model=model)
    assert again == first
    after = next(iter(service.steps.values())).process
    assert after is not None
    assert after.pid != process.pid


def test_large_inputs_come_in_parts_and_a_broken_transfer_goes_on(service: SiteService, sealer: Sealer) -> None:
    def say(kind: str, content: dict[str, Any], blob: bytes = b"") -> dict[str, Any]:
        text, _ = service.handle(canonical_json(sealer.write(Message(kind, content, blob), "north")), blob)
        found: dict[str, Any] = parse(text)["content"]
        return found

    model = np.random.default_rng(3).random(1_310_720)
    call = Call(
        STUDY.hash,
        "run",
        21,
        "medfed-test-plugin:medfed_test_plugin.echo.echo_10mb",
        0,
        "train",
        SITES,
        {"model": model},
    )
    blob = call_blob(call, Own())
    whole = {"whole": hashlib.sha256(blob).hexdigest(), "size": len(blob)}
    assert say("have", whole)["parts"] == []
    assert say("part", whole | {"index": 1}, blob[CHUNK : 2 * CHUNK])["state"] == "kept"
    asked_too_early = say(
        "call", call_content(call) | {"kept": None, "settled": None, "wait": 8.0, "whole": whole["whole"]}
    )
    assert asked_too_early["state"] == "failure"
    assert say("have", whole)["parts"] == [1], "what came before the line broke is not sent again"
    for index in (0, 2):
        assert say("part", whole | {"index": index}, blob[index * CHUNK : (index + 1) * CHUNK]) == {"state": "kept"}
    reply = say("call", call_content(call) | {"kept": None, "settled": None, "wait": 10.0, "whole": whole["whole"]})
    while reply["state"] == "working":
        reply = say("call", call_content(call) | {"kept": None, "settled": None, "wait": 10.0, "whole": whole["whole"]})
    assert reply["state"] == "answer", reply
    text, data = service.handle(
        canonical_json(sealer.write(Message("fetch", {"payload": reply["payload"], "index": 0}), "north")), b""
    )
    assert parse(text)["content"]["state"] == "part"
    assert len(data) == CHUNK
