"""The unit file: systemd accepts it, says that it is well locked up, and it has what the store depends on."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shmkv.supervisor.states import FINAL_EXITS

UNIT = Path(__file__).parent.parent / "tools" / "systemd" / "shmkv@.service"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@needs_systemd
def test_systemd_accepts_it() -> None:
    done = subprocess.run(["systemd-analyze", "verify", str(UNIT)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_its_exposure_is_low() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", str(UNIT)], capture_output=True, text=True, timeout=60
    )
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= 1.5


def test_it_has_what_the_store_depends_on() -> None:
    lines = UNIT.read_text().splitlines()
    for line in ("Type=notify", "RemoveIPC=no", "DynamicUser=no", "KillMode=mixed", "PrivateIPC=no"):
        assert line in lines
    assert "RestartPreventExitStatus=" + " ".join(str(int(code)) for code in sorted(FINAL_EXITS)) in lines


def test_every_line_is_explained() -> None:
    """Settings stand in groups; each group starts with a comment that says why."""
    explained = True
    for line in UNIT.read_text().splitlines():
        if line.startswith("#"):
            explained = True
        elif not line or line.startswith("["):
            explained = line in ("[Unit]", "[Install]")
        else:
            assert explained, line
