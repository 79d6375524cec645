"""The way from a site to its coordinator, looked at from the site: name, port, TLS, who opens it on the way, certificates.

Outbound connections only, to the one host and port that the site's kit names; nothing is sent but a TLS handshake. It
shakes hands as NVFLARE does, without a server name (SNI) where the scheme is tcp, so that what stands in between treats
it alike.
"""

import contextlib
import errno
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from medfed.engines.nvflare.finding import Finding, Limits, _
from medfed.engines.nvflare.preflight_certificates import is_for, is_issued_by, name_of, names_in

ADDRESSES_AT_MOST = 4
ACCEPTED_WITHIN = 1.0


@dataclass(frozen=True)
class Line:
    """Where the coordinator is, and what the site shows and trusts. pair: certificate and key files, if they are whole."""

    host: str
    port: int
    scheme: str
    root: Path
    pair: tuple[Path, Path] | None

    @property
    def values(self) -> dict[str, object]:
        return {"host": self.host, "port": self.port}


def look_at_the_way(line: Line, limits: Limits) -> Generator[Finding, None, x509.Certificate | None]:
    """Findings name, port, tls, chain, host-name and accepted, as they come; returns the certificate that was shown."""
    found, addresses = check_name(line, limits)
    yield found
    if not addresses:
        yield from unseen("port", "tls", "chain", "host-name", "accepted")
        return None
    found, address = check_port(line, addresses, limits)
    yield found
    if address is None:
        yield from unseen("tls", "chain", "host-name", "accepted")
        return None
    shaken, certificate = check_tls(line, address, addresses, limits)
    yield from shaken
    return certificate


def unseen(*names: str) -> list[Finding]:
    return [Finding(name, "skipped", _("Can't be seen before the failure above is mended.")) for name in names]


# -- name and port ---------------------------------------------------------------------------------------------------


def check_name(line: Line, limits: Limits) -> tuple[Finding, list[str]]:
    """Whether the coordinator's host name is known, and its addresses."""
    values = line.values
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(line.host)
        return Finding("name", "ok", _("{host} is an address; no name has to be looked up."), values=values), [
            line.host
        ]
    found = _look_up(line, limits.patience)
    if found is None or (isinstance(found, socket.gaierror) and found.errno == socket.EAI_AGAIN):
        return Finding(
            "name", "failed", _("The name server does not answer, so no address is known for {host}."),
            _("Ask your network department which name server this machine has to use."), values,
        ), []  # fmt: skip
    if isinstance(found, OSError | UnicodeError):
        return Finding(
            "name", "failed", _("No address is known for the name {host}."),
            _("Ask the coordinator whether {host} is right; if it is, ask your network department to let this machine look it up."),
            values,
        ), []  # fmt: skip
    addresses, others = found
    values |= {"addresses": ", ".join(addresses or others)}
    if not addresses:
        return Finding(
            "name", "failed", _("{host} has only IPv6 addresses ({addresses}), and the connection goes over IPv4."),
            _("Ask the coordinator to give {host} an IPv4 address."), values,
        ), []  # fmt: skip
    return Finding("name", "ok", _("{host} has the address {addresses}."), values=values), addresses


