"""The settings table of docs/OPERATING.md, made from the settings themselves.

``python -m app.config.page docs/OPERATING.md`` writes it between the two marks; a test compares.
"""

from __future__ import annotations

import pathlib
import sys

from msgspec.structs import FieldInfo

from app.config.fields import flag, is_secret, meaning, trait
from app.config.settings import Settings, fields_of

BEGIN = "<!-- settings: made by app.config.page -->"
END = "<!-- settings: end -->"


def settings_table(kind: type[Settings] = Settings) -> str:
    """Return the Markdown table of all settings of a struct, in their order."""
    lines = ["| setting | default | flag | meaning |", "|---|---|---|---|"]
    for name, field in fields_of(kind).items():
        form = flag(field)
        shown = f"`{form}`" if form else "none: a secret"
        lines.append(f"| `{name}` | {_default(field)} | {shown} | {meaning(field)} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """Return ``page`` with the text between the marks replaced by the table of today.

    Raises:
        ValueError: the page does not have both marks, each once.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"cannot write the settings table: want {BEGIN} and {END} once each")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{settings_table()}\n{END}{rest.partition(END)[2]}"


def _default(field: FieldInfo) -> str:
    if words := trait(field, "default"):
        return str(words)
    value = field.default
    if isinstance(value, tuple):
        value = ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value == "" or is_secret(field) else f"`{value}`"


def main(path: pathlib.Path) -> None:
    """Write the table into the page at ``path``."""
    path.write_text(with_table(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
