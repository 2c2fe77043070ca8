"""`kvsd serve`: run the server."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvsd.cli.app import new_command
from kvsd.cli.failures import CommandFailed
from kvsd.cli.interrupts import tidied_up
from kvsd.cli.output import Output, as_text
from kvsd.config import load

if TYPE_CHECKING:
    from kvsd.server import Server

app = new_command()


@app.command("serve")
@tidied_up()
def serve(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-C", metavar="FILE", help="Config file; by default ./config.yaml and other places."),
    ] = None,
    listen_host: Annotated[
        str | None, typer.Option("--listen-host", metavar="HOST", help="Host name or address to listen on.")
    ] = None,
    listen_port: Annotated[
        str | None, typer.Option("--listen-port", metavar="PORT", help="Port to listen on; 0 picks a free one.")
    ] = None,
    root_dir: Annotated[str | None, typer.Option("--root-dir", metavar="DIR", help="Folder of the data.")] = None,
    disable_tls: Annotated[bool, typer.Option("--disable-tls", help="Listen without TLS.")] = False,
    tls_certificate: Annotated[
        str | None, typer.Option("--tls-certificate", metavar="FILE", help="PEM file with the certificate chain.")
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option("--tls-key", metavar="FILE", help="PEM file with the private key.")
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning, error or critical."),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            "--log-format", metavar="FORMAT", help="console, json, or auto: console on a terminal, else JSON."
        ),
    ] = None,
) -> None:
    """Run the server.

    It runs until SIGINT, SIGTERM or SIGQUIT, and then finishes what is in flight; a second signal stops it at once.

    Prints one line "kvsd ready on HOST:PORT ..." for each address once clients can connect. Logs go to stderr.

    \b
    Examples:
      kvsd serve
      kvsd serve --config /etc/kvsd/config.yaml
      kvsd serve --listen-port 0 --root-dir /tmp/data --log-level debug
    """
    settings = load(
        config,
        flags={
            "server.listen_host": ("--listen-host", listen_host),
            "server.listen_port": ("--listen-port", listen_port),
            "kvsd.root_dir": ("--root-dir", root_dir),
            "server.disable_tls": ("--disable-tls", disable_tls or None),
            "server.tls_certificate": ("--tls-certificate", tls_certificate),
            "server.tls_key": ("--tls-key", tls_key),
            "server.log_level": ("--log-level", log_level),
            "server.log_format": ("--log-format", log_format),
        },
        file_required=True,
    )
    # Imported here: the server brings asyncio, cryptography and structlog along.
    from kvsd.server.reporting import make_reporter
    from kvsd.server.server import serve as serve_until_stopped

    reporter = make_reporter(settings.server.log_level, settings.server.log_format)
    for warning in settings.warnings:
        reporter.warning(warning)
    serve_until_stopped(settings, _announce)


def _announce(server: "Server") -> None:
    # Whoever was to read the line may be gone; the clients are not.
    with suppress(BrokenPipeError, CommandFailed):
        for address in server.addresses:
            # Its path is text of the locale.
            Output().line(as_text(os.fsencode(server.ready_line(address))))
