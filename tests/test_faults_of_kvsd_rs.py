"""What went wrong with the Rust program kvsd 0.1.3, fault by fault, and the tests that show it does not happen here.

Behind the table stand those tests that have no better place.
"""

from __future__ import annotations

import ast
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from time import monotonic

import pytest

from kvsd.client import aio_connection, sync_connection
from kvsd.client.acquaintance import Acquaintance
from kvsd.client.settings import ConnectSettings
from kvsd.client.tls import client_context
from kvsd.config import load
from kvsd.errors import CannotConnect

from .conftest import Start

TESTS = Path(__file__).parent

FAULTS: dict[str, tuple[str, ...]] = {
    # Data
    "a read of an empty value ends the only table task": (
        "cli/test_values.py::test_an_empty_value_is_not_a_missing_one",
        "server/test_session.py::test_the_rust_client_is_answered_with_the_rust_servers_bytes",
        "table/test_cache.py::test_empty_values_are_kept",
    ),
    "a torn tail is served short, or ends the start in a panic": (
        "table/test_recovery.py::test_damage_at_any_byte_is_an_acknowledged_prefix_or_is_told",
        "table/test_recovery.py::test_a_torn_tail_is_set_aside_each_time_under_its_own_name",
        "table/test_segment.py::test_a_file_that_has_become_shorter_is_damaged_and_not_served_short",
    ),
    "checksums are written and never checked": (
        "table/test_segment.py::test_a_flip_of_any_byte_of_an_entry_is_never_served",
        "table/test_actor.py::test_damage_fails_its_own_key_alone_and_the_key_can_be_deleted",
        "server/test_kvsd_rs.py::test_a_flip_of_any_byte_is_seen_or_cuts_off_only_the_tail",
    ),
    "a read that fails leaves the write cursor in the middle, and the next set overwrites other entries": (
        "crash/test_io_errors.py::test_a_read_that_fails_concerns_its_own_key_alone",
        "table/test_actor.py::test_a_failing_disk_fails_reads_one_by_one",
    ),
    "sets on a full disk are acknowledged and not stored": (
        "table/test_full_disk.py::test_a_full_disk_takes_no_values_still_deletes_and_resumes_when_there_is_room",
        "crash/test_full_disk.py::test_a_crash_around_a_full_disk_loses_nothing_acknowledged",
    ),
    "nothing is ever synced": (
        "table/test_actor.py::test_an_ok_comes_behind_the_sync_that_covers_it",
        "crash/test_power_loss.py::test_a_power_cut_after_any_operation_loses_nothing_promised",
        "crash/test_kill.py::test_acknowledged_writes_survive_sigkill",
    ),
    "a second server on the same directory overwrites the entries of the first": (
        "server/test_directory.py::test_an_owner_in_another_process_counts_and_its_death_frees_the_directory",
        "cli/test_serve.py::test_a_second_server_on_the_same_data_is_refused",
    ),
    # The one fault that is only prepared for: compaction is to come, and the format carries what it needs.
    "the log is never compacted": (
        "table/test_segment.py::test_every_field_comes_back",
        "table/test_recovery.py::test_every_kind_has_its_effect",
    ),
    # Denial of service
    "EMFILE in accept ends the server": (
        "server/test_listener.py::test_exhaustion_backs_off_longer_and_longer_and_is_survived",
        "hostile/test_descriptors.py::test_a_server_without_descriptors_survives_and_serves_again",
        "hostile/test_descriptors.py::test_a_table_without_descriptors_takes_writes_when_there_are_some_again",
    ),
    "peers that are silent in the TLS handshake hold their permits for ever": (
        "hostile/test_silence.py::test_silence_in_the_handshake_returns_the_permit",
        "hostile/test_silence.py::test_more_silent_peers_than_permits_only_delay_the_others",
    ),
    "silent peers hold up the shutdown": (
        "hostile/test_silence.py::test_silent_peers_cannot_hold_up_a_stop",
        "server/test_server.py::test_silent_clients_do_not_hold_up_a_stop",
    ),
    "clients over the connection limit hang without a word": (
        "hostile/test_trust.py::test_a_client_of_a_full_server_is_told_that_it_may_be_full",
        "server/test_listener.py::test_the_limit_is_told_once_and_again_only_after_there_was_room",
    ),
    "an unknown frame, a bad time or a length of 2^64-1 is a panic before login": (
        "server/test_session.py::test_poison_before_or_after_login_gets_a_fail_and_a_close",
        "hostile/test_fuzz.py::test_no_bytes_bring_a_session_down",
    ),
    "hundreds of MiB are swallowed before login": (
        "protocol/test_decoder.py::test_a_stranger_can_say_who_he_is_and_little_else",
        "hostile/test_streams.py::test_streams_without_end_or_sense_get_a_fail_a_close_and_no_memory",
        "hostile/test_memory.py::test_a_thousand_half_received_values_are_bounded_and_refused_as_busy",
    ),
    "each read scans a message from its start again": (
        "protocol/test_decoder.py::test_the_work_is_linear_however_a_large_value_is_cut",
        "protocol/test_decoder.py::test_an_unfinished_line_is_searched_once_and_not_from_its_start_each_time",
    ),
    # Security
    "CR LF in a key injects a Delete": (
        "hostile/test_trust.py::test_line_ends_in_a_key_are_no_further_request",
        "protocol/test_frames.py::test_a_text_with_a_line_end_cannot_smuggle_frames_into_the_stream",
    ),
    "failed logins log the password, and sets the value": (
        "server/test_server.py::test_logs_tell_no_secret_and_no_value",
        "protocol/test_messages.py::test_no_repr_shows_a_password_or_a_value",
    ),
    "passwords stand in the configuration as plain text": (
        "config/test_template.py::test_the_shipped_file_is_the_template_with_the_sample_user",
        "cli/test_init.py::test_the_config_loads_without_a_warning_and_its_password_fits_its_hash",
        "server/test_server.py::test_what_gives_the_data_away_is_not_exposed_to_other_machines",
    ),
    "the client checks no certificate": (
        "hostile/test_trust.py::test_a_server_of_another_authority_is_not_trusted",
        "hostile/test_trust.py::test_a_server_of_another_name_is_not_trusted",
        "hostile/test_trust.py::test_an_expired_certificate_is_not_trusted",
        "client/test_tls.py::test_nothing_is_sent_to_a_server_that_was_not_verified",
    ),
    "the client names every server localhost": (
        "test_faults_of_kvsd_rs.py::test_the_client_names_the_server_that_it_was_told",
    ),
    "only RSA keys in PKCS#1 load": ("server/test_tls.py::test_every_form_of_key_serves",),
    # Use
    "some keys of the configuration file have no effect": (
        "config/test_file.py::test_the_file_of_the_rust_program_is_accepted",
        "config/test_load.py::test_every_field_is_a_setting_with_a_word_of_explanation",
        "cli/test_config.py::test_check_says_ok_and_warns_of_what_sets_nothing",
    ),
    "KVSD_DISABLE_TLS=1 is refused": ("test_faults_of_kvsd_rs.py::test_kvsd_disable_tls_takes_every_word_for_yes",),
    "a set that fails prints nothing and exits 0": (
        "test_faults_of_kvsd_rs.py::test_a_set_that_fails_says_why_and_exits_non_zero",
        "cli/test_main.py::test_a_script_tells_errors_apart_by_the_exit_status",
    ),
    "get prints lossy text, cut at 1,024 bytes": (
        "cli/test_values.py::test_stdin_is_stored_byte_by_byte",
        "cli/test_values.py::test_a_file_is_stored_byte_by_byte",
    ),
    "a missing key is a text on stdout, and exits 0": (
        "cli/test_values.py::test_a_missing_key_leaves_stdout_empty_and_exits_3",
    ),
    # There is no dump; this is the JSON that there is.
    "the dump is no valid JSON": (
        "cli/test_values.py::test_json_tells_text_from_bytes",
        "cli/test_output.py::test_json_holds_text_or_base64",
    ),
    "SIGTERM is not handled": (
        "server/test_server.py::test_a_signal_drains_and_exits_with_zero",
        "cli/test_serve.py::test_what_was_set_is_there_after_a_restart",
    ),
    "a client that authenticates too late is cut without a word": (
        "server/test_session.py::test_a_client_that_comes_too_late_is_told_so",
        "hostile/test_silence.py::test_silence_before_authentication_is_answered_and_returns_the_permit",
    ),
    "logs go to stdout, with colour codes": (
        "server/test_reporting.py::test_no_colour_codes_reach_a_file",
        "cli/test_serve.py::test_the_logs_of_a_service_are_json_even_where_they_warn",
    ),
    # Measured
    "values over 8 KiB wait 44 ms for an acknowledgement": (
        "server/test_listener.py::test_replies_leave_without_delay",
        "test_faults_of_kvsd_rs.py::test_requests_leave_without_delay",
        "test_faults_of_kvsd_rs.py::test_requests_of_the_blocking_client_leave_without_delay",
    ),
}


