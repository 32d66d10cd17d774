"""Schemas for a real registry, and a registry in this process for answers of every kind."""

from __future__ import annotations

import base64
import http.server
import json
import ssl
import threading
import urllib.request
from typing import Any, Self

from tests.support.pki import Certificate


def register(url: str, subject: str, schema: str, **more: Any) -> int:
    """Add a version of a subject to a registry; return the id of its schema.

    ``more`` are other fields of the request, such as ``schemaType`` and ``references``.
    """
    request = urllib.request.Request(  # noqa: S310 - a server of the tests
        f"{url}/subjects/{subject}/versions",
        json.dumps({"schema": schema, **more}).encode(),
        {"Content-Type": "application/vnd.schemaregistry.v1+json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return int(json.loads(answer.read())["id"])


class FakeRegistry:
    """Answers schemas by id as Confluent's interface does; use it in a ``with`` statement.

    Attributes:
        answers: by id, the status and the body of an answer, instead of a schema.
        schemas: the text of each schema by id.
        login: the name and password that it wants, separated by a colon; empty: none.
        is_away: whether it ends connections without an answer.
        asked: the paths that were asked for.
    """

    def __init__(self, schemas: dict[int, str], certificate: Certificate | None = None) -> None:
        self.schemas = schemas
        self.answers: dict[int, tuple[int, bytes, dict[str, str]]] = {}
        self.login = ""
        self.is_away = False
        self.asked: list[str] = []
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.answer(self)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.cert_file, certificate.key_file)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.url = f"https://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        """Begin to answer."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        self.asked.append(request.path)
        if self.is_away:
            request.close_connection = True
            return
        status, body, headers = self._answer(request)
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _answer(self, request: Any) -> tuple[int, bytes, dict[str, str]]:
        wanted = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        if self.login and request.headers.get("Authorization") != wanted:
            return 401, b'{"error_code": 401, "message": "Unauthorized"}', {}
        before, _, last = request.path.rpartition("/")
        if before != "/schemas/ids":
            return 404, b"<html>not here</html>", {}
        number = int(last)
        if number in self.answers:
            return self.answers[number]
        if number not in self.schemas:
            return 404, b'{"error_code": 40403, "message": "Schema not found"}', {}
        return 200, json.dumps({"schema": self.schemas[number]}).encode(), {}
