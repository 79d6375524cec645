"""Preflight against real sockets, TLS and processes: what stands in the way is named, each time with its own remedy."""

import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from medfed.cli.main import app
from medfed.data.build import build_table
from medfed.data.site_folder import SiteFolder, load_site, write_pseudonym_key
from medfed.engines.nvflare.certificates import Pair, Root, make_root
from medfed.engines.nvflare.consortium import now
from medfed.engines.nvflare.envelope import COORDINATOR, Message, Sealer
from medfed.engines.nvflare.finding import Finding, Limits
from medfed.engines.nvflare.frames import BadMessage
from medfed.engines.nvflare.join import SiteNetwork, join
from medfed.engines.nvflare.kit import Kit
from medfed.engines.nvflare.preflight import preflight
from medfed.engines.nvflare.preflight_certificates import check_dates, load_certificate
from medfed.engines.nvflare.preflight_network import Line, look_at_the_way
from medfed.engines.nvflare.preflight_service import check_clock, check_heard, check_service, read_state
from medfed.engines.nvflare.preflight_site import (
    check_disk,
    check_mapping,
    check_package,
    check_permissions,
    check_policy,
)
from medfed.engines.nvflare.preflight_step import check_step
from medfed.engines.nvflare.processes import ServiceLock
from medfed.engines.nvflare.site_service import SiteService
from medfed.evaluation.study_run import step_names
from medfed.federation.keys import new_signing_key, public_hex, write_signing_key
from medfed.federation.ledger import append_event, open_store
from medfed.federation.policy import POLICY_TEMPLATE
from medfed.language import translator
from medfed.study import Study, study_from_dict

QUICK = Limits(patience=0.5, disk_least=1, disk_wanted=2)
GATEWAY = "Example Hospital Web Gateway"
COORDINATOR_KEY = new_signing_key()

SITE_YAML = """\
site: clinic
sources: {export: {path: data/export.csv}}
patient: {source: export, column: patient}
mapping:
  event: {column: event, codes: {"0": "no", "1": "yes"}}
  age: {column: age, unit: year}
"""
STUDY: dict[str, Any] = {
    "medfed": 1, "name": "example", "title": "An example", "question": "Who has the event?",
    "variables": {
        "event": {"meaning": "Event", "type": "code", "role": "outcome", "codes": {"no": "No", "yes": "Yes"}, "event": "yes"},
        "age": {"meaning": "Age", "type": "number", "role": "covariate", "unit": "year", "range": [0, 120]},
    },
    "task": {"kind": "risk_prediction"}, "method": {"use": "medfed:medfed.methods.newton.Newton"},
    "sites": {"invited": ["clinic", "other"], "minimum": 1},
}  # fmt: skip


# -- certificates, made once -----------------------------------------------------------------------------------------


class Authority:
    """A root and what it issues. Files lie in ``folder``."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.pair = make_root(name)
        self.pair.write(folder, "root")
        self.root = Root.load(folder)

    def server(self, host: str = "localhost", days: float = 365) -> tuple[Path, Path]:
        return self.files(self.root.issue(host, days=days, host=host), f"{host}-{days:g}".replace("*", "any"))

    def files(self, pair: Pair, name: str) -> tuple[Path, Path]:
        if not (self.folder / f"{name}.crt").exists():
            pair.write(self.folder, name)
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours") / "ca", "north-sea")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("gateway") / "ca", GATEWAY)


@pytest.fixture(scope="module")
def certificate(ours: Authority) -> Pair:
    return ours.root.issue("clinic", days=365)


@pytest.fixture(scope="module")
def server_files(ours: Authority) -> tuple[Path, Path]:
    return ours.server()


# -- servers ---------------------------------------------------------------------------------------------------------


class Server:
    """A listening TCP server on loopback; ``answer`` says what it does with a connection."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.kept: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        self.kept.append(connection)
        with contextlib.suppress(OSError):
            self.answer(connection)

    def close(self) -> None:
        self.listener.close()
        for connection in self.kept:
            connection.close()


def tls(files: tuple[Path, Path], clients: Path | None = None, *, alpn: str = "", most: Any = None) -> Any:
    """TLS as NVFLARE's server does it; clients: the root that their certificates must come from."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    if clients is not None:
        context.load_verify_locations(clients)
        context.verify_mode = ssl.CERT_REQUIRED
    if alpn:
        context.set_alpn_protocols([alpn])
    if most is not None:
        context.maximum_version = most

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tunnel:
            tunnel.recv(1)

    return answer


def says_nothing(connection: socket.socket) -> None:
    connection.recv(10_000)
    time.sleep(10)


def speaks_http(connection: socket.socket) -> None:
    connection.recv(10_000)
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://sign-in.example\r\n\r\n")
    connection.close()


def hangs_up(connection: socket.socket) -> None:
    connection.recv(1)
    connection.close()


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[Server] = []

    def start(answer: Any) -> int:
        servers.append(Server(answer))
        return servers[-1].port

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def line(tmp_path: Path, ours: Authority, certificate: Pair) -> Line:
    """To localhost, with the consortium's root and the site's own certificate; the port is to be filled in."""
    certificate.write(tmp_path, "client")
    return Line("localhost", 1, "tcp", ours.folder / "root.crt", (tmp_path / "client.crt", tmp_path / "client.key"))


def seen(line: Line, limits: Limits = QUICK) -> dict[str, Finding]:
    return {found.name: found for found in look_at_the_way(line, limits)}


def only_failure(found: dict[str, Finding]) -> Finding:
    """The one that failed: a sentence and a remedy, in both languages; what it stands in the way of is skipped."""
    failed = [finding for finding in found.values() if finding.state == "failed"]
    assert len(failed) == 1, {name: finding.state for name, finding in found.items()}
    assert_is_told(failed[0])
    return failed[0]


def assert_is_told(finding: Finding) -> None:
    english, chinese = finding.sentence(), finding.sentence(translator("zh"))
    remedy = finding.advice(), finding.advice(translator("zh"))
    assert english
    assert all(remedy), finding
    assert remedy[0] != remedy[1]
    assert "{" not in english + chinese + "".join(remedy)
    assert chinese != english or finding.what == "{problem}"


# -- the way to the coordinator --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["tcp", "grpc", "http"])
def test_a_coordinator_over_mutual_tls_is_accepted_and_accepts(serve, line, ours, server_files, scheme):
    alpn = "h2" if scheme == "grpc" else ""
    port = serve(tls(server_files, ours.folder / "root.crt", alpn=alpn))
    found = seen(replace(line, port=port, scheme=scheme))
    assert [(name, finding.state) for name, finding in found.items() if name != "port"] == [
        ("name", "ok"), ("tls", "ok"), ("chain", "ok"), ("host-name", "ok"), ("accepted", "ok"),
    ]  # fmt: skip
    assert found["port"].state in ("ok", "warning")  # localhost may have an IPv6 address that nobody listens at
    assert "127.0.0.1" in found["name"].sentence()


def test_tls_1_2_is_judged_as_well(serve, line, ours, server_files):
    port = serve(tls(server_files, ours.folder / "root.crt", most=ssl.TLSVersion.TLSv1_2))
    found = seen(replace(line, port=port))
    assert all(finding.state == "ok" for finding in found.values())
    assert "TLSv1.2" in found["tls"].sentence()


@pytest.mark.parametrize("most", [ssl.TLSVersion.TLSv1_2, None])
def test_a_tls_inspecting_proxy_is_recognised_and_named(serve, line, gateway, most):
    port = serve(tls(gateway.server(), most=most))
    failure = only_failure(seen(replace(line, port=port)))
    assert failure.name == "chain"
    assert failure.sentence() == (
        f"TLS is inspected on the way: the certificate for localhost was issued by {GATEWAY}, "
        "not by the consortium's root."
    )
    assert f"exempt localhost (127.0.0.1), port {port}, from TLS inspection by {GATEWAY}" in failure.advice()


def test_a_proxy_that_forges_for_the_address_is_recognised_too(serve, line, gateway):
    port = serve(tls(gateway.server("127.0.0.1")))
    assert "TLS is inspected on the way" in only_failure(seen(replace(line, port=port))).sentence()


def test_another_server_with_a_foreign_certificate_is_named(serve, line, gateway):
    port = serve(tls(gateway.server("login.example.org")))
    failure = only_failure(seen(replace(line, port=port)))
    assert "Another server answers for localhost: login.example.org" in failure.sentence()
    assert GATEWAY in failure.sentence()


def test_a_consortium_that_was_set_up_anew_is_told_from_a_proxy(serve, line, tmp_path):
    again = Authority(tmp_path / "again", "north-sea")
    failure = only_failure(seen(replace(line, port=serve(tls(again.server(), again.folder / "root.crt")))))
    assert "another root of the name north-sea" in failure.sentence()


def test_what_a_foreign_certificate_says_is_held_to_one_short_line(serve, line, tmp_path):
    shouting = Authority(tmp_path / "shouting", "Gateway\n\x1b[31m" + "x" * 40)
    sentence = only_failure(seen(replace(line, port=serve(tls(shouting.server()))))).sentence()
    assert "\x1b" not in sentence
    assert "\n" not in sentence


def test_a_certificate_for_another_host_is_told(serve, line, ours):
    port = serve(tls(ours.server("elsewhere.example.org"), ours.folder / "root.crt"))
    failure = only_failure(seen(replace(line, port=port)))
    assert failure.name == "host-name"
    assert failure.sentence() == "The coordinator's certificate is for elsewhere.example.org, not for localhost."


def test_an_ended_server_certificate_is_the_one_failure_and_its_chain_is_not(serve, line, ours):
    port = serve(tls(ours.server(days=0.001), ours.folder / "root.crt"))
    way = look_at_the_way(replace(line, port=port), QUICK)
    found, shown = {}, None
    while True:
        try:
            finding = next(way)
        except StopIteration as end:
            shown = end.value
            break
        found[finding.name] = finding
    assert found["chain"].state == "ok"
    assert found["accepted"].state == "skipped"
    dates = check_dates("server", shown, QUICK)
    assert dates.state == "failed"
    assert "start its service again, which renews" in dates.advice()


@pytest.mark.parametrize("most", [ssl.TLSVersion.TLSv1_2, None])
def test_a_site_certificate_of_another_root_is_not_accepted(serve, line, ours, server_files, gateway, most):
    strangers = gateway.files(gateway.root.issue("clinic", days=30), "clinic")
    port = serve(tls(server_files, ours.folder / "root.crt", most=most))
    failure = only_failure(seen(replace(line, port=port, pair=strangers)))
    assert failure.name == ("tls" if most else "accepted")
    assert "new kit" in failure.advice()


def test_an_ended_site_certificate_is_not_accepted(serve, line, ours, server_files):
    ended = ours.files(ours.root.issue("clinic", days=0.001), "clinic-ended")
    port = serve(tls(server_files, ours.folder / "root.crt"))
    failure = only_failure(seen(replace(line, port=port, pair=ended)))
    assert failure.name == "accepted"
    assert "expired" in failure.sentence()


def test_a_refused_a_silent_and_an_unreachable_port_have_remedies_of_their_own(line):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        refused = int(listener.getsockname()[1])
    with socket.socket() as full:  # its queue is full, so that further connections are dropped, as a firewall does
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        dropped = seen(replace(line, port=int(full.getsockname()[1])))
        for each in waiting:
            each.close()
    told = [
        only_failure(found)
        for found in (
            seen(replace(line, port=refused)),
            dropped,
            seen(replace(line, host="255.255.255.255", port=refused)),
        )
    ]
    assert [failure.name for failure in told] == ["port"] * 3
    assert "refuses connections" in told[0].sentence()
    assert "a firewall drops the connection" in told[1].sentence()
    assert "no route" in told[2].sentence()
    assert len({failure.remedy for failure in told}) == 3


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 70 + ".example"])
def test_an_unknown_name_is_told_in_time(line, host):
    begun = time.monotonic()
    assert only_failure(seen(replace(line, host=host))).name == "name"
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (says_nothing, "takes the connection at port {port} and then says nothing"),
        (speaks_http, "does not speak TLS"),
        (hangs_up, "is cut as soon as TLS begins"),
    ],
)
def test_what_is_no_tls_server_is_told_apart(serve, line, answer, sentence):
    port = serve(answer)
    failure = only_failure(seen(replace(line, port=port)))
    assert failure.name == "tls"
    assert sentence.format(port=port) in failure.sentence()


def test_certificates_that_end_soon_are_a_warning_and_short_ones_are_not_always(ours, server_files):
    shown = load_certificate(server_files[0])
    assert shown is not None
    for days, state in ((0, "ok"), (345, "ok"), (352, "warning"), (366, "failed"), (-1, "failed")):
        at = time.time() + days * 86400
        finding = check_dates("own", shown, replace(QUICK, clock=lambda at=at: at))
        assert finding.state == state, days
        if state != "ok":
            assert_is_told(finding)
    short = ours.root.issue("short", days=2)
    (ours.folder / "short.pem").write_bytes(short.certificate)
    assert check_dates("own", load_certificate(ours.folder / "short.pem"), QUICK).state == "ok"


# -- a site's folder -------------------------------------------------------------------------------------------------


def make_site(folder: Path, ours: Authority, certificate: Pair, *, port: int = 1, scheme: str = "tcp") -> SiteFolder:
    """A site that has joined, with sixty patients."""
    folder.mkdir(mode=0o700)
    (folder / "site.yaml").write_text(SITE_YAML)
    (folder / "policy.yaml").write_text(POLICY_TEMPLATE)
    (folder / "data").mkdir()
    rows = [f"P{index},{index % 2},{30 + index}" for index in range(60)]
    (folder / "data" / "export.csv").write_text("\n".join(["patient,event,age", *rows]) + "\n")
    write_signing_key(folder / "keys")
    write_pseudonym_key(folder)
    site = load_site(folder)
    kit = Kit(
        consortium="c0ffee", name="north-sea", site="clinic", host="localhost", port=port, scheme=scheme,
        coordinator_key=public_hex(COORDINATOR_KEY), root=ours.pair.certificate.decode(),
        certificate=certificate.certificate.decode(), key=certificate.key.decode(), enrolment="ab" * 32,
    )  # fmt: skip
    join(site, kit)
    return site


@pytest.fixture
def site(tmp_path: Path, ours: Authority, certificate: Pair) -> SiteFolder:
    return make_site(tmp_path / "clinic", ours, certificate)


@pytest.fixture
def study() -> Study:
    return study_from_dict(STUDY)


def all_but_the_step(site: SiteFolder) -> dict[str, Finding]:
    """Every finding but that of the test step, which comes last and takes long."""
    found: dict[str, Finding] = {}
    for finding in preflight(site.folder, limits=QUICK):
        found[finding.name] = finding
        if finding.name == "clock":
            break
    return found


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# The command, in a process of its own, since an audit hook stays for good.
WATCHED_COMMAND = """
import json, sys
watched = []
def watch(event, arguments):
    if event in ("socket.bind", "socket.connect"):
        watched.append([event, *arguments[1]])
