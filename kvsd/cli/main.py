"""The entry point: how every command ends.

Owns: what becomes of an error, an interrupt or a closed pipe, and the exit status. Knows no command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Final

from kvsd.cli.descriptors import open_missing
from kvsd.cli.output import Output, discard_stdout
from kvsd.errors import DEBUG_VARIABLE, KvsdError

_UNEXPECTED: Final = 1
_INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` name, those of the process by default; the exit status.

    0 done, 1 failed, 2 usage or configuration, 3 not found, 4 conflict, 5 authentication or denied, 6 cannot connect
    or TLS, 7 timeout, 8 corruption, 130 interrupted. A reader that closes the pipe early has all that it wants: that
    is 0, without a word.
    """
    open_missing()
    given = sys.argv[1:] if arguments is None else list(arguments)
    # Looked for here, so that errors in the other arguments come as JSON too.
    output = Output(as_json="--json" in takewhile("--".__ne__, given))
    try:
        # Imported here: an interrupt during the import is one like any other.
        from kvsd.cli.commands import run

        return run(given)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        discard_stdout()
        return 0
    except KvsdError as error:
        output.error(error.code, str(error))
        return error.exit_status
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        output.error("UNEXPECTED", _unexpected(error))
        return _UNEXPECTED


def _unexpected(error: Exception) -> str:
    """Its kind alone, where its text could quote a value or a password."""
    kind = type(error).__name__
    what = f"{kind}: {error.strerror}" if isinstance(error, OSError) else kind
    return f"unexpected {what}; set {DEBUG_VARIABLE}=1 and run the command again to see where"
