"""The settings of a store: one table of keys, read from a TOML file, the environment and options.

Why here: the supervisor, the administration and the documentation all read `KEYS`; a key that is not
in it does not exist.

Invariants:
  I1  Options win over SHMKV_* variables, these over the file, the file over the default.
  I2  A value is checked against its kind and limits where it comes in; the error names that place.
  I3  An unknown key is an error that names the nearest known one, never ignored.
  I4  Named tuples, not dataclasses: `import shmkv` loads this module, and that one loads twenty others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from shmkv import errors, paths

ENVIRONMENT_PREFIX = "SHMKV_"
# Variables of the build and of the tests, which are not settings of a store.
ENVIRONMENT_FOREIGN = ("SHMKV_BUILD_", "SHMKV_TEST_", "SHMKV_CFLAGS", "SHMKV_LDFLAGS", "SHMKV_NAME", "SHMKV_CONFIG")

SIZE_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
DURATION_UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "us": 0.000001, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class InvalidSetting(errors.ShmkvError, ValueError):
    """A setting that is unknown, of the wrong kind or beyond its limits."""


class Key(NamedTuple):
    """One setting: its kind decides how text is read; minimum and maximum are in the unit of the value."""

    name: str
    kind: str  # size | duration | count | flag | choice | text | texts | mode
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """What a bare number means, for people."""
        return {"size": "bytes", "duration": "seconds", "count": "", "mode": "octal"}.get(self.kind, "")

    @property
    def option(self) -> str:
        """The same key as an option of a command."""
        return "--" + self.name.replace("_", "-")


MIB = 1 << 20

KEYS: tuple[Key, ...] = (
    Key("memory", "size", 256 * MIB, "size of the whole shared object, ring included; reserved at the start",
        8 * MIB, 1 << 44),
    Key("ring", "size", 0, "memory of the log that is not yet on disk; 0 = an eighth of memory, 1 to 64 MiB",
        0, 1 << 36),
    Key("expected_items", "count", 0, "how many keys the table is laid out for; 0 = by memory", 0, 1 << 40),
    Key("eviction", "choice", "noeviction", "what a full store does with new keys", choices=("noeviction",)),
    Key("data_dir", "text", "", "directory of the log; empty = the state directory of systemd or of the user"),
    Key("memory_only", "flag", False, "no log and no data directory: the data lives as long as the shared memory"),
    Key("durability", "choice", "interval",
        "when the log is synced to disk: before each write returns, every sync_interval, or never",
        choices=("always", "interval", "none")),
    Key("sync_interval", "duration", 1.0, "longest time between two syncs of the log with durability interval",
        0.001, 3600.0),
    Key("lag_limit", "duration", 5.0, "how long the log may be behind before writers wait", 0.1, 3600.0),
    Key("log_file", "size", 64 * MIB, "size of one file of the log", MIB, 1 << 36),
    Key("snapshot_interval", "duration", 3600.0,
        "longest time between two snapshots while something is written; 0 = no limit", 0.0, 31536000.0),
    Key("snapshot_log", "size", 256 * MIB,
        "a snapshot is taken when the log has grown by this, or by the size of the last snapshot if that is more; "
        "0 = no limit", 0, 1 << 44),
    Key("snapshot_compression", "choice", "none", "compression of snapshots; zstd needs shmkv[zstd]",
        choices=("none", "zstd")),
    Key("archive_dir", "text", "", "directory that log files are copied to before they are trimmed; empty = none"),
    Key("key_file", "text", "", "encrypt what is on disk with the key in this file (needs shmkv[crypto])"),
    Key("key_environment", "text", "", "the same, with the key in this environment variable"),
    Key("key_command", "text", "", "the same, with the key that this command prints"),
    Key("key_credential", "text", "", "the same, with the key in this systemd credential"),
    Key("accept_loss", "flag", False, "start on a damaged log: everything from the damage on is given up"),
    Key("keep_arena", "flag", False, "leave the shared memory in place at a clean stop, for a warm start"),
    Key("lock_timeout", "duration", 5.0, "how long a call waits for a lock before LockTimeout", 0.01, 3600.0),
    Key("log_timeout", "duration", 5.0, "how long a write waits for the log before LogStalled", 0.01, 3600.0),
    Key("mode", "mode", 0o600, "file mode of the shared object: 0600, or 0660 with group", choices=("0600", "0660")),
    Key("group", "text", "", "group that may attach, with mode 0660; empty = the group of the supervisor"),
    Key("listen", "texts", (), "addresses for the Redis protocol: unix:PATH or HOST:PORT"),
    Key("workers", "count", 0, "processes that serve those addresses; 0 = one if listen is set", 0, 256),
    Key("stop_timeout", "duration", 60.0, "how long a stop waits for the log before it kills what hangs", 0.1, 3600.0),
    Key("heartbeat_timeout", "duration", 60.0, "silence after which a child that is not waiting for the disk is killed",
        1.0, 86400.0),
)  # fmt: skip


class Settings(NamedTuple):
    """All settings of one store, checked; sizes in bytes, durations in seconds."""

    name: str
    memory: int = 256 * MIB
    ring: int = 0
    expected_items: int = 0
    eviction: str = "noeviction"
    data_dir: str = ""
    memory_only: bool = False
    durability: str = "interval"
    sync_interval: float = 1.0
    lag_limit: float = 5.0
    log_file: int = 64 * MIB
    snapshot_interval: float = 3600.0
    snapshot_log: int = 256 * MIB
    snapshot_compression: str = "none"
    archive_dir: str = ""
    key_file: str = ""
    key_environment: str = ""
    key_command: str = ""
    key_credential: str = ""
    accept_loss: bool = False
    keep_arena: bool = False
    lock_timeout: float = 5.0
    log_timeout: float = 5.0
    mode: int = 0o600
    group: str = ""
    listen: tuple[str, ...] = ()
    workers: int = 0
    stop_timeout: float = 60.0
    heartbeat_timeout: float = 60.0


def load(
    name: str,
    *,
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    file: str | None = None,
) -> Settings:
    """Settings of a store from options, environment, file and defaults.

    `file`: path of a TOML file; None reads /etc/shmkv/NAME.toml if it is there.
    Raises InvalidSetting or InvalidName, naming the place and the nearest known key.
    """
    return from_sources(name, sources(name, options=options, environ=environ, file=file))


def sources(
    name: str,
    *,
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    file: str | None = None,
) -> dict[str, tuple[Any, str]]:
    """The keys that were set, each with its checked value and the place that set it."""
    paths.check_name(name)
    chosen: dict[str, tuple[Any, str]] = {}
    path = file if file is not None else paths.config_path(name)
    if file is not None or os.path.exists(path):
        for key, value in _read_file(path).items():
            chosen[key] = (parse(key, value, path), path)
    for variable, value in environ.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and not variable.startswith(ENVIRONMENT_FOREIGN):
            key = variable[len(ENVIRONMENT_PREFIX) :].lower()
            chosen[key] = (parse(key, value, f"variable {variable}"), variable)
    for key, value in (options or {}).items():
        chosen[key] = (parse(key, value, "options"), "option")
    return chosen


def from_sources(name: str, chosen: Mapping[str, tuple[Any, str]]) -> Settings:
    """Settings made of `sources`; checks what no key can check alone."""
    settings = Settings(name=paths.check_name(name), **{key: value for key, (value, _) in chosen.items()})
    if settings.memory_only and settings.data_dir:
        raise InvalidSetting(f"memory_only and data_dir {settings.data_dir!r} exclude each other; remove one of them")
    if settings.ring and settings.ring > settings.memory // 2:
        raise InvalidSetting(
            f"ring of {settings.ring} bytes is more than half of memory, {settings.memory}; lower ring or raise memory"
        )
    if settings.group and settings.mode != 0o660:
        raise InvalidSetting(
            f'group {settings.group!r} can only attach with mode 0660, not {settings.mode:04o}; set mode = "0660"'
        )
    return settings


def find_key(name: str, place: str) -> Key:
    """The key of that name; InvalidSetting with the nearest known one if there is none."""
    for key in KEYS:
        if key.name == name:
            return key
    from difflib import get_close_matches

    near = get_close_matches(name, [key.name for key in KEYS], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "`shmkv-admin config` lists the known ones"
    raise InvalidSetting(f"unknown setting {name!r} in {place}; {hint}")


def parse(name: str, value: Any, place: str) -> Any:
    """The checked value of one key, from TOML, text or Python; InvalidSetting says what is allowed."""
    key = find_key(name, place)
    try:
        result = _READERS[key.kind](value)
    except (ValueError, TypeError) as error:
        raise InvalidSetting(f"{name} = {value!r} in {place} is not {_WANTED[key.kind]}: {error}") from None
    shown = f"{result:04o}" if key.kind == "mode" else result
    if key.choices and shown not in key.choices:
        raise InvalidSetting(f"{name} = {value!r} in {place} is not one of {', '.join(key.choices)}")
    if (key.minimum is not None and result < key.minimum) or (key.maximum is not None and result > key.maximum):
        raise InvalidSetting(
            f"{name} = {value!r} in {place} is beyond its limits: {show(key, key.minimum)} to {show(key, key.maximum)}"
        )
    return result


def show(key: Key, value: Any) -> str:
    """A value as people and `parse` read it."""
    if value is None:
        return "no limit"
    if key.kind == "size":
        return format_size(int(value))
    if key.kind == "duration":
        return f"{value:g} s"
    if key.kind == "mode":
        return f"{value:04o}"
    if key.kind == "flag":
        return "true" if value else "false"
    if key.kind == "texts":
        return ", ".join(value)
    return str(value)


def parse_size(value: Any) -> int:
    """Bytes of 1048576, "256MB" (10^6) or "1GiB" (2^30); ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"a size is a whole number of bytes or text as '256MB' or '1GiB', not {type(value).__name__}")
    if isinstance(value, int):
        size = value
    else:
        number, unit = _split_unit(value)
        if unit.lower() not in SIZE_UNITS:
            raise ValueError(
                f"unknown unit {unit!r}; use B, kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (of 1024)"
            )
        factor = SIZE_UNITS[unit.lower()]
        size = int(number) * factor if number.isdecimal() else int(float(number) * factor)
    if size < 0:
        raise ValueError("a size is not negative")
    return size


