"""`shmkv-supervisor [NAME] [options]`: read the settings, run the supervisor, pass its exit code on.

Why here: the options are made from the table in `shmkv.config`, so that no key can be forgotten. What it needs is
loaded after the persister's interpreter was started, so that both load side by side.
"""

from __future__ import annotations

import os
import sys

from shmkv.supervisor.early import EarlyPersister

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from typing import Any

    from shmkv.config import Settings

DEFAULT_NAME = "default"
BAD_CONFIG = 78  # states.Exit has them all, and would have to be loaded first


def main(argv: list[str] | None = None) -> int:
    """Run a store in the foreground until SIGTERM or SIGINT; returns the exit code."""
    _open_standard_descriptors()
    chosen = sys.argv[1:] if argv is None else argv
    early = EarlyPersister(wanted=wants_persister(chosen, os.environ))
    try:
        return _run(chosen, early)
    finally:
        early.close()


def wants_persister(argv: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether it looks as if this run will need one; a mistake costs an interpreter's start, and nothing else."""
    return "SHMKV_MEMORY_ONLY" not in environ and not {"--memory-only", "--help", "-h"} & set(argv)


def _run(argv: list[str], early: EarlyPersister) -> int:
    from shmkv import config, errors, paths

    arguments = parser().parse_args(argv)
    name = arguments.name or os.environ.get("SHMKV_NAME") or DEFAULT_NAME
    try:
        settings = config.load(
            name, options=chosen_options(arguments), file=arguments.config or os.environ.get("SHMKV_CONFIG")
        )
        data = None if settings.memory_only else os.path.abspath(settings.data_dir or paths.data_dir(name))
        runtime = paths.runtime_dir(name)
    except (config.InvalidSetting, errors.InvalidName) as error:
        print(f"shmkv-supervisor: {error}", file=sys.stderr)
        return BAD_CONFIG
    if settings.listen:
        print("shmkv-supervisor: this build serves no sockets; remove listen from the settings", file=sys.stderr)
        return BAD_CONFIG
    return _supervise(settings, data, runtime, early)


def _supervise(settings: Settings, data: str | None, runtime: str, early: EarlyPersister) -> int:
    if data is None:
        # Only the settings file said so.
        early.close()
    try:
        from shmkv.supervisor.places import Places
        from shmkv.supervisor.service import Supervisor
    except ImportError as error:
        print(
            f"shmkv-supervisor: the installation is not complete: {error}; run `pip install .` or `make native`",
            file=sys.stderr,
        )
        return BAD_CONFIG
    from shmkv.supervisor.loop import Loop
    from shmkv.supervisor.report import Report

    places, report = Places(data, runtime), Report(settings.name)
    return Supervisor(settings, places, report, Loop(), early=early).run()


def parser() -> argparse.ArgumentParser:
    """All options, one for each key of the settings."""
    import argparse

    from shmkv import config

    result = argparse.ArgumentParser(
        prog="shmkv-supervisor",
        description="Run a shmkv store in the foreground.",
        epilog="Every option is also a key of the settings file and a variable SHMKV_ + upper case.",
        allow_abbrev=False,
    )
    result.add_argument(
        "name", nargs="?", metavar="NAME", help=f"name of the store (default: $SHMKV_NAME, else {DEFAULT_NAME})"
    )
    result.add_argument(
        "--config", metavar="FILE", help="settings file (default: /etc/shmkv/NAME.toml, if it is there)"
    )
    for key in config.KEYS:
        default = config.show(key, key.default)
        text = f"{key.help} (default: {default})".replace("%", "%%") if default else key.help
        if key.kind == "flag":
            result.add_argument(key.option, dest=key.name, action="store_const", const=True, help=text)
        elif key.kind == "texts":
            result.add_argument(key.option, dest=key.name, action="append", metavar="ADDRESS", help=text)
        else:
            result.add_argument(key.option, dest=key.name, metavar=key.kind.upper(), help=text)
    return result


def chosen_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keys that were given on the command line."""
    from shmkv import config

    return {key.name: getattr(arguments, key.name) for key in config.KEYS if getattr(arguments, key.name) is not None}


def _open_standard_descriptors() -> None:
    """Children get 0, 1 and 2 by number: make sure that none of them is a lock or a socket of ours."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
