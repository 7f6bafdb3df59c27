"""What all commands share: which store is meant, how it is opened, how a result is shown.

Why here: so that a command is a few lines: fetch, compute, `session.show...`.

Invariants:
  I1  With --json exactly one JSON document goes to standard output, and nothing else.
  I2  Text that comes from a store reaches a terminal only with its control characters made visible.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shmkv import errors, paths

if TYPE_CHECKING:
    from shmkv.segment import _core
    from shmkv.store import Store

Function = TypeVar("Function", bound=Callable[..., Any])
WIDE = 200  # columns of a table that no terminal shows


class Session:
    """One run of shmkv-admin."""

    def __init__(self) -> None:
        self.json = False
        self.given_name: str | None = None
        self.timeout_s = 5.0

    # ---- the store ----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The store that is meant; StoreNotFound or a usage error when that can't be told."""
        if self.given_name is not None:
            return paths.check_name(self.given_name)
        names = [name for name in paths.store_names() if paths.temporary_owner(name) is None]
        if not names:
            raise errors.StoreNotFound("no store runs on this machine; start one: shmkv-supervisor NAME")
        if len(names) > 1:
            raise click.UsageError(f"which store? name one with -s: {', '.join(names)}")
        return names[0]

    def attach(self, *, read_only: bool = False) -> Store:
        """A handle on the store's data."""
        import shmkv

        return shmkv.attach(self.name, timeout=self.timeout_s, read_only=read_only)

    @contextmanager
    def arena(self, name: str | None = None, *, read_only: bool = True) -> Iterator[_core.Arena]:
        """The maintenance view of the store, in whatever state it is."""
        from shmkv.segment import _core

        fd = open_object(name if name is not None else self.name, read_only=read_only)
        arena = _core.Arena(fd, read_only=read_only)
        try:
            yield arena
        finally:
            arena.close()

    def control(self) -> str | None:
        """Path of the supervisor's control socket; None when no supervisor answers."""
        from shmkv.supervisor.control import find_control

        return find_control(self.name)

    # ---- results ------------------------------------------------------------------------------

    def show_json(self, document: Any) -> None:
        """One JSON document."""
        print(json.dumps(document, default=plain, ensure_ascii=False))

    def show_record(self, title: str, record: dict[str, Any], shown: dict[str, str] | None = None) -> None:
        """Names and values; `shown`: how people see them."""
        if self.json:
            self.show_json(record)
        else:
            self._print_table(
                title,
                ("", ""),
                [(name, text) for name, text in (shown or {k: str(v) for k, v in record.items()}).items()],
            )

    def show_rows(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], records: list[dict[str, Any]]
    ) -> None:
        """A table for people, the records for machines."""
        if self.json:
            self.show_json(records)
        else:
            self._print_table(title, columns, [[str(cell) for cell in row] for row in rows])

    def _print_table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(width=None if sys.stdout.isatty() else WIDE)
        table = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=any(columns), pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(visible(cell)) for cell in row))
        console.print(table)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask on a terminal; elsewhere --yes is needed. A no ends the command."""
        if yes:
            return
        if not sys.stdin.isatty():
            raise click.UsageError(f"{question} Say --yes to do it without a terminal")
        click.confirm(question, abort=True, err=True)


def with_json(function: Function) -> Function:
    """Add --json, which works before and after the command's name."""

    def remember(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        context.obj.json = context.obj.json or value

    option = click.option(
        "--json", "json_wanted", is_flag=True, expose_value=False, callback=remember, help="for machines"
    )
    return option(function)


def open_object(name: str, *, read_only: bool) -> int:
    """Descriptor of a store's shared object, which the caller hands on or closes; StoreNotFound if there is none."""
    import posix_ipc

    try:
        fd: int = posix_ipc.SharedMemory(paths.object_name(name), read_only=read_only).fd
    except posix_ipc.ExistentialError:
        known = ", ".join(paths.store_names()) or "none"
        raise errors.StoreNotFound(
            f"store {name!r} does not run; those that do: {known}; start it: shmkv-supervisor {name}"
        ) from None
    return fd


def visible(text: str) -> str:
    """Text with control characters written as escapes, so that it can't steer a terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else character.encode("unicode_escape").decode()
        for character in text
    )


def key_text(key: str | bytes) -> str:
    """A key for people."""
    return visible(key) if isinstance(key, str) else repr(key)


def plain(value: Any) -> Any:
    """What JSON has no form for: bytes as {"base64": ...}, arrays as lists, everything else as its text."""
    if isinstance(value, bytes | bytearray | memoryview):
        return {"base64": base64.b64encode(value).decode()}
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value)
