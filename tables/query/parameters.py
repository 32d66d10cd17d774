"""Parameters of a request: how each one's text is read, with all faults at once.

A :class:`Parameter` is the one description of a parameter: requests are read by it, refusals name
it, and the OpenAPI document is made from it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tables.model.layer import KeyField, Layer, Scalar
from tables.model.limits import INT64_MAX, INT64_MIN
from tables.model.window import DAY_MS, LENGTH_MS_MAX, START_MS_MIN, TIME_MS_MAX, Window
from tables.query.time_range import TEXT_PATTERN, parse_time

_INTEGER = re.compile(r"-?\d{1,19}", re.ASCII)
UNKNOWN_TOLD_MAX = 10
"""Most unknown parameters that are named: a hint for each takes some 0.1 ms."""


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a request.

    Attributes:
        name: as it stands in the URL.
        about: its meaning, a sentence for readers of the OpenAPI document.
        read: returns the value of a text; raises ValueError with the fault.
        schema: the JSON schema of one value.
        want: the demand if it is missing; empty if it may be missing.
        many: whether it may be given several times; its value is then a tuple.
    """

    name: str
    about: str
    read: Callable[[str], Any]
    schema: Mapping[str, object]
    want: str = ""
    many: bool = False

    @staticmethod
    def time(name: str, about: str) -> Parameter:
        """Return a time, whose value is a :class:`tables.query.time_range.Moment`."""
        schema = {
            "anyOf": [
                {"type": "integer", "minimum": START_MS_MIN, "maximum": TIME_MS_MAX + 1},
                {"type": "string", "pattern": TEXT_PATTERN},
            ],
            "examples": ["2013-01-01T00:00:00Z", 1_356_998_400_000, "now-1h", "today"],
        }
        return Parameter(name, about, parse_time, schema)

    @staticmethod
    def whole(name: str, about: str, least: int, most: int) -> Parameter:
        """Return a whole number that may be given."""

        def read(text: str) -> int:
            if _INTEGER.fullmatch(text) and least <= int(text) <= most:
                return int(text)
            raise ValueError(f"got {text!r}; want a whole number from {least} to {most}")

        return Parameter(name, about, read, {"type": "integer", "minimum": least, "maximum": most})

    @staticmethod
    def choice(
        name: str, about: str, choices: Sequence[str], *, many: bool = False, required: bool = False
    ) -> Parameter:
        """Return one of some words, or several of them."""
        listed = ", ".join(choices)

        def read(text: str) -> str:
            if text in choices:
                return text
            raise ValueError(
                f"got {text!r}; want one of {listed}{did_you_mean(text, list(choices))}"
            )

        want = f"want one of {listed}" if required else ""
        schema = {"type": "string", "enum": list(choices)}
        return Parameter(name, about, read, schema, want=want, many=many)

    @staticmethod
    def window(name: str, about: str) -> Parameter:
        """Return a size of windows, of at most a century."""

        def read(text: str) -> Window:
            window = Window.parse(text)
            if window.length_ms > LENGTH_MS_MAX:
                raise ValueError(f"too long; got {text!r}; want at most {LENGTH_MS_MAX // DAY_MS}d")
            return window

        schema = {
            "type": "string",
            "pattern": "^([0-9]{1,12}(ms|s|m|h|d)|day|month|year)$",
            "examples": ["1m", "1h", "1d", "month"],
        }
        return Parameter(name, about, read, schema)

    @staticmethod
    def key(field: KeyField, *, many: bool = False) -> Parameter:
        """Return a key field's value, or several of them."""
        kinds = {"string": "string", "int": "integer", "bool": "boolean"}
        about = f"Only cells whose {field.name} is this{', or one of these' if many else ''}."
        read = functools.partial(key_value, field)
        return Parameter(f"key.{field.name}", about, read, {"type": kinds[field.type]}, many=many)


def read_parameters(
    parameters: Sequence[Parameter], given: Iterable[tuple[str, str]], problems: list[str]
) -> dict[str, Any]:
    """Return the values by name of those given that can be read; note faults.

    A parameter of ``many`` that was not given is left out, like every other.
    """
    by_name = {parameter.name: parameter for parameter in parameters}
    texts: dict[str, list[str]] = {}
    unknown = 0
    for name, text in given:
        if name not in by_name:
            unknown += 1
            if unknown > UNKNOWN_TOLD_MAX:
                continue
            problems.append(
                f"{name}: no such parameter; want {', '.join(by_name)}"
                f"{did_you_mean(name, list(by_name))}"
            )
        elif name in texts and not by_name[name].many:
            problems.append(f"{name}: given twice; want it once")
        else:
            texts.setdefault(name, []).append(text)
    if unknown > UNKNOWN_TOLD_MAX:
        problems.append(f"and {unknown - UNKNOWN_TOLD_MAX} more that there are not")
    values: dict[str, Any] = {}
    for name, parameter in by_name.items():
        if name not in texts:
            if parameter.want:
                problems.append(f"{name}: missing; {parameter.want}")
            continue
        try:
            read = [parameter.read(text) for text in texts[name]]
            values[name] = tuple(dict.fromkeys(read)) if parameter.many else read[0]
        except ValueError as error:
            problems.append(f"{name}: {error}")
    return values


def did_you_mean(name: str, known: list[str]) -> str:
    """Return a hint at the name that was probably meant, empty if no name is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def filter_parameters(layer: Layer) -> list[Parameter]:
    """Return the values and prefixes by which a layer's cells may be chosen."""
    found = [Parameter.key(field, many=True) for field in layer.key]
    for field in (one for one in layer.key if one.type == "string"):
        about = f"Only cells whose {field.name} begins so."
        found.append(Parameter(f"prefix.{field.name}", about, str, {"type": "string"}))
    return found


def key_value(field: KeyField, text: str) -> Scalar:
    """Return a key field's value.

    Raises:
        ValueError: the text is not a value of its type.
    """
    if field.type == "string":
        return text
    if field.type == "bool":
        if text not in ("true", "false"):
            raise ValueError(f"not a bool; got {text!r}; want true or false")
        return text == "true"
    if not _INTEGER.fullmatch(text) or not INT64_MIN <= int(text) <= INT64_MAX:
        raise ValueError(f"not an integer of 64 bits; got {text!r}; want one like 42")
    return int(text)
