from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from kvsd.config import SAMPLE_PASSWORD, SAMPLE_USERNAME, User, load, render

SHIPPED = Path(__file__).parents[2] / "config.yaml"
HASH = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA"


def test_the_shipped_file_is_the_template_with_the_sample_user() -> None:
    config = load(SHIPPED, environ={}, cwd=Path("/"))
    (user,) = config.storage.users
    assert user.password_hash is not None
    assert SHIPPED.read_text() == render(
        username=SAMPLE_USERNAME, password=SAMPLE_PASSWORD, password_hash=user.password_hash
    )
    assert user.password_hash.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    Argon2id.verify_phc_encoded(SAMPLE_PASSWORD.encode(), user.password_hash)


def test_the_shipped_file_says_what_the_documentation_promises() -> None:
    config = load(SHIPPED, environ={}, cwd=Path("/"))
    server, folder = config.server, SHIPPED.parent
    assert (server.listen_host, server.listen_port, server.tls_auto) == ("127.0.0.1", 7379, True)
    assert (server.tls_certificate, server.tls_key) == (folder / "certs/server.pem", folder / "certs/server.key")
    assert (config.storage.root_dir, config.storage.fsync) == (folder / "data", "always")
    assert (config.client.username, config.client.password) == (SAMPLE_USERNAME, SAMPLE_PASSWORD)
    assert config.client.ca == folder / "certs/ca.pem"
    assert not config.warnings
    assert "kvsd passwd" in SHIPPED.read_text()
    assert "kvsd init" in SHIPPED.read_text()


@pytest.mark.parametrize("text", ["plain", "it's", "a: b #c", "{x}", "*&!%@`", '"\\n"', "ключ 🔑", " ", "null"])
def test_what_is_rendered_is_read_back(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(render(username=text, password=text, password_hash=HASH))
    config = load(path, environ={}, cwd=tmp_path)
    assert config.storage.users == (User(username=text, password_hash=HASH),)
    assert (config.client.username, config.client.password) == (text, text)


def test_an_own_password_is_not_called_the_sample() -> None:
    assert "sample" not in render(username=SAMPLE_USERNAME, password="other", password_hash=HASH)
