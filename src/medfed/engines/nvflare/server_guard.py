"""The coordinator's NVFLARE server, held to the roster: nobody comes in, or stays, whom it does not have."""

import contextlib
import logging
import os
import socketserver
import ssl
import threading
import time
from pathlib import Path
from typing import Any

from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_exception import NotAuthenticated
from nvflare.fuel.f3.cellnet.defs import IdentityChallengeKey, MessageHeaderKey
from nvflare.fuel.f3.cellnet.defs import ReturnCode as CellReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.drivers.tcp_driver import TcpStreamServer
from nvflare.private.defs import (
    AUTH_CLIENT_NAME_FOR_SJ,
    CellChannel,
    CellChannelTopic,
    CellMessageHeaderKeys,
    ClientType,
)
from nvflare.private.fed.server.client_manager import ClientManager
from nvflare.private.fed.server.fed_server import FederatedServer

from medfed.engines.nvflare.certificates import ADMIN, fingerprint
from medfed.engines.nvflare.consortium import Network
from medfed.engines.nvflare.guard import NOT_ITS_CERTIFICATE, NOT_ON_THE_ROSTER, NOT_THE_ADMINISTRATOR, TOKEN, judge
from medfed.engines.nvflare.wire import one_line
from medfed.errors import MedfedError

log = logging.getLogger("medfed.guard")

HANDSHAKE_SECONDS = 15.0
HANDSHAKES_AT_MOST = 200


class RegistrationGuard(FLComponent):
    """In the server's parent process, made before it listens."""

    def __init__(self) -> None:
        super().__init__()
        hold_server(Network(Path(os.environ["MEDFED_CONSORTIUM"])))
        hold_listener()


def hold_server(network: Network) -> None:
    """Have NVFLARE's server ask the roster at each registration, and of each message that comes in.

    Its own checks stay. They hold a registration to the certificate, and a message to a token that this server once signed;
    neither ends when a site is removed. Its events don't say which name and certificate a registration comes with.
    """
    if hasattr(ClientManager, "medfed"):
        return
    ClientManager.medfed = network
    authenticate, validate = ClientManager.authenticated_client, FederatedServer._validate_auth_headers
    roster = _Roster(network)

    def authenticated_client(self: ClientManager, request: Any, fl_ctx: Any, client_type: str) -> Any:
        name = str(request.get_header(CellMessageHeaderKeys.CLIENT_NAME))
        if reason := _judged(network, request, name, client_type):
            log.warning("refused the registration of %s: %s", one_line(name, 60), reason)
            raise NotAuthenticated(reason)
        return authenticate(self, request, fl_ctx, client_type)

    def validate_auth_headers(self: FederatedServer, message: Any) -> Any:
        name = message.get_header(CellMessageHeaderKeys.CLIENT_NAME)
        if name is not None and not _registers(message) and name not in roster.names():
            _end_session(self, str(name))
            return make_reply(CellReturnCode.UNAUTHENTICATED, NOT_ON_THE_ROSTER)
        return validate(self, message)

    ClientManager.authenticated_client = authenticated_client
    FederatedServer._validate_auth_headers = validate_auth_headers


class _Roster:
    """Who may send messages, read again when the roster's file changes."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._read: tuple[tuple[int, int], frozenset[str]] = ((0, 0), frozenset())

    def names(self) -> frozenset[str]:
        with contextlib.suppress(OSError, MedfedError):
            found = self.network.roster_path.stat()
            changed = (found.st_mtime_ns, found.st_ino)
            if changed != self._read[0]:
                self._read = changed, frozenset({ADMIN, "server", AUTH_CLIENT_NAME_FOR_SJ, *self.network.joined()})
            return self._read[1]
        return frozenset({ADMIN, "server", AUTH_CLIENT_NAME_FOR_SJ})


def _judged(network: Network, request: Any, name: str, client_type: object) -> str | None:
    if client_type == ClientType.ADMIN:
        return None if name == ADMIN else NOT_THE_ADMINISTRATOR
    if client_type != ClientType.REGULAR:
        return NOT_ON_THE_ROSTER
    try:
        peer = request.payload.get_peer_context()
        certificate = request.payload.get(IdentityChallengeKey.CERT)
        shown = fingerprint(certificate.encode() if isinstance(certificate, str) else certificate)
        return judge(network, name, str(peer.get_prop(TOKEN)), shown)
    except MedfedError as problem:
        return str(problem)
    except (AttributeError, TypeError, ValueError):
        return NOT_ITS_CERTIFICATE


def _registers(message: Any) -> bool:
    topic, channel = message.get_header(MessageHeaderKey.TOPIC), message.get_header(MessageHeaderKey.CHANNEL)
    return channel == CellChannel.SERVER_MAIN and topic in (CellChannelTopic.Register, CellChannelTopic.Challenge)


def _end_session(server: FederatedServer, name: str) -> None:
    """Forget a site that was removed while it was connected; it gets no job from now on."""
    if name in server.client_manager.name_to_clients:
        log.warning("%s is not on the roster any more: its session ends", one_line(name, 60))
        server.engine.disable_clients([name])
        server.client_manager.enable_client(name)  # should it be invited again


# -- connections -----------------------------------------------------------------------------------------------------


def hold_listener() -> None:
    """Have the server shake hands in a thread for each connection, in limited time, and say whom it turned away and why.

    NVFLARE's accepts one connection after another and shakes hands in between: one that says nothing keeps all others out.
    """
    if hasattr(TcpStreamServer, "medfed"):
        return
    TcpStreamServer.medfed = _TurnedAway()
    at_a_time = threading.BoundedSemaphore(HANDSHAKES_AT_MOST)

    def get_request(self: TcpStreamServer) -> Any:
        if isinstance(self.socket, ssl.SSLSocket):
            self.socket.do_handshake_on_connect = False  # type: ignore[attr-defined]
        return self.socket.accept()

    def finish_request(self: TcpStreamServer, request: Any, client_address: Any) -> None:
        if isinstance(request, ssl.SSLSocket):
            if not at_a_time.acquire(blocking=False):
                return
            try:
                request.settimeout(HANDSHAKE_SECONDS)
                request.do_handshake()
                request.settimeout(None)
            except (OSError, ValueError) as problem:
                TcpStreamServer.medfed.say(str(client_address[0]), problem)
                return
            finally:
                at_a_time.release()
        socketserver.ThreadingTCPServer.finish_request(self, request, client_address)

    TcpStreamServer.get_request, TcpStreamServer.finish_request = get_request, finish_request


class _TurnedAway:
    """Logs each address and reason once a minute."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], float] = {}

    def say(self, address: str, problem: Exception) -> None:
        why = getattr(problem, "verify_message", None) or getattr(problem, "reason", None) or type(problem).__name__
        now, said = time.monotonic(), (address, one_line(why, 100))
        if now - self._said.get(said, -60.0) < 60.0:
            return
        if len(self._said) > 1000:
            self._said.clear()
        self._said[said] = now
        log.warning("turned away a connection from %s: %s", *said)
