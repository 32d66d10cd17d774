"""The schema registry: schemas by id, over the REST interface of Confluent's registry.

``GET URL/schemas/ids/ID`` is all that is asked; Apicurio and Karapace answer it too.
"""

from __future__ import annotations

import base64
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp

from agents.decode.avro_schema import AvroError, fastavro_module
from agents.decode.schemas import RegistryAwayError, Schemas
from app.host.reloads import Reloads
from app.trust.certificates import PemFiles, client_context
from tables.model.errors import SettingError
from tables.model.layer import Map, needs_registry

if TYPE_CHECKING:
    from app.config.settings import Settings

ANSWER_S_MAX = 10.0
ANSWER_BYTES_MAX = 8 << 20
_WORDS_MAX = 200


def schemas_of(settings: Settings, themap: Map, reloads: Reloads) -> Schemas | None:
    """Return the schemas of the registry; None if no source of a map needs one.

    Raises:
        SettingError: no registry is set, its certificates cannot be used, or the package that reads
            Avro is not installed.
    """
    needing = [source.name for source in themap.sources if needs_registry(source)]
    if not needing:
        return None
    check_registry(settings, needing[0])
    return Schemas(SchemaRegistry(settings, reloads))


def check_registry(settings: Settings, source: str) -> None:
    """Raise SettingError if records of a source, which need the registry, cannot be read."""
    if not settings.schema_registry_url:
        raise SettingError(
            f"cannot read source {source}: its records name schemas of a registry; got none; want"
            " its URL, or a schema in the map; set schema_registry_url, or write format = {name ="
            ' "avro", schema = FILE}'
        )
    try:
        fastavro_module()
    except AvroError as error:
        raise SettingError(f"cannot read source {source}: {error}") from error


class SchemaRegistry:
    """Asks a schema registry; made outside of the event loop that asks.

    Args:
        settings: its URL, login and authorities.
        reloads: reads the file of authorities again when it changes.
    """

    def __init__(self, settings: Settings, reloads: Reloads | None = None) -> None:
        self._url = settings.schema_registry_url.rstrip("/")
        self._headers = {}
        if name := settings.schema_registry_username:
            login = f"{name}:{settings.schema_registry_password}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(login).decode()}"
        files = PemFiles("schema_registry", settings.schema_registry_ca_file)
        self._tls = client_context(files, reloads) if self._url.startswith("https:") else None

    async def schema(self, number: int) -> str:
        """Return the text of the Avro schema of an id.

        Raises:
            AvroError: the registry has no such schema, or one that events cannot be read with.
            RegistryAwayError: it does not answer, or refuses.
        """
        try:
            status, body = await self._ask(f"{self._url}/schemas/ids/{number}")
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise RegistryAwayError(
                f"cannot ask {self._url} for schema {number}: {error or type(error).__name__}"
            ) from error
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict) and status == HTTPStatus.OK and "schema" in answer:
            return _text(answer)
        if status == HTTPStatus.NOT_FOUND and _code(answer) // 100 == HTTPStatus.NOT_FOUND:
            raise AvroError("it has no schema of this id")
        raise RegistryAwayError(
            f"cannot get schema {number} of {self._url}: got status {status}:"
            f" {body[:_WORDS_MAX].decode(errors='replace')}; want a schema, or the error of an"
            " unknown one; check schema_registry_url and its login"
        )

    async def _ask(self, url: str) -> tuple[int, bytes]:
        # Few questions in a worker's life: each has a connection of its own.
        timeout = aiohttp.ClientTimeout(total=ANSWER_S_MAX)
        connector = aiohttp.TCPConnector(ssl=self._tls or True, force_close=True)
        async with (
            aiohttp.ClientSession(
                connector=connector, timeout=timeout, headers=self._headers
            ) as session,
            # A login is for this host alone.
            session.get(url, allow_redirects=False) as answer,
        ):
            body = bytearray()
            async for some in answer.content.iter_chunked(1 << 16):
                body += some
                if len(body) > ANSWER_BYTES_MAX:
                    raise aiohttp.ClientPayloadError(f"more than {ANSWER_BYTES_MAX} bytes")
            return answer.status, bytes(body)


def _code(answer: Any) -> int:
    """Return the error of an answer: 40403 of an unknown id, 404 of a wrong path; 0 for none."""
    found = answer.get("error_code") if isinstance(answer, dict) else None
    return found if isinstance(found, int) else 0


def _text(answer: dict[str, Any]) -> str:
    """Return the text of an answered schema."""
    kind = answer.get("schemaType", "AVRO")
    if kind != "AVRO" or not isinstance(answer["schema"], str):
        raise AvroError(f"it is of type {kind}; want AVRO")
    if answer.get("references"):
        raise AvroError("it refers to other schemas of the registry, which are not read")
    return str(answer["schema"])
