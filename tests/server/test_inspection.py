"""What `check` finds wrong with certificates, and what `inspect` shows of them."""

from __future__ import annotations

import hashlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kvsd.errors import ConfigError
from kvsd.server.certificates import create, renew
from kvsd.server.inspection import Finding, check, inspect
from kvsd.server.pem import load_key

NOW = datetime(2030, 1, 1, tzinfo=UTC)
END = NOW + timedelta(days=825)


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    create(tmp_path / "server.pem", tmp_path / "server.key", ["db.example", "*.shop.example"], now=NOW)
    return tmp_path


def found(
    certs: Path,
    about: str,
    *,
    key: str = "server.key",
    ca: Path | None = None,
    host: str | None = "localhost",
    passphrase: str | None = None,
    now: datetime = NOW,
) -> Finding:
    findings = check(
        certs / "server.pem",
        certs / key,
        ca=ca or certs / "ca.pem",
        host=host,
        passphrase=passphrase,
        now=now,
    )
    [finding] = [finding for finding in findings if finding.about == about]
    others = [finding for finding in findings if finding.about != about]
    assert all(finding.ok for finding in others), "a fault is reported under another heading"
    return finding


def test_a_new_pair_has_nothing_to_complain_about(certs: Path) -> None:
    findings = check(certs / "server.pem", certs / "server.key", ca=certs / "ca.pem", host="127.0.0.1", now=NOW)
    assert [(finding.about, finding.ok) for finding in findings] == [
        ("expiry", True),
        ("chain", True),
        ("host", True),
        ("key", True),
    ]
    assert findings[0].text == "valid until 2032-04-05, 825 days from now"


def test_chain_and_host_are_left_out_where_nothing_is_known_of_the_clients(certs: Path) -> None:
    findings = check(certs / "server.pem", certs / "server.key", now=NOW)
    assert [finding.about for finding in findings] == ["expiry", "key"]


def test_inspection_shows_what_the_certificate_says(certs: Path) -> None:
    info = inspect(certs / "server.pem")
    assert info.path == certs / "server.pem"
    assert info.subject == "CN=kvsd server"
    assert info.issuer.startswith("CN=kvsd local CA ")
    assert info.names == ("localhost", "127.0.0.1", "::1", "db.example", "*.shop.example")
    assert info.not_before < NOW
    assert info.not_after == END
    der = ssl.PEM_cert_to_DER_cert((certs / "server.pem").read_text())
    assert info.fingerprint.replace(":", "").lower() == hashlib.sha256(der).hexdigest()
    assert inspect(certs / "ca.pem").names == ()


def test_two_cas_of_ours_cannot_be_mistaken_for_each_other(certs: Path) -> None:
    create(certs / "other" / "server.pem", certs / "other" / "server.key", now=NOW)
    assert inspect(certs / "ca.pem").subject != inspect(certs / "other" / "ca.pem").subject


@pytest.mark.parametrize(
    ("now", "ok", "text"),
    [
        (NOW - timedelta(hours=2), False, "not valid before 2029-12-31 23:00 UTC; is the clock right?"),
        (END - timedelta(days=31), True, "valid until 2032-04-05, 31 days from now"),
        (END - timedelta(days=30), False, "expires in 30 days, on 2032-04-05; `kvsd certs renew`"),
        (END - timedelta(seconds=1), False, "expires in 0 days, on 2032-04-05; `kvsd certs renew`"),
        (END, False, "expired on 2032-04-05 00:00 UTC; `kvsd certs renew`"),
    ],
)
def test_a_certificate_outside_or_near_the_end_of_its_time_is_reported(
    tmp_path: Path, now: datetime, ok: bool, text: str
) -> None:
    create(tmp_path / "server.pem", tmp_path / "server.key", now=NOW)
    finding = check(tmp_path / "server.pem", tmp_path / "server.key", now=now)[0]
    assert finding.about == "expiry"
    assert finding.ok == ok
    assert finding.text.startswith(text)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost", "127.0.0.1", "::1", "[::1]", "0::1", "db.example", "db.example.", "a.shop.example"],
)
def test_every_spelling_of_a_name_of_the_certificate_is_accepted(certs: Path, host: str) -> None:
    assert found(certs, "host", host=host).ok


@pytest.mark.parametrize("host", ["10.0.0.1", "example", "x.db.example", "a.b.shop.example", "shop.example"])
def test_another_host_is_reported_with_the_names_that_would_do(certs: Path, host: str) -> None:
    finding = found(certs, "host", host=host)
    assert not finding.ok
    assert finding.text.startswith(f"not valid for {host}, only for localhost, 127.0.0.1, ")


def test_the_key_of_another_certificate_is_reported(certs: Path) -> None:
    finding = found(certs, "key", key="ca.key")
    assert (finding.ok, finding.text) == (False, f"{certs / 'ca.key'} belongs to another certificate")


def test_a_key_that_everybody_can_read_is_reported(certs: Path) -> None:
    (certs / "server.key").chmod(0o640)
    assert found(certs, "key").ok
    (certs / "server.key").chmod(0o644)
    finding = found(certs, "key")
    assert not finding.ok
    assert "chmod 600" in finding.text