def _look_up(line: Line, patience: float) -> tuple[list[str], list[str]] | OSError | UnicodeError | None:
    """(addresses that the scheme can use, others); the error; None when nothing came back in time."""
    out: list[Any] = []

    def ask() -> None:
        try:
            out.append(socket.getaddrinfo(line.host, line.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as problem:
            out.append(problem)

    thread = threading.Thread(target=ask, daemon=True)  # a resolver can't be told to hurry
    thread.start()
    thread.join(2 * patience)
    if not out:
        return None
    if isinstance(out[0], Exception):
        return out[0]  # type: ignore[return-value]
    usable = [entry[4][0] for entry in out[0] if line.scheme != "tcp" or entry[0] == socket.AF_INET]
    return list(dict.fromkeys(usable)), list(dict.fromkeys(entry[4][0] for entry in out[0]))


def check_port(line: Line, addresses: Sequence[str], limits: Limits) -> tuple[Finding, str | None]:
    """Whether the port can be reached from here, and an address at which it can."""
    reached, problems = [], {}
    for address in addresses[:ADDRESSES_AT_MOST]:
        try:
            socket.create_connection((address, line.port), timeout=limits.patience).close()
            reached.append(address)
        except OSError as problem:
            problems[address] = problem
    values: dict[str, object] = line.values | {"addresses": ", ".join(reached or problems)}
    if reached and problems:
        values["missing"] = ", ".join(problems)
        return Finding(
            "port", "warning", _("Port {port} of {host} is reached at {addresses}, but not at {missing}."),
            _("Ask the coordinator whether {missing} is still an address of {host}."), values,
        ), reached[0]  # fmt: skip
    if reached:
        return Finding("port", "ok", _("Port {port} of {host} is reached."), values=values), reached[0]
    return _not_reached(next(iter(problems.values())), values), None


def _not_reached(problem: OSError, values: dict[str, object]) -> Finding:
    if isinstance(problem, ConnectionRefusedError):
        return Finding(
            "port", "failed", _("{host} ({addresses}) refuses connections to port {port}."),
            _("Ask the coordinator whether its service runs, and whether {port} is its port."), values,
        )  # fmt: skip
    if isinstance(problem, TimeoutError):
        return Finding(
            "port", "failed", _("Nothing comes back from {host} ({addresses}), port {port}: a firewall drops the connection."),
            _("Ask your network department to allow outgoing TCP from this machine to {addresses}, port {port}; nothing has to come in."),
            values,
        )  # fmt: skip
    if problem.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN):
        return Finding(
            "port", "failed", _("This machine has no route to {host} ({addresses})."),
            _("Ask your network department for a route from this machine to {addresses}, by VPN if the coordinator is behind one."),
            values,
        )  # fmt: skip
    if problem.errno in (errno.EACCES, errno.EPERM):
        return Finding(
            "port", "failed", _("This machine's own firewall forbids connections to {host} ({addresses}), port {port}."),
            _("Allow outgoing TCP to {addresses}, port {port}, in this machine's firewall."), values,
        )  # fmt: skip
    return Finding(
        "port", "failed", _("No connection to {host} ({addresses}), port {port}: {error}."),
        _("Show this sentence to your network department."), values | {"error": problem.strerror or str(problem)},
    )  # fmt: skip


# -- TLS -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Hands:
    """What a handshake showed. problem: why it ended early."""

    certificate: x509.Certificate | None = None
    version: str = ""
    refused: str = ""
    problem: Exception | None = None


def check_tls(
    line: Line, address: str, addresses: Sequence[str], limits: Limits
) -> tuple[list[Finding], x509.Certificate | None]:
    """Findings tls, chain, host-name and accepted; and the certificate that was shown."""
    hands = _shake(line, address, limits.patience, trusting=False)
    if isinstance(hands.problem, ssl.SSLCertVerificationError):
        seen = _shake(line, address, limits.patience, trusting=True)  # to see by whom it was issued
        if seen.certificate is None:
            seen = _Hands(problem=hands.problem)
        return _of_the_unverified(line, seen, hands.problem, addresses), seen.certificate
    if hands.problem is not None or hands.certificate is None:
        return [_no_handshake(line, hands.problem), *unseen("chain", "host-name", "accepted")], None
    findings = [
        Finding("tls", "ok", _("{host} speaks {version}."), values=line.values | {"version": hands.version}),
        Finding("chain", "ok", _("The certificate is the coordinator's own; nothing on the way opens the connection.")),
        _host_name(line, hands.certificate),
        _accepted(line, hands.refused),
    ]
    return findings, hands.certificate


def _shake(line: Line, address: str, patience: float, *, trusting: bool) -> _Hands:
    """One handshake. trusting: take any certificate, show none of ours, only to see what is there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # told apart from the chain, below
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if line.scheme == "grpc":
        context.set_alpn_protocols(["h2"])
    try:
        if trusting:
            context.verify_mode = ssl.CERT_NONE
        else:
            context.load_verify_locations(line.root)
            if line.pair is not None:
                context.load_cert_chain(*line.pair)
        with (
            socket.create_connection((address, line.port), timeout=patience) as connection,
            context.wrap_socket(connection, server_hostname=None if line.scheme == "tcp" else line.host) as tls,
        ):
            shown = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
            return _Hands(shown, tls.version() or "", "" if trusting else _refusal(tls))
    except (OSError, ValueError, EOFError) as problem:
        return _Hands(problem=problem)


def _refusal(tls: ssl.SSLSocket) -> str:
    """Why the server does not take our certificate, "" when it does. TLS 1.3 tells it after the handshake only."""
    if tls.version() == "TLSv1.2":
        return ""
    tls.settimeout(0.05)
    end = time.monotonic() + ACCEPTED_WITHIN
    while time.monotonic() < end:
        try:
            return "" if tls.recv(1) else "closed"
        except TimeoutError:
            if tls.session is not None and tls.session.has_ticket:  # given once our certificate was verified
                return ""
        except ssl.SSLError as problem:
            return (problem.reason or "alert").replace("_", " ").lower()
        except OSError:
            return "closed"
    return ""


def _no_handshake(line: Line, problem: Exception | None) -> Finding:
    reason = getattr(problem, "reason", None) or ""
    values = line.values | {"error": str(reason or problem)}
    if isinstance(problem, TimeoutError):
        return Finding(
            "tls", "failed", _("{host} takes the connection at port {port} and then says nothing."),
            _("Ask the coordinator to start its service again; if it runs well, ask your network department what answers in its place."),
            values,
        )  # fmt: skip
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"):  # fmt: skip
        return Finding(
            "tls", "failed", _("What answers at {host}, port {port}, does not speak TLS."),
            _("Ask the coordinator for the right host and port; a sign-in page of your own network answers like this, too."),
            values,
        )  # fmt: skip
    if "ALERT" in reason:
        return Finding(
            "tls", "failed", _("{host} ends the TLS handshake ({error})."),
            _("Ask the coordinator for a new kit, and join with it."), values,
        )  # fmt: skip
    if isinstance(problem, ConnectionError | EOFError | ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Finding(
            "tls", "failed", _("The connection to {host}, port {port}, is cut as soon as TLS begins."),
            _("Ask your network department whether a firewall forbids TLS to {host}, port {port}; else ask the coordinator to look at its service."),
            values,
        )  # fmt: skip
    return Finding(
        "tls", "failed", _("The TLS handshake with {host} fails ({error})."),
        _("Show this sentence to your network department and to the coordinator."), values,
    )  # fmt: skip


def _of_the_unverified(
    line: Line, seen: _Hands, problem: ssl.SSLCertVerificationError, addresses: Sequence[str]
) -> list[Finding]:
    if seen.certificate is None:
        return [_no_handshake(line, problem), *unseen("chain", "host-name", "accepted")]
    tls = Finding("tls", "ok", _("{host} speaks {version}."), values=line.values | {"version": seen.version})
    root = x509.load_pem_x509_certificate(line.root.read_bytes())
    if not is_issued_by(seen.certificate, root):
        return [tls, _foreign(line, seen.certificate, root, addresses), *unseen("host-name", "accepted")]
    chain = Finding(
        "chain", "ok", _("The certificate is the coordinator's own; nothing on the way opens the connection.")
    )
    now = datetime.now(UTC)
    in_time = all(each.not_valid_before_utc <= now <= each.not_valid_after_utc for each in (seen.certificate, root))
    if in_time:  # else the finding about dates says it
        chain = Finding(
            "chain", "failed", _("The coordinator's certificate is not accepted here: {error}."),
            _("Ask the coordinator to renew its certificate."), {"error": problem.verify_message},
        )  # fmt: skip
    return [tls, chain, _host_name(line, seen.certificate), *unseen("accepted")]


def _foreign(line: Line, shown: x509.Certificate, root: x509.Certificate, addresses: Sequence[str]) -> Finding:
    values = line.values | {
        "addresses": ", ".join(addresses), "issuer": name_of(shown.issuer), "subject": name_of(shown.subject),
        "root": name_of(root.subject),
    }  # fmt: skip
    if shown.issuer == root.subject:
        return Finding(
            "chain", "failed",
            _("The coordinator's certificate comes from another root of the name {root} than the site's kit: the consortium was set up anew."),
            _("Ask the coordinator for a new kit, and join with it."), values,
        )  # fmt: skip
    if any(is_for(shown, name) for name in (line.host, *addresses)):
        return Finding(
            "chain", "failed",
            _("TLS is inspected on the way: the certificate for {host} was issued by {issuer}, not by the consortium's root."),
            _("Ask your network department to exempt {host} ({addresses}), port {port}, from TLS inspection by {issuer}; trusting its certificate instead does not help, since the site's own certificate can't pass it."),
            values,
        )  # fmt: skip
    return Finding(
        "chain", "failed",
        _("Another server answers for {host}: {subject}, with a certificate issued by {issuer}, not by the consortium's root."),
        _("Show this to your network department: if {issuer} is theirs, {host} ({addresses}), port {port}, has to be exempt from it; if not, ask the coordinator for the right address."),
        values,
    )  # fmt: skip


def _host_name(line: Line, shown: x509.Certificate) -> Finding:
    values = line.values | {"names": ", ".join(names_in(shown)) or "-"}
    if is_for(shown, line.host):
        return Finding("host-name", "ok", _("The certificate is for {host}."), values=values)
    return Finding(
        "host-name", "failed", _("The coordinator's certificate is for {names}, not for {host}."),
        _("Ask the coordinator under which name sites find it; a new kit with that name mends it."), values,
    )  # fmt: skip


def _accepted(line: Line, refused: str) -> Finding:
    if line.pair is None:
        return Finding(
            "accepted", "skipped", _("The site's certificate and key are not whole, so they were not shown.")
        )
    if not refused:
        return Finding("accepted", "ok", _("The coordinator accepts the site's certificate."))
    return Finding(
        "accepted", "failed", _("The coordinator does not accept the site's certificate ({error})."),
        _("Ask the coordinator for a new kit, and join with it."), {"error": refused},
    )  # fmt: skip
