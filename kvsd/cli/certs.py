"""`kvsd certs`: make, show and check certificates."""

import os
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from kvsd.cli.app import ConfigOption, JsonOption, new_group
from kvsd.cli.interrupts import tidied_up
from kvsd.cli.output import Output, for_json, path_text
from kvsd.cli.settings import load_settings
from kvsd.config import Config
from kvsd.errors import ConfigError

CertificateOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--tls-certificate", metavar="FILE", help="The server's certificate; by default the configured one."),
]
HostOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--host", metavar="NAME", help="A further name or address of the server; may be repeated."),
]
KeyOption: TypeAlias = Annotated[
    str | None, typer.Option("--tls-key", metavar="FILE", help="Its private key; by default the configured one.")
]

app = new_group("Make, show and check the server's certificate and its local CA.")


@app.command()
@tidied_up()
def init(
    host: HostOption = None,
    config: ConfigOption = None,
    tls_certificate: CertificateOption = None,
    tls_key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Make a server certificate, and a CA beside it where there is none.

    It is valid for localhost, 127.0.0.1, ::1, the configured listen host and each --host. Nothing is overwritten:
    `kvsd certs renew` renews a certificate.

    \b
    Examples:
      kvsd certs init
      kvsd certs init --host db.example.net --host 192.0.2.7
    """
    output = Output(as_json=json)
    settings = _load(config, tls_certificate, tls_key, output)
    certificate, key = _pair(settings)
    # Imported here: it brings cryptography along.
    from kvsd.server.certificates import create

    created = create(certificate, key, [settings.server.listen_host, *(host or ())])
    if json:
        files = [for_json(os.fsencode(file)) for file in created.files]
        output.document({"files": files, "ca": for_json(os.fsencode(created.ca))})
        return
    for file in created.files:
        output.line(path_text(file))
    ca = path_text(created.ca)
    output.note(f"made these files; clients on other machines need a copy of {ca}, and of nothing else")


@app.command()
@tidied_up()
def renew(
    host: HostOption = None,
    config: ConfigOption = None,
    tls_certificate: CertificateOption = None,
    tls_key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Replace the server's certificate by one that is valid for longer, or for further names.

    The key and the CA stay as they are, so clients need nothing new. A server that runs uses the new certificate once
    it is restarted.

    \b
    Examples:
      kvsd certs renew
      kvsd certs renew --host db.example.net
    """
    output = Output(as_json=json)
    settings = _load(config, tls_certificate, tls_key, output)
    certificate, key = _pair(settings)
    # Imported here: it brings cryptography along.
    from kvsd.server.certificates import renew as renew_certificate

    end = renew_certificate(certificate, key, [settings.server.listen_host, *(host or ())])
    if json:
        output.document({"files": [for_json(os.fsencode(certificate))], "not_after": end.isoformat()})
        return
    output.line(path_text(certificate))
    output.note(f"renewed it, until {end:%Y-%m-%d}; restart the server, which uses the old one until then")


@app.command()
def show(
    config: ConfigOption = None,
    tls_certificate: CertificateOption = None,
    json: JsonOption = False,
) -> None:
    """Show whom the server's certificate and its CA name, and for how long.

    \b
    Examples:
      kvsd certs show
      kvsd certs show --tls-certificate certs/server.pem
    """
    output = Output(as_json=json)
    settings = _load(config, tls_certificate, None, output)
    certificate = _certificate(settings)
    # Imported here: it brings cryptography along.
    from kvsd.server.inspection import inspect

    ca = _ca(settings)
    for number, path in enumerate([certificate] if ca is None else [certificate, ca]):
        found = inspect(path)
        facts = {
            "certificate": path_text(found.path),
            "subject": found.subject,
            "issuer": found.issuer,
            "names": ", ".join(found.names) or "none",
            "valid from": f"{found.not_before:%Y-%m-%d %H:%M} UTC",
            "valid until": f"{found.not_after:%Y-%m-%d %H:%M} UTC",
            "SHA-256": found.fingerprint,
        }
        if json:
            output.document(
                {
                    "certificate": for_json(os.fsencode(found.path)),
                    "subject": found.subject,
                    "issuer": found.issuer,
                    "names": list(found.names),
                    "not_before": found.not_before.isoformat(),
                    "not_after": found.not_after.isoformat(),
                    "sha256": found.fingerprint,
                }
            )
            continue
        if number:
            output.line("")
        for name, fact in facts.items():
            output.line(f"{name:<12} {fact}")


@app.command()
def check(
    host: Annotated[
        str | None,
        typer.Option("--host", metavar="NAME", help="The name that clients connect to; by default client.host."),
    ] = None,
    config: ConfigOption = None,
    tls_certificate: CertificateOption = None,
    tls_key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Check the certificate's expiry, chain, host and key.

    The exit status is 1 where something is wrong, and 2 where there is no certificate to check.

    \b
    Examples:
      kvsd certs check
      kvsd certs check --host db.example.net
    """
    output = Output(as_json=json)
    settings = _load(config, tls_certificate, tls_key, output)
    certificate, key = _pair(settings)
    # Imported here: it brings cryptography along.
    from kvsd.server.inspection import check as check_pair

    findings = check_pair(
        certificate,
        key,
        ca=_ca(settings),
        host=settings.client.host if host is None else host,
        passphrase=settings.server.tls_key_passphrase,
    )
    for finding in findings:
        if json:
            output.document({"about": finding.about, "ok": finding.ok, "text": finding.text})
        else:
            output.line(f"{'ok' if finding.ok else 'WRONG':<6} {finding.about:<7} {finding.text}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _load(config: Path | None, tls_certificate: str | None, tls_key: str | None, output: Output) -> Config:
    flags = {
        "server.tls_certificate": ("--tls-certificate", tls_certificate),
        "server.tls_key": ("--tls-key", tls_key),
    }
    return load_settings(config, output, flags=flags)


def _certificate(settings: Config) -> Path:
    if settings.server.tls_certificate is None:
        raise ConfigError("no certificate is configured; pass --tls-certificate, or write a config with `kvsd init`")
    return settings.server.tls_certificate


def _pair(settings: Config) -> tuple[Path, Path]:
    certificate = _certificate(settings)
    if settings.server.tls_key is None:
        raise ConfigError("no key is configured; pass --tls-key, or write a config with `kvsd init`")
    return certificate, settings.server.tls_key


def _ca(settings: Config) -> Path | None:
    """The CA that clients trust: the configured one, or the one beside the certificate."""
    if settings.client.ca is not None:
        return settings.client.ca
    beside = _certificate(settings).with_name("ca.pem")
    return beside if beside.exists() else None
