"""The local certificate authority: makes a CA and server certificates that strict clients accept.

Owns: what our certificates contain, and what names a certificate can carry. Must not know ssl, sockets or the
configuration, nor how a pair of files reaches the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kvsd.errors import ConfigError
from kvsd.server.folders import make_folder
from kvsd.server.pem import Pair, load_certificates, load_key

CA_LIFETIME = timedelta(days=3650)

SERVER_LIFETIME = timedelta(days=825)
"""The longest that Apple's systems accept from a private CA."""

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Names that every server certificate carries."""

_CLOCK_SKEW = timedelta(hours=1)
_DNS_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_MAX_DNS_NAME = 253
WILDCARDS = (ipaddress.IPv4Address(0), ipaddress.IPv6Address(0))
"""Addresses that a server listens on and nobody connects to."""

_SigningKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class Created:
    """What `create` did: the new files, in the order in which they appeared, and the CA for clients."""

    files: tuple[Path, ...]
    ca: Path


def create(certificate: Path, key: Path, hosts: Iterable[str] = (), *, now: datetime | None = None) -> Created:
    """Makes a server certificate and its key, signed by ca.pem and ca.key beside the certificate.

    The CA is made too where neither of its files exists. The certificate names LOCAL_HOSTS and `hosts`, and is
    valid for 825 days or as long as the CA; wildcard addresses such as 0.0.0.0 are left out, as nobody
    connects to them. Nothing is ever overwritten, a key is never readable by others, and what an interrupted
    call left behind is finished or removed.

    Raises ConfigError where a file is in the way, one of a pair is missing, the CA is unfit, a host is no
    name, or a folder cannot be written.
    """
    now = now or datetime.now(UTC)
    names = _names(hosts)
    ca = Pair(certificate.with_name("ca.pem"), certificate.with_name("ca.key"))
    server = Pair(certificate, key)
    if len({ca.certificate, ca.key, certificate, key}) < 4:
        raise ConfigError(
            f"{certificate} and {key} need names of their own, other than ca.pem and ca.key; "
            "change server.tls_certificate or server.tls_key"
        )
    files: list[Path] = []
    try:
        for folder in (certificate.parent, key.parent):
            make_folder(folder)
        with _only_one(certificate.parent):
            files += ca.settle()
            files += server.settle()
            if not server.exists():
                if not ca.exists():
                    files += ca.publish(*_new_ca(now))
                files += server.publish(*_new_server(*_load_ca(ca, now), names, now))
    except OSError as error:
        raise _unwritable(certificate, error) from None
    if not files:
        raise ConfigError(
            f"{certificate} and {key} exist already, and nothing is overwritten; "
            "`kvsd certs renew` renews the certificate, and adds names to it"
        )
    return Created(tuple(files), ca.certificate)


def renew(certificate: Path, key: Path, hosts: Iterable[str] = (), *, now: datetime | None = None) -> datetime:
    """Replaces the certificate by a new one for the same key, signed by the same CA; returns its end.

    It names what the old one does, and `hosts`. At no moment is there anything but the old one or the new one, so a
    server may run or start meanwhile, and clients notice nothing.

    Raises ConfigError where there is nothing to renew, the CA beside it did not sign it or is unfit, a host is no name,
    or a folder cannot be written.
    """
    now = now or datetime.now(UTC)
    ca = Pair(certificate.with_name("ca.pem"), certificate.with_name("ca.key"))
    old = load_certificates(certificate)[0]
    if not ca.exists():
        raise ConfigError(f"there is no CA of ours beside {certificate}; renew it where it was made")
    try:
        with _only_one(certificate.parent):
            ca_certificate, ca_key = _load_ca(ca, now)
            if not is_signed_by(old, ca_certificate):
                raise ConfigError(f"{certificate} was not signed by {ca.certificate}; renew it where it was made")
            names = alternative_names(old)
            names += [name for name in _names(hosts) if name not in names]
            public_key = old.public_key()
            if not isinstance(public_key, _PublicKey):
                raise ConfigError(f"{certificate} has neither an RSA nor an EC key; renew it where it was made")
            new = _server_certificate(ca_certificate, ca_key, public_key, names, now)
            # The link, if it is one, stays and leads to the new one.
            Pair(certificate.resolve(), key).replace_certificate(new.public_bytes(serialization.Encoding.PEM))
    except OSError as error:
        raise _unwritable(certificate, error) from None
    return new.not_valid_after_utc


def _unwritable(certificate: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot write certificates: {error.filename or certificate.parent}: {error.strerror}; "
        "make the folder writable, or run the command as a user who may write there"
    )


def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Tell whether `issuer` is a CA whose key has signed `certificate`."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return may_sign(issuer)


def alternative_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """The names that clients can connect by."""
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def general_name(host: str) -> x509.GeneralName:
    """An address (IPv6 with or without brackets, a zone is dropped), or else a DNS name (IDNA encoded).

    Raises ConfigError for what is neither.
    """
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]").partition("%")[0]))
    try:
        name = host.removesuffix(".").encode("idna").decode("ascii").lower()
    except UnicodeError:
        name = ""
    labels = name.removeprefix("*.").split(".")
    if len(name) > _MAX_DNS_NAME or not all(map(_DNS_LABEL.fullmatch, labels)):
        raise ConfigError(f"{host!r} is neither a host name nor an address, so no certificate can name it")
    return x509.DNSName(name)


def may_sign(certificate: x509.Certificate) -> bool:
    """Whether this is the certificate of a CA."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keeps a second process from taking our staged files for what an interruption left."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process is making certificates in {folder}; try again when it is done"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in (*LOCAL_HOSTS, *filter(None, hosts)):
        name = general_name(host)
        is_wildcard = isinstance(name, x509.IPAddress) and name.value in WILDCARDS
        if not is_wildcard and name not in names:
            names.append(name)
    return names


