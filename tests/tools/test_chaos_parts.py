"""Chaos sees what it is there to see: torn values, lost writes, calls in flight."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.chaos_journal import CHUNK_LIMIT, FIRST_CHUNK, FIRST_COUNT, FIRST_SHARED, Journal, Word
from harness.chaos_values import LARGE_EVERY, chunk, make, parse, parse_chunks
from harness.chaos_worker import TORN, settle, state_in_store, unique

import shmkv


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(str(tmp_path / "journal"), slot=2)
    yield made
    made.close()


@pytest.fixture
def db() -> Iterator[shmkv.Store]:
    with shmkv.launch(memory="32MB") as store:
        yield store


@pytest.mark.parametrize("sequence", [1, 2, LARGE_EVERY])
def test_a_whole_value_is_recognised_and_a_torn_one_is_not(sequence: int) -> None:
    value = make(5, sequence)
    assert parse(5, value) == sequence
    assert parse(6, value) is None
    assert parse(5, value[:-1]) is None
    mixed = make(5, sequence + 1)[: len(value) // 2] + value[len(value) // 2 :]
    assert parse(5, mixed) is None


def test_appended_pieces_are_counted_and_a_missing_one_is_seen() -> None:
    pieces = [chunk(5, 9, number) for number in range(3)]
    assert parse_chunks(5, b"".join(pieces)) == (9, 3)
    assert parse_chunks(5, pieces[0] + pieces[2]) is None


def test_done_moves_what_was_intended_into_the_state(journal: Journal) -> None:
    journal.intend([(1, 10), (2, 11)])
    assert journal.in_flight() == {1: 10, 2: 11}
    journal.done()
    assert (journal.state(1), journal.state(2), journal.in_flight()) == (10, 11, {})


def test_a_shared_increment_in_flight_stays_unknown(journal: Journal) -> None:
    journal.intend_shared(FIRST_SHARED)
    journal.done()
    journal.intend_shared(FIRST_SHARED)
    journal.clear_intent()
    assert (journal.shared(0), journal.words[Word.UNKNOWN]) == (1, 1)


@pytest.mark.parametrize("happened", [False, True])
def test_what_was_in_flight_is_settled_by_looking(db: shmkv.Store, journal: Journal, happened: bool) -> None:
    db[journal.key_name(4)] = make(unique(journal, 4), 1)
    journal.settle(4, 1)
    journal.intend([(4, 2)])
    if happened:
        db[journal.key_name(4)] = make(unique(journal, 4), 2)
    settle(db, journal)
    assert journal.state(4) == (2 if happened else 1)
    assert journal.words[Word.LOST] == journal.words[Word.TORN] == 0


def test_a_lost_write_is_counted(db: shmkv.Store, journal: Journal) -> None:
    journal.settle(4, 1)
    journal.intend([(4, 2)])
    settle(db, journal)
    assert journal.words[Word.LOST] == 1


def test_a_torn_value_is_counted(db: shmkv.Store, journal: Journal) -> None:
    db[journal.key_name(4)] = make(unique(journal, 4), 2)[:-1] + b"!"
    journal.intend([(4, 2)])
    settle(db, journal)
    assert journal.words[Word.TORN] == 1


def test_each_kind_of_key_has_its_state(db: shmkv.Store, journal: Journal) -> None:
    db[journal.key_name(FIRST_CHUNK)] = chunk(unique(journal, FIRST_CHUNK), 3, 0)
    db[journal.key_name(FIRST_COUNT)] = 12
    assert state_in_store(db, journal, FIRST_CHUNK) == 3 * CHUNK_LIMIT + 1
    assert state_in_store(db, journal, FIRST_COUNT) == 12
    assert state_in_store(db, journal, 7) == 0
    db[journal.key_name(FIRST_COUNT)] = "12"
    assert state_in_store(db, journal, FIRST_COUNT) == TORN
