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
from cryptography.hazmat.primitives import hashes

from kvsd.errors import ConfigError
from kvsd.server.certificates import LOCAL_HOSTS, WILDCARDS, alternative_names, general_name, is_signed_by
from kvsd.server.pem import load_certificates, load_key

EXPIRY_WARNING = timedelta(days=30)

_MAX_CHAIN = 8
_LOCAL_NAMES = tuple(map(general_name, LOCAL_HOSTS))


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
    renew = "`kvsd certs renew` makes a new one"
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
    ends: list[datetime] = []
    for _ in range(_MAX_CHAIN):
        if current in roots and ends and min(ends) - now <= EXPIRY_WARNING:
            return Finding(
                "chain",
                False,
                f"signed by a CA that expires in {(min(ends) - now).days} days, on {min(ends):%Y-%m-%d}; for a CA of "
                "ours, move ca.pem, ca.key and the server's pair away, and `kvsd certs init` makes new ones: all "
                "clients need the new ca.pem then",
            )
        if current in roots:
            return Finding("chain", True, f"signed by {current.subject.rfc4514_string()} of {ca}")
        for issuer in (*roots, *intermediates):
            if is_signed_by(current, issuer):
                break
        else:
            name = current.issuer.rfc4514_string()
            return Finding("chain", False, f"signed by {name}, whose certificate is not in {ca}; clients need that one")
        if not issuer.not_valid_before_utc <= now < issuer.not_valid_after_utc:
            name = issuer.subject.rfc4514_string()
            return Finding("chain", False, f"signed by {name}, which is expired or not yet valid")
        ends.append(issuer.not_valid_after_utc)
        current = issuer
    return Finding("chain", False, f"more than {_MAX_CHAIN} certificates lie between this one and {ca}")


def _check_host(leaf: x509.Certificate, host: str) -> Finding:
    wanted = general_name(host)
    names = ", ".join(_subject_names(leaf)) or "no name at all"
    if wanted.value in WILDCARDS:
        if all(name in _LOCAL_NAMES for name in alternative_names(leaf)):
            return Finding(
                "host",
                False,
                f"valid for {names} only, while the server listens for other machines; "
                "`kvsd certs renew --host NAME` adds a name that they connect by",
            )
        return Finding("host", True, f"valid for {names}")
    accepted = {(type(wanted), str(wanted.value))}
    if isinstance(wanted, x509.DNSName):
        accepted.add((x509.DNSName, "*." + wanted.value.partition(".")[2]))
    if any((type(name), str(name.value).lower()) in accepted for name in alternative_names(leaf)):
        return Finding("host", True, f"valid for {host}")
    return Finding(
        "host",
        False,
        f"not valid for {host}, only for {names}; "
        f"connect by one of these names, or add it with `kvsd certs renew --host {host}`",
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


def _subject_names(certificate: x509.Certificate) -> tuple[str, ...]:
    return tuple(str(name.value) for name in alternative_names(certificate))
