"""A site runs the dispatcher job and nothing else, whatever the coordinator's server accepts, says or leaves unsaid."""

import io
import json
import os
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from joined import Joined
from network import Network, wait_for
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.private.admin_defs import Message, MsgHeader, ReturnCode, error_reply, ok_reply
from nvflare.private.defs import ERROR_MSG_PREFIX, RequestHeader, SysCommandTopic, TrainingTopic
from nvflare.private.fed.client.admin import RequestProcessor
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

from medfed.engines.nvflare.confine import landlock_version
from medfed.engines.nvflare.site_guard import NEEDED, NOT_OUR_JOB, REFUSED, WENT_WRONG, hold, is_our_app
from medfed.engines.nvflare.workspace import APP

JOB = "0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f"
META = {"name": "medfed", "resource_spec": {}, "study": "default", "submitter_role": "project_admin", "job_id": JOB}
CLIENT = "config/config_fed_client.json"


def zipped(files: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content if isinstance(content, str | bytes) else json.dumps(content))
    return buffer.getvalue()


def changed(path: str, value: Any) -> dict[str, Any]:
    """The app with one value of the client's configuration changed: "components.0.args.at"."""
    app = json.loads(json.dumps(dict(APP)))
    node = app[CLIENT]
    *way, last = path.split(".")
    for step in way:
        node = node[int(step)] if step.isdigit() else node[step]
    node[last] = value
    return app


# -- what the guard lets through -------------------------------------------------------------------------------------


def test_the_dispatcher_job_is_recognised_signed_or_not() -> None:
    assert is_our_app(zipped(dict(APP)))
    assert is_our_app(zipped({"config/": "", **APP, ".__nvfl_sig.json": "{}", "config/.__nvfl_submitter.crt": "x"}))


@pytest.mark.parametrize(
    "app",
    [
        {**APP, "custom/evil.py": ""}, {**APP, "custom/": ""}, {**APP, "evil.py": ""}, {**APP, "config/config_fed_client.conf": ""},
        {**APP, "config/config_fed_client.yml": ""}, {**APP, "config/log_config.json": {}}, {**APP, "../../evil": ""}, {**APP, "/etc/evil": ""},
        {**APP, "config/../custom/evil.py": ""}, {**APP, "config\\..\\evil": ""}, {CLIENT: APP[CLIENT]}, {}, {"config/x.json": {}},
        changed("components.0.path", "subprocess.Popen"), changed("components.0.args", {"at": "/run/docker.sock"}),
        changed("executors.0.executor.path", "nvflare.app_common.executors.in_process_client_api_executor.InProcessClientAPIExecutor"),
        changed("executors.0.executor.args", {"client_obj_id": "relay", "props": {}}), changed("task_data_filters", [{"x": 1}]),
        changed("components", []), changed("more", 1), {**APP, CLIENT: "not JSON"}, {**APP, CLIENT: "[" * 9999},
    ],
    ids=range(22),
)  # fmt: skip
def test_an_app_with_code_another_class_or_another_setting_is_not_ours(app: dict[str, Any]) -> None:
    assert not is_our_app(zipped(app))


def test_an_archive_that_is_none_or_a_bomb_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    good = zipped(dict(APP))
    buffer = io.BytesIO(zipped({CLIENT: "{}"}))
    with zipfile.ZipFile(buffer, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in APP.items():  # the right one last
            archive.writestr(name, json.dumps(content))
    for data in (b"", b"PK", good[:-30], buffer.getvalue(), b"x" * 100_000, None, "text", good + b"x" * 100_000):
        assert not is_our_app(data)
    bomb = zipped({**APP, CLIENT: b" " * 50_000_000})
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("the bomb was unpacked"))
    assert not is_our_app(bomb)


class Inner(RequestProcessor):
    """One of NVFLARE's processors, as a test sees it."""

    def __init__(self, topics: list[str], does: Callable[[], Message]) -> None:
        self.topics, self.does, self.asked = topics, does, 0

    def get_topics(self) -> list[str]:
        return self.topics

    def process(self, req: Message, app_ctx: Any) -> Message:
        self.asked += 1
        return self.does()


def held(topic: str, does: Callable[[], Message] = lambda: ok_reply(body="done")) -> tuple[Inner, Any]:
    inner = Inner([topic], does)
    processors: list[RequestProcessor] = [inner]
    hold(processors)
    return inner, processors[0]


def request(topic: str, body: Any = None, **headers: Any) -> Message:
    found = Message(topic, body)
    found.set_headers({RequestHeader.JOB_ID: JOB, RequestHeader.JOB_META: META} | headers)
    return found


