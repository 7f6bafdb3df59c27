"""The supervisor that `embedded` starts: settings come as one JSON argument, events go to a descriptor.

Why here: its own module, so that it reads no file, no environment and no options: the program that
launched it decided everything.
"""

from __future__ import annotations

import json
import sys

from shmkv.supervisor.early import EarlyPersister

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main(argv: list[str]) -> int:
    """`python -m shmkv.supervisor.private JSON`: settings, event_fd, owner_fd, with_runtime."""
    arguments = json.loads(argv[0])
    early = EarlyPersister(wanted=not arguments["settings"]["memory_only"])
    try:
        return _run(arguments, early)
    finally:
        early.close()


def _run(arguments: dict[str, Any], early: EarlyPersister) -> int:
    from shmkv import paths
    from shmkv.config import Settings
    from shmkv.supervisor.report import Report

    settings = Settings(**arguments["settings"])
    report = Report(settings.name, arguments["event_fd"])
    try:
        # Imported here, so that an extension module that can't be loaded is told to the program, not to a terminal.
        from shmkv.supervisor.arena import Refused
        from shmkv.supervisor.loop import Loop
        from shmkv.supervisor.places import Places
        from shmkv.supervisor.service import Supervisor
    except ImportError as error:
        report.failed(1, "StoreUnavailable", f"the installation of shmkv is not complete: {error}")
        return 1
    try:
        runtime = paths.runtime_dir(settings.name) if arguments["with_runtime"] else None
        places = Places(data=settings.data_dir or None, runtime=runtime)
        return Supervisor(settings, places, report, Loop(), early=early, owner_fd=arguments["owner_fd"]).run()
    except Refused as refusal:
        report.failed(refusal.code, refusal.kind, refusal.reason)
        return refusal.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
