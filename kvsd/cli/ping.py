"""`kvsd ping`: measure round trips."""

import time
from typing import Annotated

import typer

from kvsd.cli.app import new_command
from kvsd.cli.client import ClientOptions, client_command
from kvsd.cli.failures import UsageError
from kvsd.cli.interrupts import tidied_up
from kvsd.cli.output import Output
from kvsd.config.values import DAY_SECONDS, seconds

app = new_command()


@app.command("ping")
@client_command
def ping(
    options: ClientOptions,
    count: Annotated[int, typer.Option("-c", "--count", min=1, metavar="N", help="How many.")] = 1,
    interval: Annotated[str, typer.Option("-i", "--interval", metavar="SECONDS", help="Pause between two.")] = "0",
) -> None:
    """Measure round trips to the server.

    Prints one time a line; the summary goes to stderr. Connecting and logging in do not count.

    \b
    Examples:
      kvsd ping
      kvsd ping -c 3
      kvsd ping -c 60 -i 1
    """
    try:
        pause_seconds = seconds(0, DAY_SECONDS)(interval)
    except ValueError as error:
        raise UsageError(f"--interval {error}; `kvsd ping --help` shows what it takes") from None
    summary = _Summary()
    try:
        with tidied_up(), options.connect() as client:
            for number in range(count):
                if number:
                    time.sleep(pause_seconds)
                round_trip_ms = client.ping() * 1000
                summary.add(round_trip_ms)
                if options.json:
                    options.output.document({"seq": number + 1, "round_trip_ms": round(round_trip_ms, 3)})
                else:
                    options.output.line(f"{round_trip_ms:.3f} ms")
    except KeyboardInterrupt:
        summary.report(options.output)
        raise
    summary.report(options.output)


class _Summary:
    """The figures of any number of round trips, in constant space."""

    def __init__(self) -> None:
        self.count = 0
        self._min_ms = float("inf")
        self._max_ms = 0.0
        self._total_ms = 0.0

    def add(self, round_trip_ms: float) -> None:
        self.count += 1
        self._min_ms = min(self._min_ms, round_trip_ms)
        self._max_ms = max(self._max_ms, round_trip_ms)
        self._total_ms += round_trip_ms

    def report(self, output: Output) -> None:
        if not self.count:
            return
        figures = {
            "count": self.count,
            "min_ms": round(self._min_ms, 3),
            "avg_ms": round(self._total_ms / self.count, 3),
            "max_ms": round(self._max_ms, 3),
        }
        in_words = "{count} round trips: min/avg/max {min_ms:.3f}/{avg_ms:.3f}/{max_ms:.3f} ms".format_map(figures)
        output.summary(in_words, figures)
