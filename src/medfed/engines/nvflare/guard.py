"""Who may register with the coordinator's NVFLARE server, over and above a valid certificate.

A certificate stays valid after a site was removed, and NVFLARE keeps no revocation list. So each site shows a token at
registration, signed with its own signing key and naming the certificate it uses; the server (``server_guard``) holds it to
the roster. On the first visit the token proves that the site holds the kit, and binds its key to its name.
"""

import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfed.canonical import canonical_json
from medfed.engines.nvflare.consortium import Network, now
from medfed.engines.nvflare.frames import BadMessage, parse
from medfed.engines.nvflare.wire import is_hash
from medfed.federation.keys import is_signed_by, public_hex

TOKEN = "medfed_token"
TOKEN_FILE = "registration.json"
NOT_ON_THE_ROSTER = "the site is not on the roster, or was removed from it"
NOT_ITS_CERTIFICATE = "the certificate is not the one that the roster has for this site"
NOT_THE_ADMINISTRATOR = "it says that it is an administrator, and is not the coordinator's"
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


def judge(network: Network, site: str, text: str, shown: str) -> str | None:
    """Why a site may not register; None when it may. On its first visit its key is bound to its name.

    text: its token; shown: the fingerprint of the certificate that it registers with.
    """
    member = network.members().get(site)
    if member is None or member.state == "removed":
        return NOT_ON_THE_ROSTER
    try:
        token = parse(text)
        signature = bytes.fromhex(str(token.pop("signature")))
        public = str(token["key"])
        ours = token["consortium"] == network.identity() and token["site"] == site
        signed = is_signed_by(public, _signed(token), signature)
        certificate, proof = str(token["certificate"]), bytes.fromhex(str(token["proof"]))
    except (BadMessage, KeyError, ValueError, TypeError):
        return NOT_ITS_KEY
    if not ours or not signed:
        return NOT_ITS_KEY
    if certificate != shown or certificate not in (member.certificate, member.next_certificate) or not certificate:
        return NOT_ITS_CERTIFICATE
    if member.state == "joined":
        if public != member.public_key:
            return NOT_ITS_KEY
        if certificate == member.next_certificate:  # the renewed one is in use: the old one has had its day
            network.change(site, certificate=certificate, next_certificate="")
        return None
    return None if _binds(network, site, public, proof) else NOT_ITS_KEY


def _binds(network: Network, site: str, public: str, proof: bytes) -> bool:
    """Bind a site's key to its name if it proves that it holds the kit. Once: the second of two at a time is refused."""
    with network.changing() as members:
        member = members[site]
        if member.state != "invited" or not is_hash(member.enrolment):
            return member.state == "joined" and member.public_key == public
        expected = hmac.new(bytes.fromhex(member.enrolment), f"{site}|{public}".encode(), hashlib.sha256).digest()
        if not hmac.compare_digest(expected, proof):
            return False
        members[site] = replace(member, state="joined", public_key=public, joined=now(), enrolment="")
        return True
