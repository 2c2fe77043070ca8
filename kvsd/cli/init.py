"""`kvsd init`: the files that a server and its clients need."""

import os
import secrets
import shlex
from pathlib import Path
from typing import Annotated, Final

import typer

from kvsd.cli.app import JsonOption, new_command
from kvsd.cli.failures import CommandFailed
from kvsd.cli.interrupts import tidied_up
from kvsd.cli.output import Output, for_json, path_text
from kvsd.config import DEFAULT_HOST, FILE_NAME, SAMPLE_USERNAME, render

app = new_command()

_PASSWORD_BYTES: Final = 24


@app.command("init")
@tidied_up()
def init(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where; made if it is missing.")] = Path(),
    json: JsonOption = False,
) -> None:
    """Write a config.yaml and certificates for a new server.

    They go into FOLDER, by default this one. The password in config.yaml is random, and only its owner can read the
    file. Nothing is ever overwritten; certificates that are there already stay.

    \b
    Examples:
      kvsd init
      kvsd init /etc/kvsd
    """
    # Imported here: they bring cryptography along.
    from kvsd.server.authentication import hash_password
    from kvsd.server.tls import ensure_certificates

    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    text = render(username=SAMPLE_USERNAME, password=password, password_hash=hash_password(password))
    config = folder / FILE_NAME
    certificates = folder / "certs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(config, "x", encoding="utf-8", opener=_for_owner_only) as file:
            try:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
                created = ensure_certificates(
                    certificates / "server.pem", certificates / "server.key", tls_auto=True, listen_host=DEFAULT_HOST
                )
            except BaseException:
                config.unlink()  # or the next run would refuse to do the rest
                raise
    except FileExistsError:
        raise CommandFailed(
            f"{config} exists already, and nothing is overwritten; use it with `kvsd serve`, or name another folder"
        ) from None
    except OSError as error:
        raise CommandFailed(f"cannot write {error.filename or config}: {error.strerror}; name another folder") from None

    files = [config, *(created.files if created else ())]
    next_command = "kvsd serve" if folder == Path() else f"cd {shlex.quote(path_text(folder))} && kvsd serve"
    output = Output(as_json=json)
    if json:
        made = [for_json(os.fsencode(path)) for path in files]
        output.document({"files": made, "username": SAMPLE_USERNAME, "next": next_command})
        return
    for path in files:
        output.line(path_text(path))
    holder = path_text(config)
    output.note(f"made these files; {holder} holds the password of the user {SAMPLE_USERNAME}, so keep it private")
    output.note(f"next: {next_command}")


def _for_owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
