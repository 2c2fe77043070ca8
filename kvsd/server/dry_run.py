"""The reasons for which a server refuses to start, found without starting one.

Owns: the list of what is looked at; each is the server's own code. Changes nothing on the disk, and does not mind a
server that runs with the same configuration.
"""

from __future__ import annotations

import asyncio
import errno

from kvsd.config import Config
from kvsd.errors import ConfigError
from kvsd.server.authentication import Authenticator
from kvsd.server.catalog import Catalog
from kvsd.server.directory import check_usable, refuse_foreign
from kvsd.server.inspection import check as check_pair
from kvsd.server.listener import bind
from kvsd.server.pem import Pair
from kvsd.server.server import ca_beside, certificate_pair, check_exposure
from kvsd.server.tls import ensure_certificates, server_context


def check(config: Config) -> list[str]:
    """The warnings of a start, but for what only a running server can know. Raises ConfigError as a start would."""
    check_exposure(config)
    root = config.storage.root_dir
    check_usable(root)
    if root.exists():
        refuse_foreign(root)
        Catalog(root)
    warnings = _check_certificates(config)
    asyncio.run(Authenticator.from_users(config.storage.users).close())
    _check_address(config)
    return warnings


def _check_certificates(config: Config) -> list[str]:
    pair = certificate_pair(config)
    if pair is None:
        return []
    certificate, key = pair
    settings = config.server
    if settings.tls_auto and not Pair(certificate, key).exists():
        return []  # the start makes them
    ensure_certificates(certificate, key, tls_auto=False, listen_host=settings.listen_host)
    server_context(certificate, key, settings.tls_key_passphrase)
    findings = check_pair(
        certificate,
        key,
        ca=ca_beside(certificate) or config.client.ca,
        host=settings.listen_host,
        passphrase=settings.tls_key_passphrase,
    )
    return [f"certificate: {finding.text}" for finding in findings if not finding.ok]


def _check_address(config: Config) -> None:
    settings = config.server
    try:
        for listening in bind(settings.listen_host, settings.listen_port, settings.backlog):
            listening.close()
    except ConfigError as error:
        in_use = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
        if not in_use:  # else by the very server, perhaps
            raise