def test_nothing_but_what_the_dispatcher_job_needs_is_answered() -> None:
    """Not with the role "super" either, and not when the server says that nobody need be asked: it isn't there."""
    before = list(ClientRequestProcessors.request_processors)
    kept = list(before)
    hold(kept)
    topics = {topic for processor in kept for topic in processor.get_topics()}
    assert topics == NEEDED
    for gone in (SysCommandTopic.SHELL, SysCommandTopic.CONFIGURE_SITE_LOG, SysCommandTopic.REPORT_ENV, SysCommandTopic.SYS_INFO,
                 TrainingTopic.DELETE_RUN, TrainingTopic.CONFIGURE_JOB_LOG, TrainingTopic.RESTART, TrainingTopic.SHUTDOWN):  # fmt: skip
        assert gone in {topic for processor in before for topic in processor.get_topics()}
        assert gone not in topics
    hold(kept)
    assert {topic for processor in kept for topic in processor.get_topics()} == NEEDED


@pytest.mark.parametrize("name", ["../../tables", "/etc", "..", "x", JOB + "/..", JOB.upper(), 7, ["x"], JOB + "\n"])
@pytest.mark.parametrize("topic", sorted(NEEDED))
def test_a_jobs_name_that_is_a_path_reaches_nothing(topic: str, name: Any) -> None:
    """NVFLARE removes the folder of that name before it deploys."""
    inner, processor = held(topic)
    reply = processor.process(request(topic, zipped(dict(APP)), **{RequestHeader.JOB_ID: name}), None)
    assert (reply.get_header(MsgHeader.RETURN_CODE), reply.body, inner.asked) == (ReturnCode.ERROR, REFUSED, 0)


@pytest.mark.parametrize("topic", [TrainingTopic.DEPLOY, TrainingTopic.START_JOB])
@pytest.mark.parametrize(
    "meta",
    [{"submitter_role": "super"}, {"submitter_role": "lead"}, {"launcher_spec": {"docker": {"image": "x"}}}, {"resource_spec": {"north": {"gpu": 1}}},
     {"scope": "x"}, {"study": "x"}, {"custom_props": {"x": 1}}],
    ids=str,
)  # fmt: skip
def test_a_job_that_asks_for_more_is_refused(topic: str, meta: dict[str, Any]) -> None:
    inner, processor = held(topic)
    asked = request(topic, zipped(dict(APP)), **{RequestHeader.JOB_META: META | meta})
    assert processor.process(asked, None).body == NOT_OUR_JOB
    for bad in (None, "x", []):
        assert processor.process(request(topic, zipped(dict(APP)), **{RequestHeader.JOB_META: bad}), None).body == NOT_OUR_JOB  # fmt: skip
    assert inner.asked == 0
    assert processor.process(request(topic, zipped(dict(APP))), None).body == "done"


def test_only_our_app_is_deployed() -> None:
    inner, processor = held(TrainingTopic.DEPLOY)
    assert (
        processor.process(request(TrainingTopic.DEPLOY, zipped({**APP, "custom/x.py": ""})), None).body == NOT_OUR_JOB
    )
    assert processor.process(request(TrainingTopic.DEPLOY, None), None).body == NOT_OUR_JOB
    assert inner.asked == 0


def test_what_goes_wrong_at_a_site_is_told_without_its_paths() -> None:
    words = "no such file: /srv/hospital/tables/secret"

    def raises() -> Message:
        raise OSError(words)

    for does in (raises, lambda: error_reply(words), lambda: Message("reply", f"{ERROR_MSG_PREFIX}: {words}")):
        _, processor = held(TrainingTopic.START_JOB, does)
        assert processor.process(request(TrainingTopic.START_JOB), None).body in (WENT_WRONG, f"{ERROR_MSG_PREFIX}: {WENT_WRONG}")  # fmt: skip


def test_a_sites_list_of_classes_holds_the_two_and_no_other(joined: Joined) -> None:
    """NVFLARE's own second wall, as the site's file sets it."""
    workspace = Workspace(str(joined.site_network("north").workspace), site_name="north")
    authorizer = ComponentPathAuthorizer()
    for path in (APP[CLIENT]["components"][0]["path"], APP[CLIENT]["executors"][0]["executor"]["path"]):
        authorizer.authorize_component_config({"path": path}, workspace=workspace)
    for path in ("subprocess.Popen", "medfed.engines.nvflare.relay.CoordinatorRelay", "medfed.engines.nvflare.site_service.SiteService",
                 "nvflare.app_common.executors.in_process_client_api_executor.InProcessClientAPIExecutor"):  # fmt: skip
        with pytest.raises(UnsafeComponentError):
            authorizer.authorize_component_config({"path": path}, workspace=workspace)


