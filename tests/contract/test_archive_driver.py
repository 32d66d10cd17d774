"""Errors of the Cassandra driver: away and tried again, or refused."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import ssl
from typing import Any

import pytest

pytest.importorskip("cassandra", reason="the extra `cassandra` is not installed")

import cassandra
from cassandra import connection, pool, protocol
from cassandra.cluster import NoHostAvailable

from tables.archive.cassandra.cql import Row
from tables.archive.cassandra.driver import DRIVER_ERRORS, driver, is_away, login_refusal, said
from tables.archive.cassandra.pages import Pages
from tables.model.errors import ArchiveAwayError, ArchiveError, ArchiveRefusedError

RESET = ConnectionResetError(104, "Connection reset by peer")
SHUT = connection.ConnectionShutdown("Connection to 127.0.0.1:9042 was closed")
WRONG = cassandra.AuthenticationFailed("Bad credentials")
UNCHECKED = cassandra.AuthenticationFailed(
    'Failed to authenticate to a: Error from server: code=0100 [Bad credentials] message="Unable to'
    ' perform authentication: Cannot achieve consistency level QUORUM"'
)
OVERLOADED = protocol.OverloadedErrorMessage(0x1001, "overloaded", None)


@pytest.mark.parametrize(
    "error",
    [
        RESET,
        SHUT,
        connection.ConnectionBusy("no stream is free"),
        connection.ConnectionException("socket closed"),
        connection.CrcMismatchException("CRC mismatch"),
        connection.ProtocolError("an answer that was not asked for"),
        pool.NoConnectionsAvailable("pool is shut down"),
        cassandra.OperationTimedOut({"a": "timed out"}),
        cassandra.Unavailable("no quorum"),
        cassandra.ReadTimeout("no quorum in time"),
        cassandra.ReadFailure("a replica failed"),
        cassandra.DriverException("the table was not refreshed"),
        cassandra.UnresolvableContactPoints("cassandra"),
        OVERLOADED,
        UNCHECKED,
        protocol.IsBootstrappingErrorMessage(0x1002, "bootstrapping", None),
        protocol.ServerError(0, "it is shutting down", None),
        ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
        NoHostAvailable("no session", ["127.0.0.1", "127.0.0.2"]),
        NoHostAvailable("no node could be asked", {}),
        NoHostAvailable("no node answers", {"a": RESET, "b": SHUT, "c": OVERLOADED}),
        NoHostAvailable("nothing is known", None),
        NoHostAvailable("only words", {"a": "timed out"}),
    ],
    ids=repr,
)
def test_what_passes_is_away(error: Exception) -> None:
    """The caller tries again; the worker goes on."""
    assert is_away(error)
    with pytest.raises(ArchiveAwayError, match="cannot ask: ") as raised, driver("ask", "wait"):
        raise error
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        WRONG,
        cassandra.Unauthorized("no rights"),
        cassandra.InvalidRequest("no such column"),
        connection.ProtocolVersionUnsupported("a", 5),
        ssl.SSLCertVerificationError("self-signed certificate"),
        ssl.SSLError(1, "tlsv13 alert certificate required"),
        NoHostAvailable("one refuses", {"a": RESET, "b": WRONG}),
    ],
    ids=repr,
)
def test_what_somebody_must_mend_is_refused(error: Exception) -> None:
    """The worker ends with it, rather than trying for ever."""
    assert not is_away(error)
    with pytest.raises(ArchiveRefusedError, match="cannot ask: "), driver("ask", "mend it"):
        raise error


def test_a_refused_right_is_told_in_the_node_s_words() -> None:
    """The driver's words around them are left out."""
    words = "User w has no MODIFY permission on <table a.b> or any of its parents"
    error = cassandra.Unauthorized(f'Error from server: code=2100 [Unauthorized] message="{words}"')
    with pytest.raises(ArchiveError) as raised, driver("write layer b", "mend it"):
        raise error
    assert str(raised.value).startswith(f"cannot write layer b: Cassandra refuses: u{words[1:]}; ")
    assert said(ValueError("A")) == "a"


def test_a_refused_login_is_told_with_its_user() -> None:
    """A login that cannot be checked now is not a refused one."""
    refused = NoHostAvailable("one refuses", {"a": RESET, "b": WRONG})
    assert "login of user worker: bad credentials" in login_refusal(refused, "worker")
    assert "wants a login and none is set" in login_refusal(refused, None)
    for causes in ({"a": UNCHECKED}, {"a": RESET}, None):
        assert login_refusal(NoHostAvailable("none", causes), "worker") == ""


NEVER_RAISED = {
    # By Cassandra's user types and traces, objects mapping and Insights: nothing of it is used.
    "UserTypeDoesNotExist", "TraceUnavailable", "QueryExhausted", "DependencyException",
    "NoMurmur3", "NotSupportedError", "InternalError", "CrcException",
}  # fmt: skip


@pytest.mark.parametrize(
    "module", ["", ".cluster", ".connection", ".pool", ".protocol", ".query", ".segment"]
)
def test_every_exception_of_the_driver_is_caught(module: str) -> None:
    """An upgrade that brings another root shows here."""
    found = importlib.import_module(f"cassandra{module}")
    own = [
        kind
        for name, kind in inspect.getmembers(found, inspect.isclass)
        if issubclass(kind, Exception)
        and kind.__module__.startswith("cassandra")
        and name not in NEVER_RAISED
    ]
    assert own or module == ".query"
    assert [kind for kind in own if not issubclass(kind, DRIVER_ERRORS)] == []


async def test_a_driver_that_never_tells_is_away() -> None:
    """Its threads may have died: a wait has an end all the same, and a page begins it anew."""

    class Answer:
        has_more_pages = True

        def add_callbacks(self, on_page: Any, on_error: Any) -> None:
            del on_error
            on_page([(1,)])

        def start_fetching_next_page(self) -> None:
            pass

    class Session:
        def execute_async(self, statement: object) -> Answer:
            assert statement == "select"
            return Answer()

    rows: list[Row] = []
    permits = asyncio.Semaphore(1)
    async with asyncio.timeout(20):
        with pytest.raises(ArchiveAwayError, match=r"reported nothing within 0\.05 s"):
            await Pages(Session(), "read", "select", permits, 0.05).read(rows.extend)
        assert rows == [(1,)]
        await permits.acquire()
