"""The endpoint that commands ask: its address, token and authority, from options and settings."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, Generic, TypeVar

import click

from app.config.settings import FILE_VARIABLE, Settings, environment_variable, load_settings
from tables.model.errors import QueryError
from treasure_map import QueryClient, QueryFailedError
from treasure_map.status import WorkerAbout

AT_ONCE_MAX = 16
"""Workers that are asked at once."""

WORKER_S = 5.0
"""Seconds that a worker of a group has for each part of an answer."""

Function = TypeVar("Function", bound=Callable[..., Any])
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, slots=True)
class AskedEndpoint:
    """The endpoint of a worker as a command reaches it; see :class:`treasure_map.QueryClient`."""

    url: str
    token: str | None
    ca_file: str | None

    def client(self, url: str | None = None, timeout_s: float = 30.0) -> QueryClient:
        """Return a client of the endpoint, or of that of another worker.

        Raises:
            ValueError: the URL is not an address.
            OSError: the file of authorities cannot be read.
        """
        return QueryClient(url or self.url, self.token, timeout_s, self.ca_file)

    def refusal(self, error: Exception) -> QueryError:
        """Return an error of a client with the remedy, for a reader who was refused without token.

        It is raised by :func:`endpoint_options`.
        """
        if self.token or getattr(error, "status", None) != HTTPStatus.UNAUTHORIZED:
            return QueryError(str(error))
        variable = environment_variable("web_token")
        return QueryError(
            f"{error}; set {variable}, or {variable}_FILE to the path of a file that holds the"
            " token"
        )


def endpoint_options(function: Function) -> Function:
    """Add ``--url``, ``--ca-file`` and ``--settings`` to a click command.

    The command's function is called with ``endpoint``, an :class:`AskedEndpoint`. An endpoint that
    refuses or is not reached is a QueryError.
    """

    @functools.wraps(function)
    def with_endpoint(
        *args: Any, url: str | None, ca_file: str | None, settings_file: str | None, **options: Any
    ) -> Any:
        settings = load_settings(file=settings_file)
        endpoint = AskedEndpoint(
            settings.endpoint_url if url is None else url,
            settings.web_token or None,
            ca_file or settings.web_ca_file or None,
        )
        try:
            return function(*args, endpoint=endpoint, **options)
        except BrokenPipeError:
            # Whoever reads the output has seen enough.
            raise
        except (QueryFailedError, ValueError, OSError) as error:
            raise endpoint.refusal(error) from error

    given: Any = with_endpoint
    default = Settings().endpoint_url
    for option in (
        click.option(
            "--settings", "settings_file", metavar="FILE",
            help="TOML file of the worker's settings, for its address, token and authority."
            f"  [{FILE_VARIABLE}]",
        ),
        click.option(
            "--ca-file",
            help="PEM file of the authority of the endpoint's certificate."
            f"  [default: web_ca_file of the settings, {environment_variable('web_ca_file')}]",
        ),
        click.option(
            "--url",
            help="A worker's endpoint.  [default: web_url of the settings,"
            f" {environment_variable('web_url')}, else web_host and web_port,"
            f" {environment_variable('web_port')}, else {default}]",
        ),
    ):  # fmt: skip
        given = option(given)
    wrapped: Function = given
    return wrapped


@dataclasses.dataclass(frozen=True, slots=True)
class Told(Generic[Result]):
    """The answer of one worker of a group, None with the ``problem`` if it gave none."""

    worker: WorkerAbout
    answer: Result | None
    problem: str = ""


def ask_group(
    endpoint: AskedEndpoint, question: Callable[[QueryClient], Result]
) -> list[Told[Result]]:
    """Ask every worker of the group that an endpoint knows, in the order of their URLs.

    The endpoint itself is asked at its own address, others at their ``web_url``.

    Raises:
        QueryFailedError: the endpoint does not answer.
    """
    with endpoint.client() as client:
        workers: Sequence[WorkerAbout] = client.cluster()
    if not any(worker.own for worker in workers):
        # It owns no partition.
        workers = [WorkerAbout(endpoint.url, own=True, partitions=0, problem=""), *workers]

    def ask(worker: WorkerAbout) -> Told[Result]:
        is_plain = worker.url.startswith("http:") and endpoint.url.startswith("https:")
        if is_plain and not worker.own:
            return Told(worker, None, "not asked: it speaks no TLS, and would be sent the token")
        try:
            with endpoint.client(None if worker.own else worker.url, WORKER_S) as client:
                return Told(worker, question(client))
        except (QueryFailedError, ValueError, OSError) as error:
            return Told(worker, None, str(error))

    with ThreadPoolExecutor(AT_ONCE_MAX) as threads:
        return list(threads.map(ask, workers))
