"""The consortium's certificates: one root, one certificate for the coordinator's server and one for each site.

Made with NVFLARE's own provisioning functions, since its identity check expects what they write; validity, kits and
renewal are ours. The root's key stays with the coordinator (0600). A site's first key comes in its kit; renewing replaces
it by one that the site made and nobody else has seen.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.x509.oid import NameOID
from nvflare.lighter.utils import Identity, generate_cert, generate_keys, serialize_cert, serialize_pri_key

from medfed.canonical import write_atomically
from medfed.errors import FederationError

ROOT_DAYS = 3650
ADMIN = "coordinator@medfed.local"


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, PEM."""

    certificate: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> None:
        write_atomically(folder / f"{name}.key", self.key, mode=0o600)
        write_atomically(folder / f"{name}.crt", self.certificate)


def make_root(name: str) -> Pair:
    """A new root for a consortium."""
    key, public = generate_keys()
    identity = Identity(name)
    certificate = generate_cert(identity, identity, key, public, valid_days=ROOT_DAYS, ca=True)
    return Pair(serialize_cert(certificate), serialize_pri_key(key))


@dataclass(frozen=True)
class Root:
    """The root with its key, to issue with."""

    certificate: x509.Certificate
    key: Any

    @classmethod
    def load(cls, folder: Path) -> "Root":
        """From root.crt and root.key. FederationError where they are missing, open to others or damaged."""
        path = folder / "root.key"
        try:
            if path.stat().st_mode & 0o077:
                raise FederationError(f"{path} can be read by other users of this machine; run: chmod 600 {path}")
            key = serialization.load_pem_private_key(path.read_bytes(), None)
            return cls(x509.load_pem_x509_certificate((folder / "root.crt").read_bytes()), key)
        except FileNotFoundError as missing:
            raise FederationError(f"{missing.filename} is missing; restore it from a backup") from None
        except ValueError:
            raise FederationError(f"{folder}: the root certificate or key is damaged; restore it") from None

    def issue(self, name: str, *, days: float, host: str = "", role: str | None = None, public: Any = None) -> Pair:
        """A certificate for ``name``; without ``public`` with a new key. host: the name that a server is found by."""
        key: Any = None
        if public is None:
            key, public = generate_keys()
        since = datetime.now(UTC) - timedelta(minutes=5)  # clocks differ a little
        issuer = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        certificate = generate_cert(
            Identity(name, "medfed", role), Identity(str(issuer)), self.key, public,
            server_default_host=host or None, not_valid_before=since,
            not_valid_after=min(since + timedelta(days=days), self.certificate.not_valid_after_utc),
        )  # fmt: skip
        return Pair(serialize_cert(certificate), serialize_pri_key(key) if key is not None else b"")

    def issue_for_request(self, name: str, request: bytes, *, days: float) -> bytes:
        """A certificate for the key in a signing request, if the request is for ``name`` and signed by that key."""
        try:
            asked = x509.load_pem_x509_csr(request)
            names = [str(a.value) for a in asked.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
            public = asked.public_key()
            if not asked.is_signature_valid or names != [name]:
                raise FederationError(f"site {name!r}: its certificate request is for another name or badly signed")
            if not isinstance(public, RSAPublicKey) or not 2048 <= public.key_size <= 4096:
                raise FederationError(f"site {name!r}: its certificate request has a key that is not RSA 2048 to 4096")
        except (ValueError, InvalidSignature):
            raise FederationError(f"site {name!r}: its certificate request can't be read") from None
        return self.issue(name, days=days, public=public).certificate


def request_for(name: str) -> tuple[bytes, bytes]:
    """A new private key (PEM) and a signing request (PEM) for it: what a site makes to renew its certificate."""
    key, _ = generate_keys()
    assert isinstance(key, RSAPrivateKey)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return serialize_pri_key(key), request.public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a PEM certificate's DER, hex."""
    return x509.load_pem_x509_certificate(certificate).fingerprint(hashes.SHA256()).hex()


def days_left(certificate: bytes, at: datetime | None = None) -> float:
    """Days until a PEM certificate expires; negative when it has."""
    end = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    return (end - (at or datetime.now(UTC))).total_seconds() / 86400


def belongs_together(certificate: bytes, key: bytes, root: bytes, name: str) -> bool:
    """Whether a certificate is for ``name``, has this private key and was issued by this root."""
    try:
        found = x509.load_pem_x509_certificate(certificate)
        private = serialization.load_pem_private_key(key, None)
        found.verify_directly_issued_by(x509.load_pem_x509_certificate(root))
    except (ValueError, TypeError, InvalidSignature):
        return False
    names = [a.value for a in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    as_der = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return names == [name] and found.public_key().public_bytes(*as_der) == private.public_key().public_bytes(*as_der)
