"""The certificate that is served, looked at when the server starts and every day.

Owns: when it is looked at, and what is logged then. Must not know what makes a certificate good: inspection does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from kvsd.errors import ConfigError
from kvsd.server.aside import aside
from kvsd.server.inspection import Finding, check, inspect
from kvsd.server.reporting import Reporter

_DAY: Final = timedelta(days=1)


class CertificateWatch:
    """Made when the server has loaded the certificate; then `look`, and `run` until it is cancelled."""

    def __init__(
        self,
        certificate: Path,
        key: Path,
        *,
        ca: Path | None,
        host: str,
        passphrase: str | None,
        reporter: Reporter,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._served = inspect(certificate)
        self._key = key
        self._ca = ca
        self._host = host
        self._passphrase = passphrase
        self._reporter = reporter
        self._now = now

    async def look(self) -> None:
        """Warn of all that somebody has to act on."""
        path = self._served.path
        try:
            findings = await aside(self._findings)
        except ConfigError as error:
            self._reporter.warning(f"certificate: it is served, but cannot be looked at: {error}", file=str(path))
            return
        for finding in findings:
            if not finding.ok:
                self._reporter.warning(f"certificate: {finding.text}", about=finding.about, file=str(path))

    async def run(self) -> None:
        """Look once a day, and when the certificate expires."""
        while True:
            await asyncio.sleep(self.pause_seconds())
            await self.look()

    def pause_seconds(self) -> float:
        """Seconds until the next look."""
        left = self._served.not_after - self._now()
        return (left if timedelta() < left < _DAY else _DAY).total_seconds()

    def _findings(self) -> list[Finding]:
        served, now = self._served, self._now()
        findings = check(served.path, self._key, ca=self._ca, host=self._host, passphrase=self._passphrase, now=now)
        if inspect(served.path).fingerprint != served.fingerprint:
            text = "there is another one on the disk than the server uses; restart it"
            if served.not_after <= now:
                text = f"the one that is served expired on {served.not_after:%Y-%m-%d}, and {text}"
            findings.append(Finding("expiry", False, text))
        return findings
