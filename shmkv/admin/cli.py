"""`shmkv-admin`: finds the command, turns every error into one line and an exit code.

Why here: commands return or raise; only this file decides what an error looks like.

Invariants:
  I1  Exit codes: 0 done, 1 failed (a missing key too), 2 wrong usage, 3 the store does not run.
  I2  A command's module is imported only when that command runs (or is listed in a help text).
  I3  An error is one line on standard error that says what to do.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from shmkv import config, errors
from shmkv.admin.session import Session, with_json

COMMANDS = (
    "stats", "clients", "get", "set", "del", "keys", "list", "doctor", "config", "destroy", "shutdown",
    "export", "import", "snapshot", "backup", "restore",
    "log", "verify", "scrub", "rotate-key",
)  # fmt: skip
FAILED, USAGE, NOT_RUNNING = 1, 2, 3


def module_of(command: str) -> str:
    """Where a command lives."""
    return f"shmkv.admin.command_{command.replace('-', '_')}"


class LazyGroup(click.Group):
    """Commands by name; each lives in a module of its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(module_of(cmd_name)).command
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-s",
    "--store",
    metavar="NAME",
    envvar="SHMKV_NAME",
    help="the store; default $SHMKV_NAME, else the only one that there is",
)
@click.option("--timeout", metavar="DURATION", default="5s", help="how long to wait for the store (default 5s)")
@with_json
@click.pass_context
def group(context: click.Context, store: str | None, timeout: str) -> None:
    """Look at and change running shmkv stores."""
    session: Session = context.obj
    session.given_name = store
    try:
        session.timeout_s = config.parse_duration(timeout)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--timeout") from None


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    try:
        # Not group.main(), which makes an end of its own of a closed pipe.
        with group.make_context(
            "shmkv-admin", sys.argv[1:] if arguments is None else arguments, obj=Session()
        ) as context:
            group.invoke(context)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
        return _tell(f"{error.format_message()}{hint}", USAGE)
    except click.Abort:
        return _tell("stopped, nothing more was done", FAILED)
    except click.ClickException as error:
        return _tell(error.format_message(), FAILED)
    except BrokenPipeError:
        # The reader (head, less) has enough; Python would complain when it flushes at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (errors.InvalidName, config.InvalidSetting) as error:
        return _tell(str(error), USAGE)
    except (errors.StoreNotFound, errors.StoreUnavailable) as error:
        return _tell(str(error), NOT_RUNNING)
    except (errors.ShmkvError, OSError, ValueError, TypeError) as error:
        return _tell(str(error), FAILED)


def _tell(text: str, code: int) -> int:
    line = " ".join(text.split())
    print(f"shmkv-admin: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
