"""The config file that `kvsd init` writes, and, with the sample user, the config.yaml that comes with kvsd.

Owns: the wording of that file. Must not know how a file is read, or how a password is made or hashed.
"""

from __future__ import annotations

from typing import Final

SAMPLE_USERNAME: Final = "kvsduser"
SAMPLE_PASSWORD: Final = "secret"  # noqa: S105 - public: the server refuses it beyond loopback

_SAMPLE_NOTE: Final = """\
    # The sample user, whose password everybody knows. It is for trying kvsd on one machine: with it
    # the server refuses to listen beyond loopback. `kvsd passwd` prints a hash for another password;
    # `kvsd init` writes a file like this one with a random password."""

_OWN_NOTE: Final = """\
    # `kvsd passwd` prints a hash for another password."""

_TEMPLATE: Final = """\
# kvsd configuration. Relative paths start at the folder of this file.
# `kvsd config show` prints all settings, their values, and where each comes from.

server:
  listen_host: 127.0.0.1
  listen_port: 7379
  tls_certificate: certs/server.pem
  tls_key: certs/server.key
  # Where neither file exists, make a local CA (certs/ca.pem) and a certificate on start.
  tls_auto: true

kvsd:
  root_dir: data
  # always: an OK is on disk. interval: synced each fsync_interval_ms. never: left to the system.
  fsync: always
  segment_bytes: 128 MiB
  users:
{note}
    - username: {username}
      password_hash: {password_hash}

# What `kvsd get` and the other client commands use. Host and port are those of the server above.
client:
  username: {username}
  password: {password}
  ca: certs/ca.pem
"""


def render(*, username: str, password: str, password_hash: str) -> str:
    """A config file with one user, who is also the client's. It holds the password: keep it at mode 0600.

    `username` and `password` must be on one line, as the settings demand.
    """
    return _TEMPLATE.format(
        note=_SAMPLE_NOTE if password == SAMPLE_PASSWORD else _OWN_NOTE,
        username=_quoted(username),
        password=_quoted(password),
        password_hash=_quoted(password_hash),
    )


def _quoted(text: str) -> str:
    """A YAML scalar in single quotes: nothing but the quote itself has a meaning in it."""
    return "'" + text.replace("'", "''") + "'"
