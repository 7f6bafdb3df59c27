"""Places and names: what is accepted, what is refused, and where things lie under systemd and without it."""

import os
from pathlib import Path

import pytest

from shmkv import errors, paths


@pytest.mark.parametrize("name", ["a", "0", "orders", "A.b-c_d", "x" * 64, "tmp-1-2-3"])
def test_names_that_follow_the_rule_are_returned(name: str) -> None:
    assert paths.check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-x", "_x", "a/b", "a b", "x" * 65, "ä", "a\0", "a\n", "\x1b[2J", "a/../b"]
)
def test_names_that_break_the_rule_are_refused_and_the_rule_is_said(name: str) -> None:
    with pytest.raises(errors.InvalidName, match="A-Z a-z 0-9") as caught:
        paths.check_name(name)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", [None, 5, b"orders"])
def test_a_name_is_a_str(name: object) -> None:
    with pytest.raises(errors.InvalidName, match="not a str"):
        paths.check_name(name)  # type: ignore[arg-type]


def test_the_object_is_named_after_the_store() -> None:
    assert paths.object_name("orders") == "/shmkv.orders"
    assert paths.object_path("orders") == "/dev/shm/shmkv.orders"


def test_systemd_decides_first() -> None:
    environ = {
        "RUNTIME_DIRECTORY": "/run/shmkv/orders",
        "STATE_DIRECTORY": "/var/lib/shmkv/orders:/more",
        "XDG_RUNTIME_DIR": "/run/user/7",
    }
    assert paths.runtime_dir("orders", environ) == "/run/shmkv/orders"
    assert paths.data_dir("orders", environ) == "/var/lib/shmkv/orders"


def test_the_session_of_a_user_is_next() -> None:
    environ = {"XDG_RUNTIME_DIR": "/run/user/7", "XDG_STATE_HOME": "/home/ada/state", "HOME": "/home/ada"}
    assert paths.runtime_dir("orders", environ) == "/run/user/7/shmkv/orders"
    assert paths.data_dir("orders", environ) == "/home/ada/state/shmkv/orders"


def test_without_both_it_is_a_private_directory_and_the_home() -> None:
    environ = {"HOME": "/home/ada", "TMPDIR": "/scratch"}
    assert paths.runtime_dir("orders", environ) == f"/scratch/shmkv-{os.geteuid()}/orders"
    assert paths.data_dir("orders", environ) == "/home/ada/.local/state/shmkv/orders"


def test_a_client_looks_at_the_place_of_systemd_too() -> None:
    assert "/run/shmkv/orders" in list(paths.runtime_dirs("orders", {"XDG_RUNTIME_DIR": "/run/user/7"}))


def test_a_throw_away_name_tells_its_maker() -> None:
    name = paths.temporary_name(4242, 99887766, 281474976710655)
    assert paths.check_name(name) == name
    assert paths.temporary_owner(name) == (4242, 99887766)


@pytest.mark.parametrize("name", ["orders", "tmp-1-2", "tmp-1-2-3-4", "tmp-a-2-3", "tmp--2-3", "xtmp-1-2-3"])
def test_other_names_have_no_maker(name: str) -> None:
    assert paths.temporary_owner(name) is None


def test_a_private_directory_is_made_with_its_parent_for_this_user_only(tmp_path: Path) -> None:
    path = paths.make_private_dir(f"{tmp_path}/base/orders")
    assert os.stat(path).st_mode & 0o777 == 0o700
    assert os.stat(tmp_path / "base").st_mode & 0o777 == 0o700
    assert paths.make_private_dir(path) == path


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir(mode=0o700)
    (tmp_path / "base").chmod(0o777)
    with pytest.raises(PermissionError, match="chmod 700"):
        paths.make_private_dir(f"{tmp_path}/base/orders")
