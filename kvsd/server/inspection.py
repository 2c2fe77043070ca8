"""What a person wants to know of a certificate: `inspect` shows it, `check` says whether it will do.

Owns: the questions and the plain words of the answers. Must not know how certificates are made, and prints
nothing.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from kvsd.errors import ConfigError
from kvsd.server.certificates import general_name, may_sign
from kvsd.server.pem import load_certificates, load_key

EXPIRY_WARNING = timedelta(days=30)

_MAX_CHAIN = 8


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """Whom a certificate names and for how long; times are UTC, the fingerprint is SHA-256 in hex."""

    path: Path
    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer of `check`, in plain words; `ok` is false where somebody has to act."""

    about: Literal["expiry", "chain", "host", "key"]
    ok: bool
    text: str


def inspect(path: Path) -> CertificateInfo:
    """The first certificate of a PEM file; ConfigError where the file cannot be read or holds none."""
    leaf = load_certificates(path)[0]
    return CertificateInfo(
        path,
        leaf.subject.rfc4514_string(),
        leaf.issuer.rfc4514_string(),
        _subject_names(leaf),
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
        leaf.fingerprint(hashes.SHA256()).hex(":").upper(),
    )


def check(
    certificate: Path,
    key: Path,
    *,
    ca: Path | None = None,
    host: str | None = None,
    passphrase: str | None = None,
    now: datetime | None = None,
) -> list[Finding]:
    """Whether clients would accept this certificate and the server could use this key, in plain words.

    Looks at expiry and key always, at the chain where the clients' `ca` file is given, at the name where the
    `host` that clients use is. Raises ConfigError where `certificate` cannot be read or `host` is no name.
    """
    now = now or datetime.now(UTC)
    leaf, *intermediates = load_certificates(certificate)
    findings = [_check_expiry(leaf, now)]
    if ca is not None:
        findings.append(_check_chain(leaf, intermediates, ca, now))
    if host is not None:
        findings.append(_check_host(leaf, host))
    findings.append(_check_key(leaf, key, passphrase))
    return findings


def _check_expiry(leaf: x509.Certificate, now: datetime) -> Finding:
    start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    renew = "move the certificate and its key away, and `kvsd certs init` makes new ones"
    if now < start:
        return Finding("expiry", False, f"not valid before {start:%Y-%m-%d %H:%M} UTC; is the clock right?")
    if end <= now:
        return Finding("expiry", False, f"expired on {end:%Y-%m-%d %H:%M} UTC; {renew}")
    if end - now <= EXPIRY_WARNING:
        return Finding("expiry", False, f"expires in {(end - now).days} days, on {end:%Y-%m-%d}; {renew}")
    return Finding("expiry", True, f"valid until {end:%Y-%m-%d}, {(end - now).days} days from now")


def _check_chain(leaf: x509.Certificate, intermediates: Sequence[x509.Certificate], ca: Path, now: datetime) -> Finding:
    try:
        roots = load_certificates(ca)
    except ConfigError as error:
        return Finding("chain", False, str(error))
    current = leaf
    for _ in range(_MAX_CHAIN):
        if current in roots:
            return Finding("chain", True, f"signed by {current.subject.rfc4514_string()} of {ca}")
        for issuer in (*roots, *intermediates):
            if _is_signed_by(current, issuer):
                break
        else:
            name = current.issuer.rfc4514_string()
            return Finding("chain", False, f"signed by {name}, whose certificate is not in {ca}; clients need that one")
        if not issuer.not_valid_before_utc <= now < issuer.not_valid_after_utc:
            name = issuer.subject.rfc4514_string()
            return Finding("chain", False, f"signed by {name}, which is expired or not yet valid")
        current = issuer
    return Finding("chain", False, f"more than {_MAX_CHAIN} certificates lie between this one and {ca}")


def _check_host(leaf: x509.Certificate, host: str) -> Finding:
    wanted = general_name(host)
    accepted = {(type(wanted), str(wanted.value))}
    if isinstance(wanted, x509.DNSName):
        accepted.add((x509.DNSName, "*." + wanted.value.partition(".")[2]))
    if any((type(name), str(name.value).lower()) in accepted for name in _alternative_names(leaf)):
        return Finding("host", True, f"valid for {host}")
    return Finding(
        "host",
        False,
        f"not valid for {host}, only for {', '.join(_subject_names(leaf)) or 'no name at all'}; "
        "connect by one of these names, or make a certificate for it with `kvsd certs init`",
    )


def _check_key(leaf: x509.Certificate, path: Path, passphrase: str | None) -> Finding:
    try:
        key = load_key(path, passphrase)
    except ConfigError as error:
        return Finding("key", False, str(error))
    if key.public_key() != leaf.public_key():
        return Finding("key", False, f"{path} belongs to another certificate")
    if path.stat().st_mode & stat.S_IRWXO:
        return Finding("key", False, f"every user of the machine can get at {path}; run `chmod 600 {path}`")
    return Finding("key", True, f"{path} belongs to the certificate")


def _is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return may_sign(issuer)


def _subject_names(certificate: x509.Certificate) -> tuple[str, ...]:
    return tuple(str(name.value) for name in _alternative_names(certificate))


def _alternative_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []
