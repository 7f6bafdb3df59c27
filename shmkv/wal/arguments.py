"""What the supervisor passes to a persister: one JSON object, checked.

Why here: the names and units of the seam between the two processes, apart from what is done with them.
"""

from __future__ import annotations

import json

from shmkv.dataclass import dataclass, field, fields
from shmkv.wal.cipher import KeySettings
from shmkv.wal.compression import COMPRESSIONS
from shmkv.wal.jobs import JobSettings
from shmkv.wal.pace import Settings, SnapshotSettings

DURABILITIES = ("always", "interval", "none")
PLAN_KEYS = ("size_bytes", "max_size_bytes", "ring_bytes", "expected_items")


@dataclass(frozen=True, slots=True)
class Arguments:
    """Durations in seconds, sizes in bytes; plan as for _core.plan, keys as for KeySettings.

    snapshot_interval_s, snapshot_log_bytes: 0 = no limit; archive_dir "" = none.
    """

    name: str
    data_dir: str
    created: bool
    durability: str
    event_fd: int
    plan: dict[str, int]
    sync_interval_s: float = 1.0
    lag_limit_s: float = 5.0
    accept_loss: bool = False
    file_bytes: int = 64 << 20
    lock_timeout_s: float = 10.0
    snapshot_interval_s: float = 0.0
    snapshot_log_bytes: int = 0
    snapshot_compression: str = "none"
    archive_dir: str = ""
    keys: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def parse(text: str) -> Arguments:
        """Raises ValueError, which names the argument."""
        found = json.loads(text)
        known = {name: found[name] for name in (each.name for each in fields(Arguments)) if name in found}
        try:
            arguments = Arguments(**known)
        except TypeError as problem:
            raise ValueError(f"arguments {sorted(found)} do not make a persister: {problem}") from problem
        if arguments.durability not in DURABILITIES:
            raise ValueError(f"durability is {arguments.durability!r}; one of {', '.join(DURABILITIES)}")
        if arguments.snapshot_compression not in COMPRESSIONS:
            raise ValueError(
                f"snapshot_compression is {arguments.snapshot_compression!r}; one of {', '.join(COMPRESSIONS)}"
            )
        plan = {key: arguments.plan[key] for key in PLAN_KEYS if key in arguments.plan}
        return Arguments(**{**known, "plan": plan})

    def key_settings(self) -> KeySettings:
        """Where the encryption key comes from."""
        return KeySettings(**self.keys)

    def pace_settings(self, ring_bytes: int) -> Settings:
        """A sync interval beyond the lag limit would only make writers wait."""
        lag_ms = round(self.lag_limit_s * 1000)
        return Settings(
            self.durability, max(1, min(round(self.sync_interval_s * 1000), lag_ms // 2)), lag_ms, ring_bytes
        )

    def snapshot_settings(self) -> SnapshotSettings:
        return SnapshotSettings(round(self.snapshot_interval_s * 1000), self.snapshot_log_bytes)

    def job_settings(self) -> JobSettings:
        return JobSettings(
            self.name, self.plan, self.file_bytes, compression=self.snapshot_compression, archive_dir=self.archive_dir
        )
