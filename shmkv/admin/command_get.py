"""`shmkv-admin get KEY`: the value of one key."""

from __future__ import annotations

import sys
from typing import Any

import click

from shmkv.admin.session import Session, plain, visible, with_json


@click.command("get")
@click.argument("key")
@with_json
@click.pass_obj
def command(session: Session, key: str) -> None:
    """Print the value of KEY: text and bytes as they are, everything else as Python writes it."""
    with session.attach(read_only=True) as store:
        value = store[key]
    if session.json:
        session.show_json({"key": key, "type": type(value).__name__, "value": json_value(value)})
    elif isinstance(value, bytes) and not sys.stdout.isatty():
        sys.stdout.buffer.write(value)
    elif isinstance(value, str):
        print(visible(value) if sys.stdout.isatty() else value)
    else:
        print(visible(repr(value)))


def json_value(value: Any) -> Any:
    """A value with keys that JSON can hold: a dict with other keys becomes a list of pairs."""
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: json_value(item) for key, item in value.items()}
        return [[json_value(key), json_value(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else plain(value)
