"""PEM files: reading them, and bringing a key and its certificate to the disk as a pair.

Owns: the limits and the errors of reading, and the order in which a pair is published. Must not know what
certificates contain or what they are for.

A pair appears whole even if the machine stops half way. Both files are staged under names of their own and
synced; then the key is renamed, then the certificate. So whoever comes next can tell: a staged key means that
nothing was published yet, a staged certificate without a staged key that one rename is missing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from kvsd.errors import ConfigError
from kvsd.types import to_bytes

PASSPHRASE_VARIABLE = "KVSD_SERVER_TLS_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable, no secret

MAX_PEM_BYTES = 1024 * 1024


def read_pem(path: Path) -> bytes:
    """A PEM file whole; ConfigError where it cannot be read or is too large to be one (1 MiB)."""
    try:
        with path.open("rb") as file:
            pem = file.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; check the path and its permissions, "
            "or make certificates with `kvsd certs init`"
        ) from None
    if len(pem) > MAX_PEM_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_PEM_BYTES} bytes: it is no certificate or key")
    return pem


def load_certificates(path: Path) -> list[x509.Certificate]:
    """The certificates of a PEM file, at least one; ConfigError where it cannot be read or holds none."""
    try:
        certificates = x509.load_pem_x509_certificates(read_pem(path))
        for certificate in certificates:
            # Extensions are parsed when asked for: what is malformed shall fail here.
            list(certificate.extensions)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion):
        raise ConfigError(
            f"{path} holds no certificate in PEM form; give another file, or make one with `kvsd certs init`"
        ) from None
    return certificates


def load_key(path: Path, passphrase: str | None) -> PrivateKeyTypes:
    """The private key of a PEM file: PKCS#1, PKCS#8 or SEC1; the passphrase counts where it is encrypted.

    Raises ConfigError where the file cannot be read, holds no key, or the passphrase is missing or wrong.
    """
    pem = read_pem(path)
    secret = None
    problem = "it is no private key in PEM form"
    if is_encrypted(pem):
        if passphrase is None:
            raise ConfigError(f"the key {path} is encrypted; put its passphrase into {PASSPHRASE_VARIABLE}")
        secret = to_bytes(passphrase)
        problem = f"{PASSPHRASE_VARIABLE} is wrong or the file is damaged"
    try:
        return serialization.load_pem_private_key(pem, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"cannot use the key {path}: {problem}") from None


def is_encrypted(key_pem: bytes) -> bool:
    """Whether a key needs a passphrase: PKCS#8 says so in its first line, the older forms in a header."""
    return b"ENCRYPTED" in key_pem


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key on the disk. `publish` and `settle` raise OSError, and need a lock held."""

    certificate: Path
    key: Path

    @property
    def _staged_certificate(self) -> Path:
        return _staged(self.certificate)

    @property
    def _staged_key(self) -> Path:
        return _staged(self.key)

    def exists(self) -> bool:
        """Whether both files exist (True) or neither (False); ConfigError where one of the two is missing."""
        match _exists(self.certificate), _exists(self.key):
            case True, False:
                present, missing = self.certificate, self.key
            case False, True:
                present, missing = self.key, self.certificate
            case both, _:
                return both
        raise ConfigError(
            f"{missing} is missing, while {present} exists; put the missing file back, "
            f"or move {present} away and make a new pair with `kvsd certs init`"
        )

    def is_complete(self) -> bool:
        """Whether both files exist; one alone is no error here."""
        return _exists(self.certificate) and _exists(self.key)

    def publish(self, key_pem: bytes, certificate_pem: bytes) -> tuple[Path, Path]:
        """Writes both files, where neither existed; the key has mode 0600 from its first instant."""
        _write_new(self._staged_key, key_pem, 0o600)
        _write_new(self._staged_certificate, certificate_pem, 0o644)
        self._sync_folders()
        self._staged_key.rename(self.key)
        self._sync_folders()
        self._staged_certificate.rename(self.certificate)
        self._sync_folders()
        return self.key, self.certificate

    def replace_certificate(self, certificate_pem: bytes) -> None:
        """Writes another certificate for the same key, in the place of the one that is there, as a whole."""
        self._staged_certificate.unlink(missing_ok=True)
        _write_new(self._staged_certificate, certificate_pem, 0o644)
        self._staged_certificate.rename(self.certificate)
        self._sync_folders()

    def settle(self) -> tuple[Path, ...]:
        """Finishes or removes what an interrupted `publish` left; the files that it finished."""
        if _exists(self._staged_key):
            # In this order: a staged certificate alone would look like a published key.
            self._staged_certificate.unlink(missing_ok=True)
            self._sync_folders()
            self._staged_key.unlink()
        elif _exists(self._staged_certificate):
            if _exists(self.key) and not _exists(self.certificate):
                self._staged_certificate.rename(self.certificate)
                self._sync_folders()
                return self.key, self.certificate
            self._staged_certificate.unlink()
        return ()

    def _sync_folders(self) -> None:
        for folder in {self.certificate.parent, self.key.parent}:
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _staged(path: Path) -> Path:
    # Keeps the suffix, so that a rule that keeps *.key out of version control covers it too.
    return path.with_name(f".new-{path.name}")


def _exists(path: Path) -> bool:
    """Whether the name is taken, be it by a link that leads nowhere."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ConfigError(f"cannot look at {path}: {error.strerror}; check the permissions") from None
    return True


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