@pytest.mark.xdist_group("network")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="tests run in one process")
def test_tests_of_one_network_run_in_one_process(request: pytest.FixtureRequest) -> None:
    """They share what they bring up, and build on each other: a runner that forgets the groups must not pass unseen."""
    assert request.node.nodeid.endswith("@network")


# -- a real server that accepts everything ---------------------------------------------------------------------------

slow = [pytest.mark.slow, pytest.mark.xdist_group("network")]


@pytest.fixture(scope="module")
def credulous(network: Network) -> Iterator[Network]:
    """The coordinator's server is told to accept any class and any code from anybody, and is started again."""
    local = network.joined.coordinator.server / "local"
    kept = {name: (local / name).read_bytes() for name in ("resources.json", "authorization.json")}
    resources, rights = (json.loads(content) for content in kept.values())
    resources["class_allow_list"] = ["*"]
    rights["permissions"] = {role: "any" for role in rights["permissions"]}
    (local / "resources.json").write_text(json.dumps(resources))
    (local / "authorization.json").write_text(json.dumps(rights))
    restart_server(network)
    yield network
    for name, content in kept.items():
        (local / name).write_bytes(content)
    restart_server(network)


def restart_server(network: Network) -> None:
    for process in network.processes("server_train"):
        process.kill()
    time.sleep(3)
    network.wait_connected(["north", "south"])


def submitted(network: Network, role: str, app: dict[str, Any]) -> tuple[str, list[str]]:
    """A job with this app, submitted by a real session; how it ended and what each site said to it."""
    folder = network.folder / f"job-{time.monotonic_ns()}"
    shutil.copytree(network.joined.coordinator.job, folder)
    for name, content in app.items():
        path = folder / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with network.admin_session(role) as session:
        job = session.submit_job(str(folder))
        meta = wait_for(
            lambda: (m := session.get_job_meta(job)) and m.get("job_deploy_detail") and m, 60, "not deployed"
        )
        wait_for(lambda: not network.processes("worker_process", job), 30, "the job runs at a site")
        return job, list(meta["job_deploy_detail"])


@pytest.mark.parametrize("role", ["project_admin", "super"])
@pytest.mark.parametrize("what", ["code", "class"])
@pytest.mark.slow
@pytest.mark.xdist_group("network")
def test_the_sites_themselves_refuse_code_and_other_classes(credulous: Network, what: str, role: str) -> None:
    mark = credulous.folder / f"ran-{what}-{role}"
    if what == "code":
        app = changed("components", [*APP[CLIENT]["components"], {"id": "evil", "path": "evil.Evil", "args": {}}])
        app["custom/evil.py"] = f"open({str(mark)!r}, 'w').write('x')\n\n\nclass Evil:\n    pass\n"
    else:
        app = changed("components", [*APP[CLIENT]["components"], {"id": "evil", "path": "subprocess.Popen", "args": {"args": ["touch", str(mark)]}}])  # fmt: skip
    line = "refused what the coordinator's NVFLARE asked for: its files are not those of the dispatcher job"
    line = (
        line
        if role == "project_admin"
        else "refused what the coordinator's NVFLARE asked for: its description asks for more"
    )
    before = credulous.log("north").count(line)
    job, said = submitted(credulous, role, app)
    assert "server: OK" in said  # it was told to accept it
    assert {f"north: {NOT_OUR_JOB}", f"south: {NOT_OUR_JOB}"} <= set(said)
    assert not mark.exists()
    for name in ("north", "south"):
        assert list(credulous.joined.site_network(name).workspace.glob(f"{job}*")) == []
    assert credulous.log("north").count(line) > before


@pytest.mark.slow
@pytest.mark.xdist_group("network")
def test_no_session_reads_or_changes_anything_at_a_site(credulous: Network) -> None:
    with credulous.admin_session("super") as session:
        told = [
            session.ls_target("north", "-la", "startup"), session.cat_target("north", "", "log.txt"), session.get_working_directory("north"),
            *session.get_client_env(["north"]), session.grep_target("north", "", "x", "log.txt"), session.tail_target("north", "", "log.txt"),
        ]  # fmt: skip
        assert all("invalid_request" in str(answer) for answer in told), told
        assert str(credulous.folder) not in str(told)


@pytest.mark.slow
@pytest.mark.xdist_group("network")
@pytest.mark.skipif(landlock_version() == 0, reason="this system has no Landlock")
def test_nvflares_processes_at_a_site_have_given_up_the_rest_of_the_machine(network: Network) -> None:
    network.wait_connected(["north"])
    for process in (*network.processes("client_train", "north"), *network.job_processes("north")):
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status
