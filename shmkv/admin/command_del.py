"""`shmkv-admin del KEY...`: delete keys."""

from __future__ import annotations

import click

from shmkv.admin.session import Session, key_text, with_json


@click.command("del")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@with_json
@click.pass_obj
def command(session: Session, keys: tuple[str, ...]) -> None:
    """Delete keys. Exit code 1 when one was not there; the others are deleted all the same."""
    with session.attach() as store:
        deleted = {key: store.delete(key) for key in dict.fromkeys(keys)}
    if session.json:
        session.show_json(deleted)
    missing = [key_text(key) for key, done in deleted.items() if not done]
    if missing:
        raise click.ClickException(
            f"not there: {', '.join(missing)}; deleted {len(deleted) - len(missing)} of {len(deleted)} keys"
        )
