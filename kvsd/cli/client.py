"""The options that every client command takes, and the client that they make.

Owns: ClientOptions and the step from there to a Client. Must not know what a command does with it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.main import get_command

from kvsd.cli import prompt
from kvsd.cli.app import ConfigOption, JsonOption, new_command, options_of
from kvsd.cli.failures import OutputFailed, UsageError
from kvsd.cli.output import Output
from kvsd.cli.settings import load_settings
from kvsd.config import Config
from kvsd.errors import AuthenticationError

if TYPE_CHECKING:
    from kvsd.client.settings import ConnectSettings
    from kvsd.client.sync import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """What was given on the command line, as text; None is what was not. Checking it is up to `kvsd.config`."""

    config: ConfigOption = None
    host: Annotated[str | None, typer.Option("--host", metavar="HOST", help="Host of the server.")] = None
    port: Annotated[str | None, typer.Option("--port", metavar="PORT", help="Port of the server.")] = None
    username: Annotated[str | None, typer.Option("--username", metavar="NAME", help="User to log in as.")] = None
    password_file: Annotated[
        Path | None, typer.Option("--password-file", metavar="FILE", help="File whose first line is the password.")
    ] = None
    askpass: Annotated[bool, typer.Option("--askpass", help="Ask for the password on the terminal.")] = False
    ca: Annotated[
        str | None, typer.Option("--ca", metavar="FILE", help="PEM file with the only CA to trust (ca.pem).")
    ] = None
    insecure: Annotated[bool, typer.Option("--insecure", help="Do not verify the server's certificate.")] = False
    disable_tls: Annotated[
        bool, typer.Option("--disable-tls", help="No TLS: the password and all values can be read on the way.")
    ] = False
    timeout: Annotated[str | None, typer.Option("--timeout", metavar="SECONDS", help="Longest wait for an answer.")] = (
        None
    )
    namespace: Annotated[
        str | None, typer.Option("--namespace", metavar="NAME", help="Namespace of the table (default).")
    ] = None
    table: Annotated[
        str | None, typer.Option("--table", metavar="NAME", help="Table of the keys (default), or NAMESPACE/TABLE.")
    ] = None
    json: JsonOption = False

    @property
    def output(self) -> Output:
        return Output(as_json=self.json)

    def connect(self) -> "Client":
        """A client of the server that `settings` names; opens nothing yet. Raises what that does."""
        # Imported here: the help needs no TLS.
        from kvsd.client.sync import Client

        return Client(self.settings(), pool_size=1)

    def settings(self) -> "ConnectSettings":
        """The server that options, environment and config file name, and who to log in as.

        Raises ConfigError, UsageError, and AuthenticationError where nothing says who to log in as.
        """
        from kvsd.client.settings import INSECURE_WARNING

        config = load_settings(
            self.config,
            self.output,
            flags={
                "client.host": ("--host", self.host),
                "client.port": ("--port", self.port),
                "client.username": ("--username", self.username),
                "client.password": self._password(),
                "client.ca": ("--ca", self.ca),
                "client.insecure": ("--insecure", self.insecure or None),
                "client.disable_tls": ("--disable-tls", self.disable_tls or None),
                "client.timeout": ("--timeout", self.timeout),
                "client.namespace": ("--namespace", self.namespace),
                "client.table": ("--table", self.table),
            },
        )
        if config.client.insecure and not config.client.disable_tls:
            self.output.warning(INSECURE_WARNING)
        settings = _settings(config)
        if self.namespace not in {None, settings.namespace}:
            raise UsageError(
                f"--namespace {self.namespace} is not that of the table {config.client.table}, which comes from "
                f"{config.origins['client.table']}; give --table NAMESPACE/TABLE only"
            )
        return settings

    def _password(self) -> tuple[str, str | None]:
        """The flag that says the password, and the password."""
        if self.askpass and self.password_file is not None:
            raise UsageError("--askpass and --password-file exclude each other; give one of them")
        if self.askpass:
            return "--askpass", prompt.ask("Password: ")
        return "--password-file", None if self.password_file is None else prompt.read_file(self.password_file)


def client_command(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, whose first parameter is a ClientOptions, as typer sees it: with an option for each field of that."""
    shared = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(ClientOptions)
    ]
    _, *own = inspect.signature(command).parameters.values()

    def run(**given: Any) -> None:  # Any: typer has converted each to what its parameter says
        options = ClientOptions(**{parameter.name: given.pop(parameter.name) for parameter in shared})
        command(options, **given)

    run.__doc__ = command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared)}
    # What inspect, and with it typer, believes.
    vars(run)["__signature__"] = inspect.Signature([*own, *shared])
    return run


def shared_options() -> dict[str, bool]:
    """The options of ClientOptions by name, and whether an argument follows."""
    app = new_command()
    app.command()(client_command(lambda options: None))
    return options_of(get_command(app))


def changing_command(command: Callable[..., None]) -> Callable[..., None]:
    """The same for a command that prints only after it has changed something: where that fails, it tells both."""

    def run(options: ClientOptions, **given: Any) -> None:  # Any: as above
        try:
            command(options, **given)
        except OutputFailed as error:
            raise OutputFailed(f"it is done, but the answer is lost: {error}") from None

    run.__doc__ = command.__doc__
    vars(run)["__signature__"] = inspect.signature(command)
    return client_command(run)


def _settings(config: Config) -> "ConnectSettings":
    from kvsd.client.settings import ConnectSettings, place_of

    client = config.client
    if client.username is None or client.password is None:
        raise AuthenticationError(_nobody(config))
    namespace, table = place_of(client.namespace, client.table)
    return ConnectSettings(
        username=client.username,
        password=client.password,
        host=client.host,
        port=client.port,
        ca=client.ca,
        insecure=client.insecure,
        disable_tls=client.disable_tls,
        timeout_seconds=client.timeout,
        namespace=namespace,
        table=table,
    )


def _nobody(config: Config) -> str:
    missing = "user name" if config.client.username is None else "password"
    if config.path is None:
        return (
            f"no {missing} is set and no config file was found; run the command in the folder of the server's "
            "config.yaml, name that with --config, write one with `kvsd init`, or set KVSD_USERNAME and KVSD_PASSWORD"
        )
    return (
        f"no {missing} is set in {config.path}; add client.username and client.password there, "
        "or set KVSD_USERNAME and KVSD_PASSWORD"
    )
