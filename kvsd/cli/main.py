"""The entry point: how every command ends.

Owns: what becomes of an error, an interrupt or a closed pipe, and the exit status. Knows no command.
"""

from __future__ import annotations

import signal
import sys

# Until `main` runs, an interrupt ends in a traceback: what can wait is imported there, `typing` included.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_UNEXPECTED = 1
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` name, those of the process by default; the exit status.

    0 done, 1 failed, 2 usage or configuration, 3 not found, 4 conflict, 5 authentication or denied, 6 cannot connect
    or TLS, 7 timeout, 8 corruption, 130 interrupted. A reader that closes the pipe early has all that it wants: that
    is 0, without a word. With the arguments of the process, an interrupt ends that by its signal, which a shell shows
    as 130.
    """
    if arguments is not None:
        return _run(list(arguments))
    # At once, with no exception and no traceback, whatever it is doing; unless it is ignored, as in background jobs.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    status = _run(sys.argv[1:])
    if status == _INTERRUPTED:
        # Something was tidied up first.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    return status


def _run(given: list[str]) -> int:
    import os
    from itertools import takewhile

    from kvsd.cli.output import Output
    from kvsd.cli.streams import carried_stdout
    from kvsd.errors import DEBUG_VARIABLE, Conflict, KvsdError

    # Looked for here, so that errors in the other arguments come as JSON too.
    output = Output(as_json="--json" in takewhile("--".__ne__, given))
    try:
        from kvsd.cli.commands import run

        with carried_stdout():
            return run(given)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        return 0
    except KvsdError as error:
        facts = {"version": error.version} if isinstance(error, Conflict) and error.version is not None else {}
        output.error(error.code, str(error), facts)
        return error.exit_status
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        # Its kind alone, where its text could quote a value or a password.
        kind = type(error).__name__
        what = f"{kind}: {error.strerror}" if isinstance(error, OSError) else kind
        output.error("UNEXPECTED", f"unexpected {what}; set {DEBUG_VARIABLE}=1 and run the command again to see where")
        return _UNEXPECTED
