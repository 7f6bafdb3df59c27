"""What each child is started with: its module, and its arguments made of the settings.

Why here: the two sides of a pipe between processes meet in these names; `service` only decides when.
"""

from __future__ import annotations

from shmkv.config import Settings
from shmkv.supervisor import opening
from shmkv.supervisor.lines import Message
from shmkv.supervisor.spawn import EVENT_FD, EXTRA_FD

KEEPER_MODULE = "shmkv.supervisor.keeper"


def persister_arguments(settings: Settings, data_dir: str, created: bool) -> Message:
    """`created`: the arena is new and to be filled; else the persister adopts or finishes it."""
    return {
        "name": settings.name, "data_dir": data_dir, "created": created,
        "durability": settings.durability, "sync_interval_s": settings.sync_interval,
        "lag_limit_s": settings.lag_limit, "event_fd": EVENT_FD, "accept_loss": settings.accept_loss,
        "file_bytes": settings.log_file, "plan": opening.plan_of(settings),
        "snapshot_interval_s": settings.snapshot_interval, "snapshot_log_bytes": settings.snapshot_log,
        "snapshot_compression": settings.snapshot_compression, "archive_dir": settings.archive_dir,
        "keys": key_arguments(settings),
    }  # fmt: skip


def key_arguments(settings: Settings) -> dict[str, str]:
    """Where the encryption key comes from; all empty = no encryption. Never the key itself."""
    return {
        "file": settings.key_file, "environment": settings.key_environment, "command": settings.key_command,
        "credential": settings.key_credential,
    }  # fmt: skip


def keeper_arguments(settings: Settings, has_log: bool, created: bool, has_owner: bool) -> Message:
    """`has_owner`: the descriptor EXTRA_FD is a pidfd of the process with whose end the store ends."""
    return {
        "name": settings.name, "event_fd": EVENT_FD, "has_log": has_log,
        "audit": not created, "owner_fd": EXTRA_FD if has_owner else None,
    }  # fmt: skip
