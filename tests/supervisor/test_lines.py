"""JSON lines: however the bytes are cut, the same messages come out; what is too long or no object is an error."""

import pytest

from shmkv.supervisor.lines import LINE_LIMIT, LineReader, ProtocolError, encode

MESSAGES = [{"do": "status"}, {"text": 'ä\n"', "n": 1}, {}]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_messages_are_found_however_the_bytes_are_cut(step: int) -> None:
    data = b"".join(encode(message) for message in MESSAGES)
    reader = LineReader()
    found = [message for start in range(0, len(data), step) for message in reader.feed(data[start : start + step])]
    assert found == MESSAGES


def test_empty_lines_are_nothing() -> None:
    assert LineReader().feed(b"\n \n{}\n") == [{}]


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n", b"1\n", b"null\n", b"\xff\n", b'{"a":}\n'])
def test_what_is_no_object_is_an_error(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        LineReader().feed(line)


def test_a_line_at_the_limit_passes_and_one_beyond_does_not() -> None:
    fits = b'{"a":"' + b"x" * (LINE_LIMIT - 8) + b'"}'
    assert len(fits) == LINE_LIMIT
    assert LineReader().feed(fits + b"\n")
    with pytest.raises(ProtocolError, match="65536"):
        LineReader().feed(b"x" + fits + b"\n")


def test_an_endless_line_is_refused_before_its_end() -> None:
    reader = LineReader()
    with pytest.raises(ProtocolError):
        for _ in range(LINE_LIMIT):
            reader.feed(b"xx")
