"""Real handshakes with every kind of key, and the words for every way in which two files can be wrong."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from kvsd.errors import ConfigError
from kvsd.server.certificates import create
from kvsd.server.tls import ensure_certificates, server_context

PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8
TRADITIONAL = serialization.PrivateFormat.TraditionalOpenSSL
PLAIN = serialization.NoEncryption()
ENCRYPTED = serialization.BestAvailableEncryption(b"open sesame")


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    create(folder / "server.pem", folder / "server.key")
    return folder


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def strict_client(ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str = "localhost") -> ssl.SSLObject:
    """The client's end after a whole handshake in memory, with a byte each way as proof."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_end = server.wrap_bio(to_server, to_client, server_side=True)
    client_end = client.wrap_bio(to_client, to_server, server_hostname=host)

    def step(action: Callable[[], object]) -> bool:
        try:
            action()
        except ssl.SSLWantReadError:
            return False
        return True

    done = [False, False]
    for _ in range(10):
        ends = (client_end, server_end)
        done = [finished or step(end.do_handshake) for finished, end in zip(done, ends, strict=True)]
        if all(done):
            break
    assert all(done)
    client_end.write(b"?")
    assert server_end.read(1) == b"?"
    server_end.write(b"!")
    assert client_end.read(1) == b"!"
    return client_end


def write_self_signed(
    folder: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
) -> Path:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    path = folder / "self.pem"
    path.write_bytes(certificate.public_bytes(PEM))
    return path


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_our_certificate_satisfies_a_strict_client(certs: Path, host: str) -> None:
    server = server_context(certs / "server.pem", certs / "server.key")
    end = handshake(server, strict_client(certs / "ca.pem"), host)
    assert end.version() == "TLSv1.3"


def test_a_client_still_refuses_another_host_and_another_ca(certs: Path, tmp_path: Path) -> None:
    server = server_context(certs / "server.pem", certs / "server.key")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server, strict_client(certs / "ca.pem"), "example.org")
    other = create(tmp_path / "server.pem", tmp_path / "server.key")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(server, strict_client(other.ca))


def test_tls_1_2_is_spoken_and_nothing_older(certs: Path) -> None:
    server = server_context(certs / "server.pem", certs / "server.key")
    client = strict_client(certs / "ca.pem")
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert handshake(server, client).version() == "TLSv1.2"
    assert server.minimum_version == ssl.TLSVersion.TLSv1_2
    assert server.options & ssl.OP_NO_RENEGOTIATION
    assert server.options & ssl.OP_NO_COMPRESSION


@pytest.mark.parametrize(
    ("kind", "form", "encryption", "first_line"),
    [
        ("rsa", TRADITIONAL, PLAIN, b"BEGIN RSA PRIVATE KEY"),
        ("rsa", TRADITIONAL, ENCRYPTED, b"BEGIN RSA PRIVATE KEY"),
        ("rsa", PKCS8, PLAIN, b"BEGIN PRIVATE KEY"),
        ("rsa", PKCS8, ENCRYPTED, b"BEGIN ENCRYPTED PRIVATE KEY"),
        ("ec", TRADITIONAL, PLAIN, b"BEGIN EC PRIVATE KEY"),
        ("ec", TRADITIONAL, ENCRYPTED, b"BEGIN EC PRIVATE KEY"),
        ("ec", PKCS8, PLAIN, b"BEGIN PRIVATE KEY"),
        ("ec", PKCS8, ENCRYPTED, b"BEGIN ENCRYPTED PRIVATE KEY"),
    ],
)
def test_every_form_of_key_serves(
    tmp_path: Path,
    rsa_key: rsa.RSAPrivateKey,
    ec_key: ec.EllipticCurvePrivateKey,
    kind: str,
    form: serialization.PrivateFormat,
    encryption: serialization.KeySerializationEncryption,
    first_line: bytes,
) -> None:
    private = rsa_key if kind == "rsa" else ec_key
    certificate, key = write_self_signed(tmp_path, private), tmp_path / "self.key"
    key.write_bytes(private.private_bytes(PEM, form, encryption))
    assert first_line in key.read_bytes().splitlines()[0]
    client = ssl.create_default_context(cafile=certificate)
    handshake(server_context(certificate, key, "open sesame"), client)

    if encryption is ENCRYPTED:
        with pytest.raises(ConfigError, match=r"self\.key is encrypted; .*KVSD_SERVER_TLS_KEY_PASSPHRASE"):
            server_context(certificate, key)
        for wrong in ("shut sesame", "", "x" * 1025):
            with pytest.raises(ConfigError, match="KVSD_SERVER_TLS_KEY_PASSPHRASE is") as caught:
                server_context(certificate, key, wrong)
            assert "sesame" not in str(caught.value)
    else:
        handshake(server_context(certificate, key), client)


