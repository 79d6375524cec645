"""Certificates as preflight reads them: whom one names, who issued it, from when until when it is valid."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID

from medfed.engines.nvflare.finding import Finding, Limits, _


def name_of(name: x509.Name) -> str:
    """ "Common name (organisation)", for people; what a foreign certificate says is held to one short line."""
    found = []
    for kind in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME):
        values = [str(attribute.value) for attribute in name.get_attributes_for_oid(kind)]
        text = " ".join("".join(c if c.isprintable() else " " for c in " ".join(values)).split())[:80]
        if text and text not in found:
            found.append(text)
    return f"{found[0]} ({found[1]})" if len(found) == 2 else "".join(found) or "-"


def names_in(certificate: x509.Certificate) -> list[str]:
    """The hosts that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return [str(attribute.value)[:80] for attribute in common]
    found = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return [name[:80] for name in found[:5]]


def is_for(certificate: x509.Certificate, host: str) -> bool:
    """Whether a certificate names a host; "*" stands for one first label."""
    wanted = host.lower().rstrip(".")
    return any(
        name.lower() == wanted or (name.startswith("*.") and name[1:].lower() == "." + wanted.partition(".")[2])
        for name in names_in(certificate)
    )


def is_issued_by(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


_NEW_KIT = _("Ask the coordinator for a new kit, and join with it.")
_RENEWS_ITSELF = _(
    "Keep the site's service running: it renews by itself while the coordinator reaches it; else ask for a new kit."
)
_RESTART = _("Ask the coordinator to start its service again, which renews its certificate.")
_NEW_ROOT = _("Ask the coordinator to set up a new root; every site then joins with a new kit.")
_CLOCK = _("Set this machine's clock right.")
# When it has ended, and when it ends soon.
_REMEDIES = {"own": (_NEW_KIT, _RENEWS_ITSELF), "server": (_RESTART, _RESTART), "root": (_NEW_ROOT, _NEW_ROOT)}


def check_dates(name: str, certificate: x509.Certificate | None, limits: Limits) -> Finding:
    """Dates of one certificate. name: own | server | root."""
    full = f"certificate-{name}"
    if certificate is None:
        return Finding(full, "skipped", _("The certificate could not be seen."))
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now, day = datetime.fromtimestamp(limits.clock(), UTC), timedelta(days=1)
    values = {"begin": f"{begin:%Y-%m-%d %H:%M} UTC", "end": f"{end:%Y-%m-%d %H:%M} UTC", "days": (end - now) // day}
    ended, ends_soon = _REMEDIES[name]
    if now < begin:
        return Finding(
            full, "failed", _("The certificate is valid from {begin} on, which is later than this machine's clock."),
            _CLOCK, values,
        )  # fmt: skip
    if now > end:
        return Finding(full, "failed", _("The certificate ended on {end}."), ended, values)
    if end - now < min(limits.soon_days * day, (end - begin) / 4):  # certificates may be short-lived
        return Finding(full, "warning", _("The certificate ends in {days} days, on {end}."), ends_soon, values)
    return Finding(full, "ok", _("The certificate is valid until {end}."), values=values)


def load_certificate(path: Path) -> x509.Certificate | None:
    """A PEM certificate; None where there is none or it is damaged."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None