sys.addaudithook(watch)
from medfed.cli.main import app
try:
    app(["site", "preflight", *sys.argv[1:]])
finally:
    print(json.dumps(watched), file=sys.stderr)
"""


def test_a_ready_site_passes_connects_to_its_coordinator_only_and_is_left_as_it_was(
    serve, tmp_path, ours, certificate, server_files, study
):
    port = serve(tls(server_files, ours.folder / "root.crt"))
    site = make_site(tmp_path / "clinic", ours, certificate, port=port)
    build_table(site, study)
    with closing(open_store(site.ledger_path, "call")) as db:
        append_event(db, "clinic", "note", "x", b"x", at=now())
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    before = contents(site.folder)
    command = [sys.executable, "-c", WATCHED_COMMAND, site.folder, "--study", tmp_path / "study.yaml"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert contents(site.folder) == before
    assert {tuple(each) for each in json.loads(shown.stderr)} == {("socket.connect", "127.0.0.1", port)}
    assert shown.returncode == 0, shown.stdout
    lines = [line for line in shown.stdout.splitlines() if not line.startswith(" ")]
    states = {line.partition(":")[0][8:]: line.split()[0] for line in lines[:-1]}
    assert states.pop("Site's service") == "warning"  # not started yet
    assert states.pop("Disk space") in ("ok", "warning")
    assert states.pop("Clock") in ("ok", "warning")  # what the kernel of this machine says
    assert (states.pop("Installed medfed"), states.pop("Heard from the coordinator")) == ("skipped", "skipped")
    assert set(states.values()) == {"ok"}, shown.stdout
    assert len(states) == 17
    assert "read the table for example" in shown.stdout
    assert lines[-1] == "No check failed."


def test_every_failure_of_a_neglected_folder_is_told_at_once_in_either_language(site):
    (site.folder / "policy.yaml").write_text("packages: {medfed: {version: 0.0.1}}\n")
    os.chmod(site.folder / "keys" / "pseudonym.key", 0o644)
    SiteNetwork(site).halt("a colleague's laptop was stolen")
    shutil.rmtree(site.folder / "data")
    with closing(open_store(site.ledger_path, "call")) as db:
        append_event(db, "clinic", "note", "x", b"x", at=now())
        db.execute("update ledger set payload='forged'")
    shown = CliRunner().invoke(app, ["site", "preflight", str(site.folder), "--json", "--lang", "zh"])
    told = json.loads(shown.stdout)
    assert (shown.exit_code, told["ready"]) == (1, False)
    found = {finding["name"]: finding for finding in told["findings"]}
    failed = {name for name, finding in found.items() if finding["state"] == "failed"}
    assert failed - {"disk"} == {"permissions", "keys", "policy", "mapping", "ledger", "halted", "port"}
    assert all(re.search("[\u4e00-\u9fff]", found[name]["remedy"]) for name in failed)
    assert "a colleague's laptop was stolen" in found["halted"]["what"]
    assert "chmod -R go-rwx" in found["permissions"]["remedy"]
    assert "拒绝" in found["port"]["what"]
    assert found["step"]["state"] == "ok"  # on invented rows


def test_a_folder_that_has_joined_nothing_is_told_what_comes_first(tmp_path):
    folder = tmp_path / "clinic"
    CliRunner().invoke(app, ["site", "init", str(folder), "--name", "clinic"])
    found = all_but_the_step(load_site(folder))
    assert_is_told(found["joined"])
    assert found["joined"].state == "failed"
    assert {found[name].state for name in ("name", "port", "tls", "chain", "certificate-own")} == {"skipped"}
    (folder / "site.yaml").write_text("site: clinic\n")
    broken = list(preflight(folder))
    assert [(finding.name, finding.state) for finding in broken] == [("mapping", "failed")]


def test_open_sockets_and_keys_are_told(site):
    network = SiteNetwork(site)
    network.run.mkdir(mode=0o700)
    (network.run / "door").touch(mode=0o666)
    os.chmod(network.run / "door", 0o666)
    os.chmod(site.folder / "network" / "nvflare" / "startup" / "client.key", 0o640)
    finding = check_permissions(network)
    assert finding.state == "failed"
    assert "2 private files or folders" in finding.sentence()
    os.chmod(network.run / "door", 0o600)
    os.chmod(site.folder / "network" / "nvflare" / "startup" / "client.key", 0o600)
    assert check_permissions(network).state == "ok"
    os.chmod(site.folder, 0o755)
    finding = check_permissions(network)
    assert (finding.state, finding.advice()) == ("warning", f"Run: chmod o-rwx {site.folder}")


def test_disk_space_has_a_least_and_a_wanted(site):
    network = SiteNetwork(site)
    assert check_disk(network, Limits(disk_least=1, disk_wanted=1)).state == "ok"
    assert check_disk(network, Limits(disk_least=1, disk_wanted=2**62)).state == "warning"
    full = check_disk(network, Limits(disk_least=2**62, disk_wanted=2**62))
    assert full.state == "failed"
    assert_is_told(full)


def test_policies_that_stand_in_the_way_of_a_study_are_told(site, study):
    assert check_policy(site, study, step_names).state == "ok"
    for policy, sentence in (
        ("packages: {medfed: {version: 0.0.1}}\n", "pins another version or other files of medfed"),
        ("steps: ['medfed:medfed.evaluation.*']\n", "does not allow"),
        ("minimum_cell: few\n", "minimum_cell"),
    ):
        (site.folder / "policy.yaml").write_text(policy)
        finding = check_policy(site, study, step_names)
        assert (finding.state, sentence in finding.sentence()) == ("failed", True), finding.sentence()
        assert_is_told(finding)


def test_a_mapping_that_does_not_fit_a_study_is_told(site, study):
    other = study.model_copy(update={"sites": study.sites.model_copy(update={"invited": ("a", "b")})})
    assert "does not invite the site clinic" in check_mapping(site, other).sentence()
    assert check_mapping(site, study).state == "warning"  # not built yet
    build_table(site, study)
    assert check_mapping(site, study).state == "ok"
    export = site.folder / "data" / "export.csv"
    export.write_text(export.read_text() + "P999,1,44\n")
    newer = check_mapping(site, study)
    assert (newer.state, "has changed" in newer.sentence()) == ("warning", True)
    export.write_text(export.read_text().replace("P999,1,44", "P999,1,old"))
    wrong = check_mapping(site, study)
    assert (wrong.state, "not a number" in wrong.sentence() or "not numbers" in wrong.sentence()) == ("failed", True)
    assert_is_told(wrong)


# -- the test step ---------------------------------------------------------------------------------------------------


def test_a_step_process_that_has_no_memory_is_told(site, monkeypatch):
    monkeypatch.setenv("MEDFED_STEP_MEMORY_GB", "0.02")
    finding = check_step(site, None, QUICK)
    assert finding.state == "failed"
    assert_is_told(finding)


def test_the_gate_of_the_site_judges_the_test_step(site, study):
    (site.folder / "policy.yaml").write_text("minimum_patients: 1000\n")
    build_table(site, study)
    finding = check_step(site, study, QUICK)
    assert finding.state == "warning"
    assert "fewer patients in this study than may be seen" in finding.sentence()
    assert "患者" in finding.sentence(translator("zh"))


def test_the_test_step_is_none_that_a_coordinator_can_ask_for(study):
    from medfed.engines.nvflare.preflight_step import give_back
    from medfed.federation.packages import step_name
    from medfed.federation.policy import Policy

    assert not Policy().allows_step(step_name(give_back))
    assert step_name(give_back) not in step_names(study)


# -- the running service ---------------------------------------------------------------------------------------------


@pytest.fixture
def service(site: SiteFolder) -> Iterator[SiteService]:
    """The real service, without NVFLARE: it holds its lock, answers messages and writes its state."""
    lock = ServiceLock(SiteNetwork(site).run)
    lock.take()
    yield SiteService(site.folder)
    assert lock._handle is not None
    os.close(lock._handle)


def ping(service: SiteService, *, clock: float = 0.0, **content: str) -> None:
    """A coordinator's ping, by a clock that is so many seconds ahead of the site's."""
    sealer = Sealer("c0ffee", COORDINATOR, COORDINATOR_KEY, clock=lambda: time.time() + clock)
    with contextlib.suppress(BadMessage):
        service.handle(json.dumps(sealer.write(Message("ping", content), "clinic")), b"")
    service._write_state()


@pytest.mark.parametrize(
    ("apart", "state", "word"),
    [(0.0, "ok", "differ by 0"), (-100.0, "warning", "100 seconds ahead"), (1200.0, "failed", "1200 seconds behind")],
)
def test_clocks_are_compared_with_the_coordinators_signed_messages(service, apart, state, word):
    ping(service, clock=apart)
    finding = check_clock(read_state(service.network), (), QUICK)
    assert (finding.state, word in finding.sentence()) == (state, True), finding.sentence()
    if state != "ok":
        assert_is_told(finding)


def test_a_clock_before_a_certificates_start_is_known_to_be_behind_without_a_service(site, server_files):
    shown = load_certificate(server_files[0])
    finding = check_clock({}, (shown, None), replace(QUICK, clock=lambda: time.time() - 86400))
    assert finding.state == "failed"
    assert_is_told(finding)
    assert check_clock({}, (shown, None), QUICK).state in ("ok", "warning")


def test_versions_and_files_are_compared_with_the_coordinators(service):
    state = read_state(service.network)
    assert check_package({}, state).state == "skipped"
    own = service.package
    for coordinator, expected in (
        ({"medfed": own.version, "package": own.sha256}, "ok"),
        ({"medfed": "9.9", "package": own.sha256}, "failed"),
        ({"medfed": own.version, "package": "0" * 64}, "failed"),
    ):
        ping(service, **coordinator)
        state = read_state(service.network)
        finding = check_package(state["coordinator"], state)
        assert finding.state == expected
        if expected == "failed":
            assert_is_told(finding)
    changed = check_package({}, {"package": "0" * 64})
    assert (changed.state, "since the site's service started" in changed.sentence()) == ("failed", True)


def test_a_service_that_runs_hangs_or_hears_nothing_is_told(service):
    network, later = service.network, replace(QUICK, clock=lambda: time.time() + 100)
    ping(service)
    state = read_state(network)
    assert check_service(network, state, QUICK).state == "ok"
    assert check_heard(network, state, QUICK).state == "ok"
    hung, silent = check_service(network, state, later), check_heard(network, state, later)
    assert (hung.state, silent.state) == ("failed", "failed")
    assert "stopped or hangs" in hung.sentence()
    never = check_heard(network, {"heard": 0.0}, later)
    assert (never.state, check_heard(network, {"heard": 0.0}, QUICK).state) == ("failed", "warning")
    for finding in (hung, silent, never):
        assert_is_told(finding)
    network.halt("")
    assert (check_service(network, state, later).state, check_heard(network, state, later).state) == ("ok", "skipped")
