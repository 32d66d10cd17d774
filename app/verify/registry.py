"""The schema registry, asked for schemas by id as its documentation says, one at a time."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.request

from app.config.settings import Settings
from app.verify.avro import SchemaOf
from app.verify.errors import VerifyError

_SECONDS_MAX = 10.0
_NOT_FOUND = 404
_NO_SCHEMA = range(40_400, 40_500)
_ID_MAX = 2**31 - 1


def registry_of(settings: Settings) -> SchemaOf | None:
    """Return the function that asks the registry of the settings; None if they have none."""
    if not settings.schema_registry_url:
        return None
    url = settings.schema_registry_url.rstrip("/")
    tls = ssl.create_default_context(cafile=settings.schema_registry_ca_file or None)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls), _NoRedirects()
    )
    headers = {}
    if settings.schema_registry_username:
        login = f"{settings.schema_registry_username}:{settings.schema_registry_password}"
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"

    def schema_of(number: int) -> str | None:
        if number > _ID_MAX:
            return None
        request = urllib.request.Request(f"{url}/schemas/ids/{number}", headers=headers)  # noqa: S310 - a URL of the settings
        try:
            with opener.open(request, timeout=_SECONDS_MAX) as answer:
                found = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code == _NOT_FOUND and _is_error(error.read()):
                return None
            raise VerifyError(f"cannot get schema {number} of {url}: {error}") from error
        except (OSError, ValueError) as error:
            raise VerifyError(f"cannot get schema {number} of {url}: {error}") from error
        is_plain = found.get("schemaType", "AVRO") == "AVRO" and not found.get("references")
        return str(found["schema"]) if is_plain else None

    return schema_of


def _is_error(body: bytes) -> bool:
    """Return whether a body is the registry's word that it has no such schema."""
    try:
        return json.loads(body)["error_code"] in _NO_SCHEMA
    except (ValueError, TypeError, KeyError):
        return False


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a login is for one host."""

    def redirect_request(self, *_: object) -> None:
        """Return nothing, so that the answer is an error."""
