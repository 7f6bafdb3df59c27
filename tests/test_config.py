"""Settings: where they come from, which wins, how values are read, and what an error tells."""

from datetime import timedelta
from pathlib import Path

import pytest

from shmkv import config


def test_settings_mirror_the_table_of_keys() -> None:
    assert list(config.Settings._fields[1:]) == [key.name for key in config.KEYS]
    defaults = config.Settings("x")
    assert {key.name: getattr(defaults, key.name) for key in config.KEYS} == {
        key.name: key.default for key in config.KEYS
    }


@pytest.mark.parametrize("key", config.KEYS, ids=lambda key: key.name)
def test_every_key_is_documented_and_its_default_is_allowed(key: config.Key) -> None:
    assert len(key.help) > 10
    if key.kind in ("size", "duration", "count"):
        assert key.minimum is not None
        assert key.maximum is not None
    assert config.parse(key.name, key.default, "the default") == key.default


@pytest.mark.parametrize(
    ("text", "size"),
    [(0, 0), (4096, 4096), ("4096", 4096), ("256MB", 256 * 10**6), ("1GiB", 2**30), ("1 GiB", 2**30),
     ("1.5GiB", 3 * 2**29), ("2kb", 2000),
     ("1_000", 1000), ("10TiB", 10 * 2**40)],
)  # fmt: skip
def test_sizes(text: object, size: int) -> None:
    assert config.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "1XB", "-1", -1, 1.5, True, None, "1GB2", "0x10", "nan", "infGB"])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        config.parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (1, 1.0),
        (0.25, 0.25),
        ("1.5", 1.5),
        ("500ms", 0.5),
        ("2min", 120.0),
        ("1h", 3600.0),
        ("1 d", 86400.0),
        (timedelta(minutes=1), 60.0),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert config.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "1y", -1, "-1s", float("nan"), float("inf"), True, None])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        config.parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (2048, "2 KiB"), (1536 * 2**20, "1536 MiB"), (2**30, "1 GiB")]
)
def test_sizes_are_shown_with_the_largest_unit(size: int, text: str) -> None:
    assert config.parse_size(config.format_size(size).replace(" ", "")) == pytest.approx(size, rel=0.01)
    if text != "1536 MiB":
        assert config.format_size(size) == text


def test_options_win_over_variables_and_these_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "orders.toml"
    file.write_text('memory = "32MiB"\nlag_limit = "7s"\ndurability = "always"\n')
    environ = {"SHMKV_LAG_LIMIT": "8", "SHMKV_DURABILITY": "none", "HOME": "/"}
    settings = config.load("orders", options={"durability": "interval"}, environ=environ, file=str(file))
    assert (settings.memory, settings.lag_limit, settings.durability) == (32 << 20, 8.0, "interval")
    assert settings.log_timeout == 5.0
    chosen = config.sources("orders", options={"durability": "interval"}, environ=environ, file=str(file))
    assert {key: place for key, (_, place) in chosen.items()} == {
        "memory": str(file), "lag_limit": "SHMKV_LAG_LIMIT", "durability": "option",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "text", "expected"),
    [
        ({}, 'memroy = "1GiB"', "did you mean 'memory'"),
        ({"SHMKV_DATA_DIRR": "x"}, "", "did you mean 'data_dir'"),
        ({}, "qqqqq = 1", "shmkv-admin config"),
        ({}, 'memory = "1 potato"', "unknown unit 'potato'"),
        ({}, "memory = 1.5", "not float"),
        ({}, "memory = 4096", "8 MiB to 16 TiB"),
        ({}, 'durability = "sometimes"', "always, interval, none"),
        ({}, 'eviction = "lru"', "noeviction"),
        ({}, "memory_only = 3", "use true or false"),
        ({}, 'mode = "0666"', "0600, 0660"),
        ({}, 'memory_only = true\ndata_dir = "/d"', "exclude each other"),
        ({}, 'memory = "16MiB"\nring = "9MiB"', "more than half"),
        ({}, 'group = "users"', "0660"),
        ({}, "memory = ", "is not TOML"),
        ({"SHMKV_LAG_LIMIT": "soon"}, "", "variable SHMKV_LAG_LIMIT"),
    ],
)
def test_an_error_names_the_place_and_what_to_do(
    tmp_path: Path, environ: dict[str, str], text: str, expected: str
) -> None:
    file = tmp_path / "orders.toml"
    file.write_text(text)
    with pytest.raises(config.InvalidSetting) as caught:
        config.load("orders", environ=environ, file=str(file))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(config.InvalidSetting, match="/no/such/file"):
        config.load("orders", environ={}, file="/no/such/file")


def test_variables_of_builds_and_tests_are_no_settings() -> None:
    assert config.load(
        "orders", environ={"SHMKV_BUILD_DEBUG": "1", "SHMKV_TEST_SEED": "7", "SHMKV_NAME": "x"}
    ) == config.Settings("orders")


def test_the_written_file_reads_back_the_same(tmp_path: Path) -> None:
    settings = config.Settings(
        "orders", memory=3 << 28, durability="always", lag_limit=2.5, mode=0o660, listen=("unix:/a", "[::1]:6379")
    )
    file = tmp_path / "orders.toml"
    file.write_text(config.as_toml(settings))
    assert config.load("orders", environ={}, file=str(file)) == settings
    assert all(f"{key.name} = " in file.read_text() for key in config.KEYS)
