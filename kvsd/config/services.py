"""The variables that Kubernetes, and Docker for linked containers, set for each service beside a process.

Owns: how they look: a service called kvsd makes KVSD_PORT=tcp://10.0.0.7:7379, and more. Must not know any setting.
Nobody who wants to set something writes so, and nobody who has such a service can help it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_ADDRESS: Final = re.compile(r"(?:tcp|udp|sctp)://\S+:[0-9]+")
_PORT: Final = "_PORT"
_NAME: Final = re.compile(
    r"(KVSD(?:_[A-Z0-9]+)*?)_"
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_OF_DOCKER: Final = re.compile(r"_(?:NAME|ENV_.+)")
_SHOWN: Final = 3


def is_address(name: str, text: str) -> bool:
    """Tell whether the variable `name` says where a service is; a setting of that name is not set by it."""
    return name.endswith(_PORT) and _ADDRESS.fullmatch(text) is not None


def find(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables KVSD… that are about a service → the service as they call it (KVSD, KVSD_SERVER)."""
    ours = sorted(name for name in environ if name.startswith("KVSD_"))
    addresses = [name.removesuffix(_PORT) for name in ours if is_address(name, environ[name])]
    found: dict[str, str] = {}
    for name in ours:
        if is_address(name, environ[name]):
            found[name] = name.removesuffix(_PORT)
        elif match := _NAME.fullmatch(name):
            found[name] = match[1]
        else:
            for service in addresses:
                if name.startswith(service) and _OF_DOCKER.fullmatch(name, len(service)):
                    found[name] = service
    return found


def warning(found: Mapping[str, str]) -> str:
    """One sentence about all that `find` has found."""
    names, services = sorted(found, key=len), sorted(set(found.values()))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    called = " and ".join(service.lower().replace("_", "-") for service in services)
    return (
        f"environment {', '.join(names[:_SHOWN])}{more}: passed over, as Kubernetes or Docker set them for a service "
        f"called {called}; rename that, or set enableServiceLinks: false in the pod"
    )
