"""Values of the tour are recognised byte for byte, and nothing else is."""

from pathlib import Path

import pytest
from harness import tour_input
from harness.tour_input import File, content_of, digest_matches, facts_of, generation_of_content, generation_of_facts


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> File:
    (tmp_path / "module.py").write_bytes(b"print('x')\n# generation 0000000001\n")
    monkeypatch.setattr(tour_input.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    return tour_input.read_library(None)[1][0]


@pytest.mark.parametrize("generation", [0, 1, 12345])
def test_each_generation_is_recognised(file: File, generation: int) -> None:
    assert generation_of_content(file, content_of(file, generation)) == generation
    assert generation_of_facts(file, facts_of(file, generation)) == generation
    assert digest_matches(file, content_of(file, generation))


def test_a_changed_byte_is_no_generation(file: File) -> None:
    good = content_of(file, 7)
    for position in range(len(good)):
        bad = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
        assert generation_of_content(file, bad) != 7


@pytest.mark.parametrize("value", [None, "text", b"", b"print('x')"])
def test_what_was_never_written_is_no_generation(file: File, value: object) -> None:
    assert generation_of_content(file, value) is None
    assert not digest_matches(file, value)


def test_a_fact_of_another_type_is_wrong(file: File) -> None:
    facts = facts_of(file, 2)
    assert generation_of_facts(file, {**facts, "suffixes": list(facts["suffixes"])}) is None
    assert generation_of_facts(file, {**facts, "size": float(facts["size"])}) is None
