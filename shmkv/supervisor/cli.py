"""`shmkv-supervisor [NAME] [options]`: read the settings, run the supervisor, pass its exit code on.

Why here: the options are made from the table in `shmkv.config`, so that no key can be forgotten.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from shmkv import config, errors, paths
from shmkv.supervisor.states import Exit

DEFAULT_NAME = "default"


def main(argv: list[str] | None = None) -> int:
    """Run a store in the foreground until SIGTERM or SIGINT; returns the exit code."""
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
        return Exit.BAD_CONFIG
    if settings.listen:
        print("shmkv-supervisor: this build serves no sockets; remove listen from the settings", file=sys.stderr)
        return Exit.BAD_CONFIG
    _open_standard_descriptors()
    try:
        from shmkv.supervisor.service import Places, Supervisor
    except ImportError as error:
        print(
            f"shmkv-supervisor: the installation is not complete: {error}; run `pip install .` or `make native`",
            file=sys.stderr,
        )
        return Exit.BAD_CONFIG
    from shmkv.supervisor.loop import Loop
    from shmkv.supervisor.report import Report

    return Supervisor(settings, Places(data, runtime), Report(name), Loop()).run()


def parser() -> argparse.ArgumentParser:
    """All options, one for each key of the settings."""
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
    return {key.name: getattr(arguments, key.name) for key in config.KEYS if getattr(arguments, key.name) is not None}


def _open_standard_descriptors() -> None:
    """Children get 0, 1 and 2 by number: make sure that none of them is a lock or a socket of ours."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
