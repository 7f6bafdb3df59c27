"""`shmkv-admin keys [GLOB]`: the keys of a store, one a line."""

from __future__ import annotations

import json
import sys
from itertools import islice

import click

from shmkv.admin.session import Session, key_text, plain, with_json


@click.command("keys")
@click.argument("pattern", required=False, metavar="[GLOB]")
@click.option("--limit", type=click.IntRange(min=0), help="stop after that many")
@with_json
@click.pass_obj
def command(session: Session, pattern: str | None, limit: int | None) -> None:
    """List keys, all or those that match GLOB (*, ?, [abc]). Keys that change meanwhile may or may not come."""
    with session.attach(read_only=True) as store:
        keys = islice(store.scan(match=pattern), limit)
        if not session.json:
            for key in keys:
                print(key_text(key))
            return
        # Written piece by piece: a store may have more keys than fit into this process.
        separator = "["
        for key in keys:
            sys.stdout.write(separator + json.dumps(key, default=plain, ensure_ascii=False))
            separator = ","
        sys.stdout.write("[]\n" if separator == "[" else "]\n")
