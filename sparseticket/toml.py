"""Settings to TOML text, which the standard library only reads: tables of strings, numbers, booleans and lists."""

from __future__ import annotations

import json
from typing import Any


def dumps(table: dict[str, Any]) -> str:
    """TOML of a table whose values are scalars, lists of scalars, or tables of these. ``None`` is left out."""
    scalars = {key: value for key, value in table.items() if not isinstance(value, dict) and value is not None}
    lines = [f"{key} = {_value(value)}" for key, value in scalars.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", dumps(value).rstrip("\n")]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # a JSON string is a TOML string
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return repr(value)