def _new_ca(now: datetime) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own for each CA, or clients that know an older one report a bad signature.
    name = _common_name(f"kvsd local CA {os.urandom(4).hex()}")
    certificate = (
        _builder(name, name, key.public_key(), now, now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(key, certificate)


def _new_server(
    ca: x509.Certificate, ca_key: _SigningKey, names: Sequence[x509.GeneralName], now: datetime
) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    return _pem(key, _server_certificate(ca, ca_key, key.public_key(), names, now))


def _server_certificate(
    ca: x509.Certificate,
    ca_key: _SigningKey,
    public_key: _PublicKey,
    names: Sequence[x509.GeneralName],
    now: datetime,
) -> x509.Certificate:
    not_after = min(now + SERVER_LIFETIME, ca.not_valid_after_utc)
    return (
        _builder(_common_name("kvsd server"), ca.subject, public_key, now, not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_authority_key_identifier(ca, ca_key), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: _PublicKey, now: datetime, not_after: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key_identifier(ca: x509.Certificate, ca_key: _SigningKey) -> x509.AuthorityKeyIdentifier:
    try:
        identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _pem(key: _SigningKey, certificate: x509.Certificate) -> tuple[bytes, bytes]:
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key_pem, certificate.public_bytes(serialization.Encoding.PEM)


def _load_ca(ca: Pair, now: datetime) -> tuple[x509.Certificate, _SigningKey]:
    certificate = load_certificates(ca.certificate)[0]
    key = load_key(ca.key, None)
    if not may_sign(certificate):
        problem = f"{ca.certificate} is not the certificate of a CA"
    elif key.public_key() != certificate.public_key():
        problem = f"{ca.key} is not the key of {ca.certificate}"
    elif certificate.not_valid_after_utc <= now:
        problem = f"{ca.certificate} expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    elif not isinstance(key, _SigningKey):
        problem = f"{ca.key} is neither an RSA nor an EC key"
    else:
        return certificate, key
    raise ConfigError(
        f"{problem}; move ca.pem and ca.key away, and `kvsd certs init` makes a new CA, "
        "whose ca.pem all clients need then"
    )
