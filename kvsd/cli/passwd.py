"""`kvsd passwd`: hash a password."""

import sys

from kvsd.cli.app import JsonOption, new_command
from kvsd.cli.failures import UsageError
from kvsd.cli.output import Output
from kvsd.cli.prompt import ask, read_line

app = new_command()


@app.command("passwd")
def passwd(json: JsonOption = False) -> None:
    """Print the hash of a password, for the config file.

    The Argon2id hash belongs into password_hash of a user in kvsd.users. Asks for the password twice; where stdin is
    no terminal, it is the one line there.

    \b
    Examples:
      kvsd passwd
      kvsd passwd < password.txt
    """
    # Imported here: it brings cryptography along.
    from kvsd.server.authentication import hash_password

    password_hash = hash_password(_password())
    output = Output(as_json=json)
    if json:
        output.document({"password_hash": password_hash})
    else:
        output.line(password_hash)


def _password() -> str:
    if sys.stdin is None or not sys.stdin.isatty():
        return read_line()
    password = ask("Password: ")
    if ask("Again: ") != password:
        raise UsageError("the two passwords differ; run `kvsd passwd` again")
    return password
