"""`shmkv-admin set KEY VALUE`: store text under a key."""

from __future__ import annotations

import click

from shmkv import config
from shmkv.admin.session import Session, with_json


@click.command("set")
@click.argument("key")
@click.argument("value")
@click.option("--ttl", metavar="DURATION", help="let the key expire after that time, as 90 or 15min")
@click.option("--if-absent", is_flag=True, help="only if there is no such key")
@click.option("--if-present", is_flag=True, help="only if there is one")
@click.option("--durability", type=click.Choice(["always", "interval", "none"]), help="wait for the disk, or not")
@with_json
@click.pass_obj
def command(
    session: Session, key: str, value: str, ttl: str | None, if_absent: bool, if_present: bool, durability: str | None
) -> None:
    """Store VALUE, as text, under KEY. Exit code 1 when a condition did not hold."""
    if if_absent and if_present:
        raise click.UsageError("--if-absent and --if-present exclude each other")
    ttl_s = config.parse_duration(ttl) if ttl is not None else None
    with session.attach() as store:
        done = store.set(key, value, ttl=ttl_s, if_absent=if_absent, if_present=if_present, durability=durability)
    if session.json:
        session.show_json({"key": key, "set": done})
    if not done:
        raise click.ClickException(f"key {key!r} is {'there already' if if_absent else 'not there'}; nothing was set")
