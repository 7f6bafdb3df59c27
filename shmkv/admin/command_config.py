"""`shmkv-admin config`: every setting, with its value, place, default and limits."""

from __future__ import annotations

import click

from shmkv import config, paths
from shmkv.admin.session import Session, with_json

DEFAULT_NAME = "default"


@click.command("config")
@click.option("--config", "file", metavar="FILE", help="settings file instead of /etc/shmkv/NAME.toml")
@click.option("--toml", is_flag=True, help="print a complete settings file")
@with_json
@click.pass_obj
def command(session: Session, file: str | None, toml: bool) -> None:
    """Show the settings that a supervisor started now, by this user, would have."""
    name = paths.check_name(session.given_name or DEFAULT_NAME)
    chosen = config.sources(name, file=file)
    settings = config.from_sources(name, chosen)
    if toml:
        print(config.as_toml(settings), end="")
        return
    records = [
        {
            "key": key.name, "value": getattr(settings, key.name),
            "from": chosen[key.name][1] if key.name in chosen else "default", "default": key.default,
            "unit": key.unit, "minimum": key.minimum, "maximum": key.maximum,
            "choices": list(key.choices), "help": key.help,
        }
        for key in config.KEYS
    ]  # fmt: skip
    rows = [
        [key.name, config.show(key, getattr(settings, key.name)), record["from"], limits(key), key.help]
        for key, record in zip(config.KEYS, records, strict=True)
    ]
    session.show_rows(f"settings of {name}", ("key", "value", "from", "limits", "meaning"), rows, records)


def limits(key: config.Key) -> str:
    """What a value may be."""
    if key.choices:
        return ", ".join(key.choices)
    return (
        f"{config.show(key, key.minimum)} to {config.show(key, key.maximum)}" if key.minimum is not None else key.kind
    )
