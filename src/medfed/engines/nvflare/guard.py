"""Who may register with the coordinator's NVFLARE server, over and above a valid certificate.

A certificate stays valid after a site was removed, and NVFLARE keeps no revocation list. So each site shows a token at
registration, signed with its own signing key and naming the certificate it uses; the server's guard holds it to the
roster. On the first visit the token proves that the site holds the kit, and binds its key to its name.
"""

import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import NotAuthenticated
from nvflare.private.defs import ClientType

from medfed.canonical import canonical_json
from medfed.engines.nvflare.consortium import Network, now
from medfed.engines.nvflare.frames import BadMessage, parse
from medfed.errors import MedfedError
from medfed.federation.keys import is_signed_by, public_hex

TOKEN = "medfed_token"
TOKEN_FILE = "registration.json"
NOT_ON_THE_ROSTER = "the site is not on the roster, or was removed from it"
NOT_ITS_CERTIFICATE = "the certificate is not the one that the roster has for this site"
NOT_ITS_KEY = "the registration is not signed with the key that is bound to this site's name"


def make_token(consortium: str, site: str, certificate: str, key: Ed25519PrivateKey, enrolment: str) -> str:
    """The token as JSON. certificate: fingerprint (hex); enrolment: the kit's secret, of which only a proof is sent."""
    public = public_hex(key)
    proof = hmac.new(bytes.fromhex(enrolment), f"{site}|{public}".encode(), hashlib.sha256).hexdigest()
    token = {"consortium": consortium, "site": site, "certificate": certificate, "key": public, "proof": proof}
    signature = key.sign(_signed(token)).hex()
    return json.dumps(token | {"signature": signature})


def _signed(token: dict[str, Any]) -> bytes:
    return b"medfed registration\n" + canonical_json(token).encode()


def judge(network: Network, site: str, text: str) -> str | None:
    """Why a site may not register; None when it may. On its first visit its key is bound to its name."""
    member = network.members().get(site)
    if member is None or member.state == "removed":
        return NOT_ON_THE_ROSTER
    try:
        token = parse(text)
        signature = bytes.fromhex(str(token.pop("signature")))
        public = str(token["key"])
        ours = token["consortium"] == network.identity() and token["site"] == site
        signed = is_signed_by(public, _signed(token), signature)
        certificate, proof = str(token["certificate"]), str(token["proof"])
    except (BadMessage, KeyError, ValueError, TypeError):
        return NOT_ITS_KEY
    if not ours or not signed:
        return NOT_ITS_KEY
    if certificate not in (member.certificate, member.next_certificate) or not certificate:
        return NOT_ITS_CERTIFICATE
    if member.state == "joined":
        if public != member.public_key:
            return NOT_ITS_KEY
        if certificate == member.next_certificate:  # the renewed one is in use: the old one has had its day
            network.change(site, certificate=certificate, next_certificate="")
        return None
    expected = hmac.new(bytes.fromhex(member.enrolment), f"{site}|{public}".encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, proof):
        return NOT_ITS_KEY
    network.change(site, state="joined", public_key=public, joined=now(), enrolment="")
    return None


class RegistrationGuard(FLComponent):
    """In the server's parent process: refuses a registration that the roster does not allow."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type != EventType.CLIENT_REGISTER_RECEIVED:
            return
        peer = fl_ctx.get_peer_context()
        name, token = (peer.get_identity_name(), peer.get_prop(TOKEN)) if peer else ("", None)
        if fl_ctx.get_prop(FLContextKey.CLIENT_TYPE) == ClientType.ADMIN:
            return
        try:
            reason = judge(Network(Path(os.environ["MEDFED_CONSORTIUM"])), str(name), str(token))
        except MedfedError as problem:
            reason = str(problem)
        if reason:
            raise NotAuthenticated(f"{name}: {reason}")


class RegistrationToken(FLComponent):
    """In a site's parent process: shows the token that the site's service has written."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            text = (Path(os.environ["MEDFED_RUN"]) / TOKEN_FILE).read_text()
            fl_ctx.set_prop(TOKEN, text, private=False, sticky=True)
