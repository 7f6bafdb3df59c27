"""The way from a backup to a later moment: across files, folders, lives and branches; what is missing is named."""

from __future__ import annotations

import pytest

from shmkv.errors import CorruptData
from shmkv.wal.chain import Point, life_at_lsn, life_at_time, lives_of, segments_to
from shmkv.wal.log import HEADER_BLOCK_BYTES, FileHeader, LogFile

STORE = b"s" * 16
OTHER = b"o" * 16


def file(
    number: int, life: int, first_lsn: int, previous: tuple[int, int] | None = None, *, wall_ms: int = 0,
    store_id: bytes = STORE, folder: str = "log",
) -> LogFile:  # fmt: skip
    before = (life, first_lsn) if previous is None else previous
    size_bytes = HEADER_BLOCK_BYTES + 10_000
    header = FileHeader(store_id, life, first_lsn, number, *before, wall_ms, size_bytes)
    return LogFile(f"{folder}/{number}", number, size_bytes, header)


def parts(found: list[LogFile], start: Point, base: Point, goal: int) -> list[tuple[int, int, int | None]]:
    segments = segments_to(lives_of(found, STORE), start, base, goal)
    return [(segment.file.number, segment.start_lsn, segment.end_lsn) for segment in segments]


def test_files_of_one_life_follow_each_other_and_the_last_one_is_open() -> None:
    found = [file(3, 1, 300), file(1, 1, 100, (0, 0)), file(2, 1, 200)]
    assert parts(found, Point(1, 150), Point(1, 180), 1) == [(1, 150, 200), (2, 200, 300), (3, 300, None)]


def test_a_file_whose_sync_failed_counts_up_to_the_first_lsn_of_the_one_that_repeats_it() -> None:
    found = [file(1, 1, 100, (0, 0)), file(2, 1, 200), file(3, 1, 200), file(4, 1, 260)]
    assert parts(found, Point(1, 100), Point(1, 100), 1) == [(1, 100, 200), (3, 200, 260), (4, 260, None)]


def test_the_same_file_in_log_and_archive_counts_once_and_other_stores_not_at_all() -> None:
    found = [file(1, 1, 100, (0, 0)), file(1, 1, 100, (0, 0), folder="archive"), file(2, 1, 200, store_id=OTHER)]
    segments = segments_to(lives_of(found, STORE), Point(1, 100), Point(1, 100), 1)
    assert [segment.file.path for segment in segments] == ["log/1"]


def test_the_way_goes_through_every_life_between() -> None:
    found = [file(1, 1, 100, (0, 0)), file(2, 2, 5000, (1, 180)), file(3, 2, 5100), file(4, 3, 9000, (2, 5150))]
    assert parts(found, Point(1, 120), Point(1, 150), 3) == [
        (1, 120, 180), (2, 5000, 5100), (3, 5100, 5150), (4, 9000, None),
    ]  # fmt: skip


def test_after_a_restore_both_branches_can_be_reached() -> None:
    # Life 1 went on to 400; then its state at 200 was restored, and life 3 goes on from there.
    found = [file(1, 1, 100, (0, 0)), file(2, 1, 300), file(3, 3, 5000, (1, 200))]
    base = Point(1, 150)
    assert life_at_lsn(lives_of(found, STORE), base, 350) == 1
    assert parts(found, base, base, 1) == [(1, 150, 300), (2, 300, None)]
    assert life_at_lsn(lives_of(found, STORE), base, 5001) == 3
    assert parts(found, base, base, 3) == [(1, 150, 200), (3, 5000, None)]


def test_a_backup_of_an_abandoned_branch_does_not_lead_into_the_new_one() -> None:
    found = [file(1, 1, 100, (0, 0)), file(2, 1, 300), file(3, 3, 5000, (1, 200))]
    with pytest.raises(CorruptData, match=r"not on the way to life 3: that descends from life 1, left at LSN 200"):
        segments_to(lives_of(found, STORE), Point(1, 350), Point(1, 350), 3)


def test_the_life_at_a_time_is_the_one_that_had_begun() -> None:
    found = [file(1, 1, 100, (0, 0), wall_ms=10), file(2, 2, 5000, (1, 180), wall_ms=20)]
    lives = lives_of(found, STORE)
    assert [life_at_time(lives, Point(1, 100), wall_ms) for wall_ms in (5, 19, 20, 99)] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("found", "what"),
    [
        ([file(2, 1, 200)], r"from LSN 150 to 200 \(life 1\) is missing"),
        ([file(4, 3, 9000, (2, 5150)), file(1, 1, 100, (0, 0))], r"life 2, up to LSN 5150, is missing"),
        ([file(1, 1, 100, (0, 0)), file(5, 3, 9500)], r"log of life 3 before LSN 9500 is missing"),
        ([file(4, 3, 9000, (1, 180))], r"from LSN 150 to 180 \(life 1\) is missing"),
    ],
)
def test_what_is_missing_is_named(found: list[LogFile], what: str) -> None:
    goal = max(each.header.incarnation for each in found if each.header is not None)
    with pytest.raises(CorruptData, match=what):
        segments_to(lives_of(found, STORE), Point(1, 150), Point(1, 150), goal)


def test_a_state_at_the_very_end_of_its_life_needs_none_of_its_files() -> None:
    found = [file(4, 3, 9000, (1, 180))]
    assert parts(found, Point(1, 180), Point(1, 180), 3) == [(4, 9000, None)]
