"""`shmkv-admin scrub` finds rot while the store runs, says where, and leaves nothing damaged behind."""

from __future__ import annotations

from pathlib import Path

import shmkv
from tests.admin.test_admin import Start, admin, document
from tests.conftest import Places


def test_rot_in_a_snapshot_is_named_and_replaced_while_the_store_runs(
    places: Places, supervised: Start, tmp_path: Path
) -> None:
    name = places.name()
    running = supervised(name, "--data-dir", str(tmp_path / "data"))
    with shmkv.attach(name) as db:
        db.update({f"key {number}": "x" * 50 for number in range(500)})
        generation = db.snapshot().generation
    good = document("-s", name, "scrub", "--json")
    assert (good["problems"], good["snapshots"]) == ([], 0)
    path = tmp_path / "data" / "snapshot" / f"{generation:010d}.snapshot"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = admin("-s", name, "scrub", check=1)
    assert str(path) in found.stdout
    assert "1 problem;" in found.stderr
    assert document("-s", name, "scrub", "--json")["problems"] == []
    assert running.stop()[0] == 0
