"""The local CA: what certificates contain, and what `create` refuses to touch."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from kvsd.errors import ConfigError
from kvsd.server.certificates import Created, create, general_name, renew
from kvsd.server.pem import load_certificates, load_key
from kvsd.server.tls import server_context

from .test_pem import Machine

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def make(folder: Path, *hosts: str, now: datetime = NOW) -> Created:
    return create(folder / "server.pem", folder / "server.key", hosts, now=now)


def names(folder: Path) -> list[str]:
    leaf = load_certificates(folder / "server.pem")[0]
    extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in extension.value]


def test_the_first_call_makes_a_ca_and_a_server_pair_with_private_keys(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "certs"
    umask = os.umask(0)
    try:
        created = make(folder)
    finally:
        os.umask(umask)
    assert [path.name for path in created.files] == ["ca.key", "ca.pem", "server.key", "server.pem"]
    assert created.ca == folder / "ca.pem"
    assert sorted(created.files) == sorted(folder.iterdir())
    modes = {path.name: path.stat().st_mode & 0o777 for path in created.files}
    assert modes == {"ca.key": 0o600, "server.key": 0o600, "ca.pem": 0o644, "server.pem": 0o644}


def test_the_certificate_carries_what_strict_verifiers_ask_for(tmp_path: Path) -> None:
    make(tmp_path)
    ca, leaf = load_certificates(tmp_path / "ca.pem")[0], load_certificates(tmp_path / "server.pem")[0]
    leaf.verify_directly_issued_by(ca)
    ca.verify_directly_issued_by(ca)

    constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca) == (True, False)
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)

    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.digital_signature, usage.value.key_cert_sign) == (True, True, False)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.digital_signature, usage.value.key_cert_sign) == (True, False, True)

    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
    ca_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    leaf_id = leaf.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    authority = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert authority.key_identifier == ca_id != leaf_id

    for certificate in (ca, leaf):
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert isinstance(key.curve, ec.SECP256R1)
    assert ca.not_valid_after_utc - NOW == timedelta(days=3650)
    assert leaf.not_valid_after_utc - NOW == timedelta(days=825)
    assert leaf.not_valid_before_utc < NOW, "a client whose clock is a little late must be able to connect"


@pytest.mark.parametrize(
    ("hosts", "added"),
    [
        ([], []),
        (["127.0.0.1", "localhost", "LOCALHOST.", "[::1]", "0:0:0:0:0:0:0:1"], []),
        (["0.0.0.0", "::", ""], []),
        (["db.example.org", "10.1.2.3", "fe80::1%eth0"], ["db.example.org", "10.1.2.3", "fe80::1"]),
        (["Bücher.example", "*.example.org", "my_host"], ["xn--bcher-kva.example", "*.example.org", "my_host"]),
    ],
)
def test_the_certificate_names_the_local_hosts_and_those_given_once(
    tmp_path: Path, hosts: list[str], added: list[str]
) -> None:
    make(tmp_path, *hosts)
    assert names(tmp_path) == ["localhost", "127.0.0.1", "::1", *added]


@pytest.mark.parametrize(
    "host", ["two words", "a..b", "-a", "x" * 64, ".", "ex*mple.org", "a/b", "\ud800", "a." * 127 + "a"]
)
def test_a_host_that_is_no_name_is_refused_before_anything_is_written(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="neither a host name nor an address"):
        make(tmp_path / "certs", host)
    assert not (tmp_path / "certs").exists()


def test_an_address_is_told_from_a_name() -> None:
    assert general_name("10.0.0.1") == x509.IPAddress(ip_address("10.0.0.1"))
    assert general_name("10.0.0.1.example") == x509.DNSName("10.0.0.1.example")


def test_an_existing_ca_signs_again(tmp_path: Path) -> None:
    make(tmp_path)
    ca = (tmp_path / "ca.pem").read_bytes()
    old = (tmp_path / "server.pem").rename(tmp_path / "old.pem").read_bytes()
    (tmp_path / "server.key").unlink()
    created = make(tmp_path)
    assert [path.name for path in created.files] == ["server.key", "server.pem"]
    assert (tmp_path / "ca.pem").read_bytes() == ca
    assert (tmp_path / "server.pem").read_bytes() != old
    load_certificates(tmp_path / "server.pem")[0].verify_directly_issued_by(load_certificates(created.ca)[0])


def test_a_certificate_does_not_outlive_its_ca(tmp_path: Path) -> None:
    make(tmp_path, now=NOW - timedelta(days=3600))
    (tmp_path / "server.pem").unlink()
    (tmp_path / "server.key").unlink()
    make(tmp_path)
    ca, leaf = load_certificates(tmp_path / "ca.pem")[0], load_certificates(tmp_path / "server.pem")[0]
    assert leaf.not_valid_after_utc == ca.not_valid_after_utc


def test_an_existing_pair_is_never_overwritten_and_gets_no_stray_ca(tmp_path: Path) -> None:
    (tmp_path / "server.pem").write_bytes(b"mine")
    (tmp_path / "server.key").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"exist already.*`kvsd certs renew`"):
        make(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["server.key", "server.pem"]
    assert (tmp_path / "server.pem").read_bytes() == (tmp_path / "server.key").read_bytes() == b"mine"


@pytest.mark.parametrize("lone", ["ca.pem", "ca.key", "server.pem", "server.key"])
def test_a_lone_half_is_neither_replaced_nor_completed(tmp_path: Path, lone: str) -> None:
    (tmp_path / lone).write_bytes(b"mine")
    with pytest.raises(ConfigError, match=f"while .*{lone} exists"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [lone]


def test_an_interrupted_call_is_finished_by_the_next(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "server.pem").rename(tmp_path / ".new-server.pem")
    created = make(tmp_path)
    assert [path.name for path in created.files] == ["server.key", "server.pem"]
    (tmp_path / "server.pem").rename(tmp_path / ".new-server.pem")
    (tmp_path / "server.key").rename(tmp_path / ".new-server.key")
    (tmp_path / "ca.pem").rename(tmp_path / ".new-ca.pem")
    created = make(tmp_path)
    assert [path.name for path in created.files] == ["ca.key", "ca.pem", "server.key", "server.pem"]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_second_process_does_not_meddle(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(ConfigError, match="another process is making certificates"):
            make(tmp_path)
    finally:
        os.close(descriptor)
    make(tmp_path)


@pytest.mark.parametrize(
    ("certificate", "key"), [("ca.pem", "server.key"), ("server.pem", "ca.key"), ("both.pem", "both.pem")]
)
def test_names_that_collide_with_the_ca_are_refused(tmp_path: Path, certificate: str, key: str) -> None:
    with pytest.raises(ConfigError, match="need names of their own"):
        create(tmp_path / certificate, tmp_path / key)
    assert list(tmp_path.iterdir()) == []


def test_certificate_and_key_may_live_in_folders_of_their_own(tmp_path: Path) -> None:
    created = create(tmp_path / "public" / "a.pem", tmp_path / "private" / "a.key")
    assert [str(path.relative_to(tmp_path)) for path in created.files] == [
        "public/ca.key",
        "public/ca.pem",
        "private/a.key",
        "public/a.pem",
    ]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "certs").write_bytes(b"a file")
    with pytest.raises(ConfigError, match=r"cannot write certificates: .*certs: .*writable"):
        make(tmp_path / "certs")


def write_ca(folder: Path, key: object, *, is_ca: bool = True, encryption: object = None) -> None:
    """A CA of another maker, without key identifiers."""
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey)
    name = x509.Name.from_rfc4514_string("CN=Other CA")
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=100))
    )
    if is_ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(builder.sign(key, algorithm).public_bytes(pem))
    (folder / "ca.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption or serialization.NoEncryption())
    )


def test_an_rsa_ca_of_another_maker_signs(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    write_ca(tmp_path, key)
    make(tmp_path)
    leaf = load_certificates(tmp_path / "server.pem")[0]
    leaf.verify_directly_issued_by(load_certificates(tmp_path / "ca.pem")[0])
    authority = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    expected = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest
    assert authority.key_identifier == expected


def test_a_ca_that_cannot_sign_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())

    def refused(problem: str, now: datetime = NOW) -> None:
        with pytest.raises(ConfigError, match=problem):
            make(tmp_path, now=now)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.key", "ca.pem"]

    write_ca(tmp_path, key, is_ca=False)
    refused(r"ca\.pem is not the certificate of a CA; move")
    write_ca(tmp_path, key)
    refused(r"ca\.pem expired on 2030-04-11", now=NOW + timedelta(days=100))
    certificate = (tmp_path / "ca.pem").read_bytes()
    write_ca(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "ca.pem").write_bytes(certificate)
    refused(r"ca\.key is not the key of .*ca\.pem")
    write_ca(tmp_path, ed25519.Ed25519PrivateKey.generate())
    refused("neither an RSA nor an EC key")
    write_ca(tmp_path, key, encryption=serialization.BestAvailableEncryption(b"x"))
    refused(r"the key .*ca\.key is encrypted")
    load_key(tmp_path / "ca.key", "x")
    (tmp_path / "ca.key").write_bytes(b"garbage")
    refused("no private key in PEM form")


# Renewal


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_renewal_keeps_key_ca_and_names_and_adds_to_them(tmp_path: Path) -> None:
    made = make(tmp_path, "db.example")
    before = contents(tmp_path)
    later = NOW + timedelta(days=800)
    umask = os.umask(0)
    try:
        end = renew(tmp_path / "server.pem", tmp_path / "server.key", ["db.example", "192.0.2.7", "::"], now=later)
    finally:
        os.umask(umask)
    assert end == later + timedelta(days=825)
    after = contents(tmp_path)
    assert [name for name in before if before[name] != after[name]] == ["server.pem"]
    assert names(tmp_path) == ["localhost", "127.0.0.1", "::1", "db.example", "192.0.2.7"]
    leaf = load_certificates(tmp_path / "server.pem")[0]
    leaf.verify_directly_issued_by(load_certificates(made.ca)[0])
    assert leaf.public_key() == load_key(tmp_path / "server.key", None).public_key()
    assert (tmp_path / "server.pem").stat().st_mode & 0o777 == 0o644
    server_context(tmp_path / "server.pem", tmp_path / "server.key")


def test_a_renewal_that_is_interrupted_anywhere_leaves_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    pair = tmp_path / "server.pem", tmp_path / "server.key"
    machine = Machine(monkeypatch, tmp_path)
    stops = 0
    while not machine.run(partial(renew, *pair, now=NOW + timedelta(days=stops)), stops):
        server_context(*pair)
        stops += 1
    assert stops >= 3
    assert sorted(contents(tmp_path)) == ["ca.key", "ca.pem", "server.key", "server.pem"]


def test_a_renewal_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    make(tmp_path)
    (tmp_path / "server.pem").rename(tmp_path / "real" / "one.pem")
    (tmp_path / "server.pem").symlink_to("real/one.pem")
    before = (tmp_path / "server.pem").read_bytes()
    renew(tmp_path / "server.pem", tmp_path / "server.key", now=NOW)
    assert (tmp_path / "server.pem").is_symlink()
    assert (tmp_path / "real" / "one.pem").read_bytes() != before


def without_ca(folder: Path) -> None:
    (folder / "ca.pem").unlink()
    (folder / "ca.key").unlink()


def without_ca_key(folder: Path) -> None:
    (folder / "ca.key").unlink()


def with_another_ca(folder: Path) -> None:
    make(folder / "other")
    for name in ("ca.pem", "ca.key"):
        (folder / "other" / name).rename(folder / name)


def without_certificate(folder: Path) -> None:
    (folder / "server.pem").unlink()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (without_ca, "no CA of ours beside"),
        (without_ca_key, "ca.key is missing"),
        (with_another_ca, "was not signed by"),
        (without_certificate, "cannot read"),
    ],
)
def test_what_we_did_not_make_is_not_renewed(tmp_path: Path, fault: Callable[[Path], None], words: str) -> None:
    make(tmp_path)
    fault(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=words):
        renew(tmp_path / "server.pem", tmp_path / "server.key", now=NOW)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_an_expired_ca_renews_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ConfigError, match=r"ca\.pem expired on .*makes a new CA"):
        renew(tmp_path / "server.pem", tmp_path / "server.key", now=NOW + timedelta(days=4_000))
