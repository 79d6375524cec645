"""What the coordinator's NVFLARE may have a site's NVFLARE do: the dispatcher job, and nothing else.

NVFLARE trusts its server with much: shell commands, other logging, jobs with code. A site's authorization file can't take
that back, since the server says who asks (a role "super" may do all, everywhere) and whether the site is to look at its
file at all. So a site answers the few requests that the dispatcher job needs, holds what is deployed to that job's very
files, and says nothing of itself when something goes wrong.
"""

import io
import json
import logging
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.lighter.tool_consts import NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE
from nvflare.private.admin_defs import Message, MsgHeader, ReturnCode, error_reply
from nvflare.private.defs import ERROR_MSG_PREFIX, RequestHeader, TrainingTopic
from nvflare.private.fed.client.admin import RequestProcessor
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

from medfed.engines.nvflare.guard import TOKEN, TOKEN_FILE
from medfed.engines.nvflare.wire import one_line
from medfed.engines.nvflare.workspace import APP

NEEDED = frozenset(
    {
        TrainingTopic.CHECK_RESOURCE, TrainingTopic.CANCEL_RESOURCE, TrainingTopic.DEPLOY, TrainingTopic.START_JOB,
        TrainingTopic.ABORT, TrainingTopic.CHECK_STATUS, TrainingTopic.NOTIFY_JOB_STATUS,
    }
)  # fmt: skip
REFUSED = "this site does not do that"
NOT_OUR_JOB = "this site runs the dispatcher job of medfed and no other"
WENT_WRONG = "the site could not do that; its own log says why"

log = logging.getLogger("medfed.guard")

_JOB = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_AT_MOST = 64 * 1024
_SIGNED = (
    NVFLARE_SIG_FILE,
    NVFLARE_SUBMITTER_CRT_FILE,
)  # who submitted it; read by NVFLARE only, and given no weight here


def is_our_app(data: object) -> bool:
    """Whether a zipped app is the dispatcher job's, file for file: no code, no other class, no other setting."""
    if not isinstance(data, bytes) or len(data) > _AT_MOST:
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = [entry for entry in archive.infolist() if not entry.filename.endswith("/")]
            folders = {entry.filename.rpartition("/")[0] for entry in archive.infolist()}
            if sum(entry.file_size for entry in files) > _AT_MOST or not folders <= {"", "config"}:
                return False
            names = [entry.filename for entry in files]
            found = {name: json.loads(archive.read(name)) for name in names if name.rpartition("/")[2] not in _SIGNED}
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError, NotImplementedError, RecursionError, EOFError):
        return False
    return len(set(names)) == len(names) and found == dict(APP)


def _is_plain(meta: object) -> bool:
    """Whether a job's description asks for nothing: no container, no resources, no scope or study of NVFLARE's, no other role."""
    if not isinstance(meta, Mapping):
        return False
    wanted = ("resource_spec", "launcher_spec", "scope", "study", "custom_props")
    return meta.get("submitter_role") in (None, "project_admin") and all(
        meta.get(name) in (None, {}, "", "default") for name in wanted
    )


class _Held(RequestProcessor):
    """One of NVFLARE's processors, held to the dispatcher job."""

    def __init__(self, inner: RequestProcessor) -> None:
        self.inner = inner

    def get_topics(self) -> list[str]:
        return [topic for topic in self.inner.get_topics() if topic in NEEDED]

    def process(self, req: Message, app_ctx: Any) -> Message:
        job = req.get_header(RequestHeader.JOB_ID)
        if job is not None and not (isinstance(job, str) and (job == "" or _JOB.fullmatch(job))):
            return _refuse(REFUSED, "a job's name is none")  # it becomes a folder's
        if req.topic in (TrainingTopic.DEPLOY, TrainingTopic.START_JOB):
            if not job or not _is_plain(req.get_header(RequestHeader.JOB_META)):
                return _refuse(NOT_OUR_JOB, "its description asks for more")
            if req.topic == TrainingTopic.DEPLOY and not is_our_app(req.body):
                return _refuse(NOT_OUR_JOB, "its files are not those of the dispatcher job")
        try:
            reply = self.inner.process(req, app_ctx)
        except Exception:
            log.exception("%s went wrong", req.topic)
            return error_reply(WENT_WRONG)
        if reply is not None and reply.get_header(MsgHeader.RETURN_CODE) == ReturnCode.ERROR:
            return _refuse(WENT_WRONG, str(reply.body))
        if reply is not None and isinstance(reply.body, str) and reply.body.startswith(ERROR_MSG_PREFIX):
            log.warning("%s: %s", req.topic, reply.body)
            reply.body = f"{ERROR_MSG_PREFIX}: {WENT_WRONG}"
        return reply


def _refuse(said: str, why: str) -> Message:
    log.warning("refused what the coordinator's NVFLARE asked for: %s", one_line(why))
    return error_reply(said)


def hold(processors: list[RequestProcessor]) -> None:
    """Leave of a site's processors what is needed, in place."""
    processors[:] = [
        processor if isinstance(processor, _Held) else _Held(processor)
        for processor in processors
        if NEEDED.intersection(processor.get_topics())
    ]


class SiteGuard(FLComponent):
    """In a site's parent process, made before it speaks with anybody."""

    def __init__(self) -> None:
        super().__init__()
        hold(ClientRequestProcessors.request_processors)


class RegistrationToken(FLComponent):
    """In a site's parent process: shows the token that the site's service has written."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            text = (Path(os.environ["MEDFED_RUN"]) / TOKEN_FILE).read_text()
            fl_ctx.set_prop(TOKEN, text, private=False, sticky=True)