def test_a_missing_or_encrypted_key_is_a_finding_and_no_crash(certs: Path) -> None:
    assert "No such file" in found(certs, "key", key="absent.key").text
    key = load_key(certs / "server.key", None)
    encrypted = certs / "encrypted.key"
    encrypted.touch(0o600)
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open sesame"),
        )
    )
    assert "KVSD_SERVER_TLS_KEY_PASSPHRASE" in found(certs, "key", key="encrypted.key").text
    wrong = found(certs, "key", key="encrypted.key", passphrase="shut sesame")
    assert "wrong" in wrong.text
    assert "sesame" not in wrong.text
    assert found(certs, "key", key="encrypted.key", passphrase="open sesame").ok
    assert found(certs, "key", passphrase="not needed").ok


def test_a_ca_that_did_not_sign_is_reported(certs: Path) -> None:
    other = create(certs / "other" / "server.pem", certs / "other" / "server.key", now=NOW).ca
    finding = found(certs, "chain", ca=other)
    assert not finding.ok
    assert finding.text.startswith("signed by CN=kvsd local CA ")
    assert f"not in {other}" in finding.text
    assert "No such file" in found(certs, "chain", ca=certs / "absent.pem").text
    assert "no certificate" in found(certs, "chain", ca=certs / "ca.key").text


def test_a_certificate_that_cannot_be_read_leaves_nothing_to_check(certs: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.pem"):
        check(certs / "absent.pem", certs / "server.key")
    with pytest.raises(ConfigError, match="holds no certificate"):
        inspect(certs / "server.key")


class Authority:
    """Signs certificates of any shape, for chains that our own CA never makes."""

    def __init__(self, name: str, issuer: Authority | None = None, *, ca: bool = True, days: int = 100) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name.from_rfc4514_string(f"CN={name}")
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name((issuer or self).name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=20))
            .not_valid_after(NOW + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        self.certificate = builder.sign((issuer or self).key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def chain(tmp_path: Path, ca: Authority, *certificates: Authority) -> Finding:
    (tmp_path / "root.pem").write_bytes(ca.pem)
    (tmp_path / "chain.pem").write_bytes(b"".join(certificate.pem for certificate in certificates))
    findings = check(tmp_path / "chain.pem", tmp_path / "none.key", ca=tmp_path / "root.pem", now=NOW)
    [finding] = [finding for finding in findings if finding.about == "chain"]
    return finding


def test_intermediate_certificates_complete_the_chain(tmp_path: Path) -> None:
    root = Authority("root")
    middle = Authority("middle", root)
    leaf = Authority("leaf", middle, ca=False)
    assert chain(tmp_path, root, leaf, middle).ok
    finding = chain(tmp_path, root, leaf)
    assert not finding.ok
    assert finding.text.startswith("signed by CN=middle, whose certificate is not in ")


def test_a_pinned_self_signed_certificate_is_its_own_chain(tmp_path: Path) -> None:
    pinned = Authority("self", ca=False)
    assert chain(tmp_path, pinned, pinned).ok


def test_an_expired_ca_is_reported(tmp_path: Path) -> None:
    root = Authority("root", days=-1)
    finding = chain(tmp_path, root, Authority("leaf", root, ca=False))
    assert (finding.ok, finding.text) == (False, "signed by CN=root, which is expired or not yet valid")


@pytest.mark.parametrize("middle_days", [None, 20])
def test_a_ca_that_expires_soon_is_reported(tmp_path: Path, middle_days: int | None) -> None:
    root = Authority("root", days=20 if middle_days is None else 100)
    signer = root if middle_days is None else Authority("middle", root, days=middle_days)
    leaf = Authority("leaf", signer, ca=False)
    finding = chain(tmp_path, root, *([leaf] if middle_days is None else [leaf, signer]))
    assert not finding.ok
    assert finding.text.startswith("signed by a CA that expires in 20 days, on 2030-01-21; ")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]"])
def test_a_server_for_other_machines_needs_a_name_that_they_know(tmp_path: Path, host: str) -> None:
    create(tmp_path / "server.pem", tmp_path / "server.key", now=NOW)
    finding = check(tmp_path / "server.pem", tmp_path / "server.key", host=host, now=NOW)[1]
    assert not finding.ok
    assert finding.text.startswith("valid for localhost, 127.0.0.1, ::1 only, while")
    renew(tmp_path / "server.pem", tmp_path / "server.key", ["db.example"], now=NOW)
    finding = check(tmp_path / "server.pem", tmp_path / "server.key", host=host, now=NOW)[1]
    assert (finding.ok, finding.text) == (True, "valid for localhost, 127.0.0.1, ::1, db.example")


def test_a_signer_that_is_no_ca_does_not_count(tmp_path: Path) -> None:
    root = Authority("root", ca=False)
    assert not chain(tmp_path, root, Authority("leaf", root, ca=False)).ok


def test_a_signature_that_does_not_verify_does_not_count(tmp_path: Path) -> None:
    leaf = Authority("leaf", Authority("root"), ca=False)
    assert not chain(tmp_path, Authority("root"), leaf).ok


def test_certificates_that_sign_each_other_in_a_circle_end(tmp_path: Path) -> None:
    first = Authority("first")
    second = Authority("second", first)
    first.certificate = (
        x509.CertificateBuilder(second.name, first.name, first.key.public_key(), 1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(second.key, hashes.SHA256())
    )
    finding = chain(tmp_path, Authority("root"), first, second, first)
    assert not finding.ok
    assert "more than 8 certificates" in finding.text