def functions_of(module: str) -> set[str]:
    tree = ast.parse((TESTS / module).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_tests_that_exist(fault: str) -> None:
    assert FAULTS[fault]
    for test in FAULTS[fault]:
        module, name = test.split("::")
        assert name.startswith("test_")
        assert name in functions_of(module), f"{test} is gone: what shows now that we do not have this fault?"


# Those with no better place


def open_blocking(settings: ConnectSettings) -> sync_connection.Connection:
    return sync_connection.Connection(settings, Acquaintance(settings), client_context(settings), monotonic() + 10)


async def test_requests_leave_without_delay(start: Start) -> None:
    server = await start()
    settings = ConnectSettings(username="kvsduser", password="secret", port=server.port, ca=server.ca_path)
    connection = await aio_connection.Connection.open(settings, Acquaintance(settings), client_context(settings))
    sending = connection._transport.get_extra_info("socket")
    assert sending.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    await connection.close()


def test_requests_of_the_blocking_client_leave_without_delay() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        connection = open_blocking(ConnectSettings(username="u", password="p", port=port, disable_tls=True))
        assert connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.close()


@pytest.fixture
def named() -> tuple[ssl.SSLContext, list[str | None]]:
    """A server's context without a certificate, which ends every handshake, and the names that it was called by."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def remember(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> int:
        names.append(name)
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    context.sni_callback = remember
    return context, names


def test_the_client_names_the_server_that_it_was_told(
    named: tuple[ssl.SSLContext, list[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, names = named
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        found = [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

        def refuse() -> None:
            accepted, _ = listening.accept()
            with accepted, pytest.raises(ssl.SSLError):
                context.wrap_socket(accepted, server_side=True)

        answering = Thread(target=refuse)
        answering.start()
        settings = ConnectSettings(username="u", password="p", host="db.example", port=address[1])
        with pytest.raises(CannotConnect, match=r"db\.example"):
            open_blocking(settings)
        answering.join(10)
    assert names == ["db.example"]


@pytest.mark.parametrize("word", ["1", "true", "yes", "on", "TRUE"])
def test_kvsd_disable_tls_takes_every_word_for_yes(tmp_path: Path, word: str) -> None:
    config = load(environ={"KVSD_DISABLE_TLS": word}, cwd=tmp_path)
    assert config.server.disable_tls
    assert config.client.disable_tls


@pytest.fixture
def kvsd(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command in a folder and an environment that say nothing about kvsd."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("KVSD_")}
    environ |= {"PYTHONPATH": str(TESTS.parent), "XDG_CONFIG_HOME": str(tmp_path)}

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kvsd", *arguments],
            cwd=tmp_path,
            env=environ | variables,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run


def test_a_set_that_fails_says_why_and_exits_non_zero(
    kvsd: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # so that nobody else listens there
        port = str(bound.getsockname()[1])
        done = kvsd("set", "hello", "rust", "--port", port, KVSD_USERNAME="u", KVSD_PASSWORD="p")
    assert (done.returncode, done.stdout) == (6, "")
    assert f"cannot connect to 127.0.0.1:{port}" in done.stderr
