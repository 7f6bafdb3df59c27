"""Glob patterns: the dialect case by case, against a second, slow matcher, and patterns made to be slow."""

from __future__ import annotations

import random
import time

import pytest

from shmkv.glob import key_filter, prefix_filter


def slow_match(pattern: str, text: str) -> bool:
    """The definition, for patterns of a, b, ? and *."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return slow_match(pattern[1:], text) or (bool(text) and slow_match(pattern, text[1:]))
    return bool(text) and pattern[0] in ("?", text[0]) and slow_match(pattern[1:], text[1:])


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("", [""], ["a"]),
        ("*", ["", "a", "\n", "a\nb"], []),
        ("**", ["", "abc"], []),
        ("a*", ["a", "ab", "a\n"], ["", "ba"]),
        ("*a", ["a", "ba", "aba"], ["", "ab"]),
        ("a*b*c", ["abc", "aXbYc", "abcbc"], ["ab", "ac", "abcd"]),
        ("?", ["a", "é", "\n"], ["", "ab"]),
        ("h[ae]llo", ["hallo", "hello"], ["hillo", "hllo"]),
        ("h[^e]llo", ["hallo"], ["hello", "hllo"]),
        ("h[!e]llo", ["hallo"], ["hello"]),
        ("[a-c]", ["a", "b", "c"], ["d", "-"]),
        ("[c-a]", ["a", "b", "c"], ["d"]),
        ("[a-]", ["a", "-"], ["b"]),
        (r"[\]]", ["]"], ["\\", "a"]),
        (r"[\^a]", ["^", "a"], ["b"]),
        ("[]", [], ["", "a", "]", "[]"]),
        ("[^]", ["a", "]"], [""]),
        ("[ab", ["a", "b"], ["", "[ab", "c"]),
        (r"\*", ["*"], ["a", "\\*"]),
        (r"\?\[\\", ["?[\\"], ["a[\\"]),
        ("a\\", ["a\\"], ["a"]),
        ("a.b", ["a.b"], ["aXb"]),
        ("(a|b)+$", ["(a|b)+$"], ["a"]),
        ("[.]", ["."], ["a"]),
        ("[&&~~||]", ["&", "~", "|"], ["a"]),
        ("^a$", ["^a$"], ["a"]),
        ("é*", ["é", "éa"], ["e"]),
    ],
)
def test_pattern(pattern: str, matching: list[str], other: list[str]) -> None:
    matches = key_filter(pattern)
    assert [text for text in matching if not matches(text)] == []
    assert [text for text in other if matches(text)] == []


def test_random_patterns_agree_with_the_definition() -> None:
    rng = random.Random(7)
    for _ in range(5000):
        pattern = "".join(rng.choice("ab?**") for _ in range(rng.randrange(9)))
        text = "".join(rng.choice("ab") for _ in range(rng.randrange(12)))
        assert key_filter(pattern)(text) == slow_match(pattern, text), (pattern, text)
        assert key_filter(pattern.encode())(text.encode()) == slow_match(pattern, text), (pattern, text)


def test_bytes_patterns_see_bytes_and_text_patterns_see_characters() -> None:
    assert key_filter("?")("é")
    assert not key_filter(b"?")("é")
    assert key_filter(b"??")("é")
    assert key_filter(b"\xff*")(b"\xffab")
    assert key_filter("?b")(b"\xffb")
    assert not key_filter("é?")(b"\xe9b")
    assert key_filter("é?")(b"\xc3\xa9\xff")


def test_patterns_made_to_be_slow_are_fast() -> None:
    begun = time.monotonic()
    for pattern in ("*a" * 500 + "b", "*" * 1024, "a*" * 500, "*?" * 500 + "b", "[a-b]*" * 170 + "c"):
        key_filter(pattern)("a" * 60_000)
    assert time.monotonic() - begun < 5


def test_prefixes() -> None:
    assert prefix_filter("é")("éa")
    assert prefix_filter("é")(b"\xc3\xa9\xff")
    assert prefix_filter(b"\xc3")("éa")
    assert not prefix_filter(b"\xc3\xff")("éa")
    assert prefix_filter("")(b"\xff")
