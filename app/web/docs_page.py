"""A page that shows the OpenAPI document to people: plain HTML, nothing loaded from elsewhere."""

from __future__ import annotations

import html
from typing import Any

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
summary { cursor: pointer; font-family: ui-monospace, monospace; padding: .3rem 0; }
summary span { font-family: system-ui, sans-serif; opacity: .7; margin-left: 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1rem 1rem; }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; }
code { font-family: ui-monospace, monospace; }
"""


def docs_page(document: dict[str, Any]) -> str:
    """Return the page of an OpenAPI document."""
    info = document["info"]
    paths = "\n".join(
        _path(f"{method.upper()} {path}", about)
        for path, methods in document["paths"].items()
        for method, about in methods.items()
    )
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width">'
        f"<title>{_text(info['title'])}</title><style>{_STYLE}</style>"
        f"<h1>{_text(info['title'])}</h1><p>Map revision {_text(info['version'])}."
        f" {_text(info['description'])}</p>"
        '<p>The same for programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"{paths}</html>\n"
    )


def _path(path: str, about: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{_text(one['name'])}</code><td>{_text(_type(one['schema']))}"
        f"<td>{'required' if one['required'] else ''}<td>{_text(one['description'])}"
        for one in about["parameters"]
    )
    table = f"<table>{rows}</table>" if rows else "<p>It has no parameters.</p>"
    kinds = ", ".join(about["responses"]["200"]["content"])
    return (
        f"<details><summary>{_text(path)}<span>{_text(about['summary'])}</span></summary>"
        f"{table}<p>Answers: {_text(kinds)}</p></details>"
    )


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return f"time, like {' or '.join(str(one) for one in schema['examples'])}"
    if schema["type"] == "array":
        return f"{_type(schema['items'])}, several times"
    if "enum" in schema:
        return " or ".join(schema["enum"])
    example = schema.get("examples", [""])[0]
    bounds = f" {schema['minimum']} to {schema['maximum']}" if "minimum" in schema else ""
    return f"{schema['type']}{bounds}" + (f", like {example}" if example else "")


def _text(value: object) -> str:
    return html.escape(str(value))
