"""Where a store's data is, and its keys: of a running store, a stopped one, or as given.

Why here: `log` and `verify` read files of a store that may not run, perhaps on another machine.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from shmkv import config, paths
from shmkv.admin.session import Session

if TYPE_CHECKING:
    from shmkv.wal.cipher import Keyring

# A data directory has at least one of these.
TRACES = ("manifest.0", "manifest.1", "log")
# Whose settings are read when no store is named: those of the environment, and the defaults.
ANY_NAME = "default"


def find_data_dir(session: Session, given: str | None) -> str:
    """The data directory: as given, as the running supervisor says, or as the settings say."""
    from shmkv.supervisor.control import ask

    if given is None:
        control = session.control()
        if control is not None:
            given = ask(control, {"do": "status"})["data_dir"]
            if given is None:
                raise click.ClickException(f"store {session.name!r} is memory only: it has no log")
        else:
            given = config.load(session.name).data_dir or paths.data_dir(session.name)
    directory = os.path.abspath(given)
    if not is_data_dir(directory):
        raise click.ClickException(
            f"{directory} does not look like a data directory (no {' or '.join(TRACES)}); name it with --data-dir"
        )
    return directory


def is_data_dir(path: str) -> bool:
    """Whether there is anything of a store in this folder."""
    return any(os.path.exists(os.path.join(path, trace)) for trace in TRACES)


def load_keys(session: Session, key_file: str | None) -> Keyring:
    """The keys in that file, else those that the settings of the store, or its running supervisor, lead to.

    Raises UnusableKey if they lead nowhere.
    """
    from shmkv.supervisor.control import ask
    from shmkv.wal.cipher import Keyring, KeySettings

    if key_file is not None:
        return Keyring.load(KeySettings(file=key_file))
    settings = config.load(session.given_name or ANY_NAME)
    keys = KeySettings(settings.key_file, settings.key_environment, settings.key_command, settings.key_credential)
    if not keys.chosen and session.given_name is not None and (control := session.control()) is not None:
        keys = KeySettings(**ask(control, {"do": "status"}).get("keys", {}))
    return Keyring.load(keys)