def parse_duration(value: Any) -> float:
    """Seconds of 1.5, a timedelta, "500ms", "2min" or "1h"; ValueError otherwise."""
    if hasattr(value, "total_seconds"):
        return float(value.total_seconds())
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"a duration is seconds or text as '500ms' or '2min', not {type(value).__name__}")
    if isinstance(value, str):
        number, unit = _split_unit(value)
        if unit not in DURATION_UNITS:
            raise ValueError(f"unknown unit {unit!r}; use us, ms, s, min, h or d")
        value = float(number) * DURATION_UNITS[unit]
    seconds = float(value)
    if not 0 <= seconds < float("inf"):
        raise ValueError("a duration is a finite number that is not negative")
    return seconds


def format_size(size_bytes: int) -> str:
    """A size with the largest unit that loses nothing, else with two decimals."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= factor:
            return f"{size_bytes // factor} {unit}" if size_bytes % factor == 0 else f"{size_bytes / factor:.2f} {unit}"
    return f"{size_bytes} B"


def as_toml(settings: Settings) -> str:
    """A complete settings file: every key with help, unit, default and limits, as a comment where it is the default."""
    lines = [f"# Settings of the shmkv store {settings.name!r}."]
    for key in KEYS:
        value = getattr(settings, key.name)
        limits = f"; {show(key, key.minimum)} to {show(key, key.maximum)}" if key.minimum is not None else ""
        choice = f"; one of {', '.join(key.choices)}" if key.choices else ""
        unit = f"; in {key.unit}" if key.unit else ""
        lines += ["", f"# {key.help}", f"# default {show(key, key.default) or 'empty'}{unit}{limits}{choice}"]
        lines.append(f"{'# ' if value == key.default else ''}{key.name} = {_toml_value(key, value)}")
    return "\n".join(lines) + "\n"


def _toml_value(key: Key, value: Any) -> str:
    import json

    if key.kind in ("flag", "count", "duration"):
        return json.dumps(value)
    if key.kind == "texts":
        return json.dumps(list(value))
    return json.dumps(show(key, value).replace(" ", "") if key.kind == "size" else show(key, value))


def _read_file(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise InvalidSetting(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise InvalidSetting(f"settings file {path} cannot be read: {error.strerror}; check --config") from None


def _split_unit(text: str) -> tuple[str, str]:
    text = text.strip()
    end = len(text)
    while end > 0 and (text[end - 1].isalpha()):
        end -= 1
    number = text[:end].strip().replace("_", "")
    if not number:
        raise ValueError("no number")
    return number, text[end:]


def _read_flag(value: Any) -> bool:
    known = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    raise ValueError("use true or false")


def _read_count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("use a whole number")
    return int(value)


def _read_mode(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise ValueError("use text as '0660'")
    return int(value, 8)


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("use text")
    if "\0" in value:
        raise ValueError("it holds a NUL")
    return value


def _read_texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    return tuple(_read_text(part).strip() for part in value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "size": parse_size, "duration": parse_duration, "count": _read_count, "flag": _read_flag,
    "choice": _read_text, "text": _read_text, "texts": _read_texts, "mode": _read_mode,
}  # fmt: skip
_WANTED = {
    "size": "a size", "duration": "a duration", "count": "a whole number", "flag": "a flag",
    "choice": "a choice", "text": "text", "texts": "a list of texts", "mode": "a file mode",
}  # fmt: skip