KEYS = {
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize("kind", KEYS)
def test_ordinary_clients_connect_whatever_the_certificate_is_of(
    tmp_path: Path, kind: str, version: ssl.TLSVersion
) -> None:
    """Those that know many curves, and those that know P-256 alone."""
    private = KEYS[kind]()
    certificate, key = write_self_signed(tmp_path, private), tmp_path / "self.key"
    key.write_bytes(private.private_bytes(PEM, PKCS8, PLAIN))
    server = server_context(certificate, key)
    client = ssl.create_default_context(cafile=certificate)
    client.minimum_version = client.maximum_version = version
    assert handshake(server, client).version() == version.name.replace("_", ".")
    # A client of TLS 1.2 must know the curve of the certificate as well.
    if version is ssl.TLSVersion.TLSv1_3 or kind in {"rsa", "P-256", "ed25519"}:
        client.set_ecdh_curve("prime256v1")
        handshake(server, client)


def test_an_encrypted_key_never_prompts_on_the_terminal(
    tmp_path: Path, ec_key: ec.EllipticCurvePrivateKey, capfd: pytest.CaptureFixture[str]
) -> None:
    certificate, key = write_self_signed(tmp_path, ec_key), tmp_path / "self.key"
    key.write_bytes(ec_key.private_bytes(PEM, PKCS8, ENCRYPTED))
    with pytest.raises(ConfigError):
        server_context(certificate, key)
    assert capfd.readouterr() == ("", "")


def test_a_key_behind_its_curve_parameters_serves(tmp_path: Path, ec_key: ec.EllipticCurvePrivateKey) -> None:
    # The form that `openssl ecparam -genkey` writes.
    certificate, key = write_self_signed(tmp_path, ec_key), tmp_path / "self.key"
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    key.write_bytes(parameters + ec_key.private_bytes(PEM, TRADITIONAL, PLAIN))
    handshake(server_context(certificate, key), ssl.create_default_context(cafile=certificate))


def test_certificate_and_key_may_share_a_file(tmp_path: Path, ec_key: ec.EllipticCurvePrivateKey) -> None:
    both = write_self_signed(tmp_path, ec_key)
    both.write_bytes(both.read_bytes() + ec_key.private_bytes(PEM, PKCS8, PLAIN))
    handshake(server_context(both, both), ssl.create_default_context(cafile=both))
    assert ensure_certificates(both, both, tls_auto=True, listen_host="localhost") is None


def test_missing_unreadable_and_swapped_files_are_named(certs: Path, tmp_path: Path) -> None:
    certificate, key = certs / "server.pem", certs / "server.key"
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.pem: No such file.*`kvsd certs init`"):
        server_context(tmp_path / "absent.pem", key)
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.key: No such file"):
        server_context(certificate, tmp_path / "absent.key")
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        server_context(certificate, tmp_path)
    with pytest.raises(ConfigError, match=r"server\.key holds no certificate in PEM form"):
        server_context(key, certificate)
    with pytest.raises(ConfigError, match=r"server\.pem holds no private key in PEM form"):
        server_context(certificate, certificate)


def test_a_key_of_another_certificate_is_told_apart_from_damage(
    certs: Path, tmp_path: Path, rsa_key: rsa.RSAPrivateKey
) -> None:
    certificate = certs / "server.pem"
    with pytest.raises(ConfigError, match=r"ca\.key does not belong to the certificate .*server\.pem"):
        server_context(certificate, certs / "ca.key")
    key = tmp_path / "rsa.key"
    key.write_bytes(rsa_key.private_bytes(PEM, PKCS8, PLAIN))
    with pytest.raises(ConfigError, match=r"rsa\.key does not belong to the certificate"):
        server_context(certificate, key)


@pytest.mark.parametrize("damaged", ["server.pem", "server.key"])
def test_a_damaged_file_is_a_config_error(certs: Path, tmp_path: Path, damaged: str) -> None:
    for name in ("server.pem", "server.key"):
        (tmp_path / name).write_bytes((certs / name).read_bytes())
    lines = (tmp_path / damaged).read_text().splitlines(keepends=True)
    (tmp_path / damaged).write_text("".join([lines[0], *lines[2:]]))
    with pytest.raises(ConfigError, match=r"OpenSSL refuses .*`kvsd certs check`"):
        server_context(tmp_path / "server.pem", tmp_path / "server.key")


def test_certificates_make_themselves_once_and_serve(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certs" / "server.pem", tmp_path / "certs" / "server.key"
    created = ensure_certificates(certificate, key, tls_auto=True, listen_host="192.0.2.7")
    assert created is not None
    assert [path.name for path in created.files] == ["ca.key", "ca.pem", "server.key", "server.pem"]
    handshake(server_context(certificate, key), strict_client(created.ca), "192.0.2.7")
    before = certificate.read_bytes()
    assert ensure_certificates(certificate, key, tls_auto=True, listen_host="192.0.2.8") is None
    assert ensure_certificates(certificate, key, tls_auto=False, listen_host="192.0.2.8") is None
    assert certificate.read_bytes() == before


def test_without_tls_auto_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither .*server\.pem nor .*server\.key exists.*`kvsd certs init`"):
        ensure_certificates(tmp_path / "server.pem", tmp_path / "server.key", tls_auto=False, listen_host="localhost")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tls_auto", [True, False])
@pytest.mark.parametrize(("present", "missing"), [("server.pem", "server.key"), ("server.key", "server.pem")])
def test_one_of_a_pair_refuses_the_start(tmp_path: Path, tls_auto: bool, present: str, missing: str) -> None:
    (tmp_path / present).write_bytes(b"mine")
    with pytest.raises(ConfigError, match=rf"{missing} is missing, while .*{present} exists.*`kvsd certs init`"):
        ensure_certificates(
            tmp_path / "server.pem", tmp_path / "server.key", tls_auto=tls_auto, listen_host="localhost"
        )
    assert [path.name for path in tmp_path.iterdir()] == [present]


def test_a_start_after_an_interrupted_one_finishes_the_pair(tmp_path: Path) -> None:
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    ca = create(certificate, key).ca
    certificate.rename(tmp_path / ".new-server.pem")
    created = ensure_certificates(certificate, key, tls_auto=True, listen_host="localhost")
    assert created is not None
    assert created.files == (key, certificate)
    handshake(server_context(certificate, key), strict_client(ca))
