"""`kvsd version`: which kvsd this is."""

import platform

import kvsd
from kvsd.cli.app import JsonOption, new_command
from kvsd.cli.output import Output

app = new_command()


@app.command("version")
def version(json: JsonOption = False) -> None:
    """Print the version of kvsd.

    \b
    Examples:
      kvsd version
      kvsd version --json
    """
    output = Output(as_json=json)
    if json:
        output.document({"version": kvsd.__version__, "python": platform.python_version()})
    else:
        output.line(f"kvsd {kvsd.__version__}")
