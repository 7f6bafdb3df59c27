"""Glob patterns over keys, in the dialect that users of Redis know.

    *  any run of characters    ?  one character    [abc] [a-z] [^a] [!a]  one of, none of    \\x  x itself

A str pattern sees the characters of keys that are text, a bytes pattern sees bytes.

Invariants:
  I1  No pattern makes matching slower than the product of its length and the key's: every piece after a `*` is matched
      where it first fits and never tried again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

PATTERN_LIMIT: Final = 1024


def key_filter(pattern: str | bytes) -> Callable[[str | bytes], bool]:
    """A predicate on keys; TypeError for what is no pattern, ValueError for one over 1,024 characters."""
    if not isinstance(pattern, str | bytes):
        raise TypeError(f"a pattern is str or bytes, not {type(pattern).__name__}")
    if len(pattern) > PATTERN_LIMIT:
        raise ValueError(f"a pattern has at most {PATTERN_LIMIT} characters, not {len(pattern)}")
    if isinstance(pattern, str):
        of_text = re.compile(translate(pattern), re.DOTALL)
        of_bytes = re.compile(translate(pattern.encode().decode("latin-1")).encode("latin-1"), re.DOTALL)
        return lambda key: (of_text.match(key) if isinstance(key, str) else of_bytes.match(key)) is not None
    only_bytes = re.compile(translate(pattern.decode("latin-1")).encode("latin-1"), re.DOTALL)
    return lambda key: only_bytes.match(key.encode() if isinstance(key, str) else key) is not None


def prefix_filter(prefix: str | bytes) -> Callable[[str | bytes], bool]:
    """A predicate on keys: their bytes start with those of the prefix."""
    if not isinstance(prefix, str | bytes):
        raise TypeError(f"a prefix is str or bytes, not {type(prefix).__name__}")
    raw = prefix.encode() if isinstance(prefix, str) else prefix
    try:
        text = raw.decode()
    except UnicodeDecodeError:  # it may end inside of a character
        return lambda key: (key.encode() if isinstance(key, str) else key).startswith(raw)
    return lambda key: key.startswith(text) if isinstance(key, str) else key.startswith(raw)


def translate(pattern: str) -> str:
    """The regular expression (for DOTALL) that matches what the pattern does."""
    pieces: list[list[str]] = [[]]
    place = 0
    while place < len(pattern):
        character = pattern[place]
        place += 1
        if character == "*":
            if pieces[-1] or len(pieces) == 1:
                pieces.append([])
        elif character == "?":
            pieces[-1].append(".")
        elif character == "[":
            text, place = _translate_set(pattern, place)
            pieces[-1].append(text)
        else:
            if character == "\\" and place < len(pattern):
                character = pattern[place]
                place += 1
            pieces[-1].append(re.escape(character))
    first, *rest = ("".join(piece) for piece in pieces)
    if not rest:
        return first + r"\Z"
    # Atomic groups, since the first place where a piece fits leaves the most for the others.
    middle = "".join(f"(?>.*?{piece})" for piece in rest[:-1])
    return f"{first}{middle}(?>.*)\\Z" if not rest[-1] else f"{first}{middle}.*{rest[-1]}\\Z"


def _translate_set(pattern: str, place: int) -> tuple[str, int]:
    """The set that starts behind a `[`, and where it ends; an unclosed one ends with the pattern, as in Redis."""
    negated = place < len(pattern) and pattern[place] in "^!"
    place += negated
    parts: list[str] = []
    while place < len(pattern) and pattern[place] != "]":
        low, place = _set_character(pattern, place)
        high = low
        if place + 1 < len(pattern) and pattern[place] == "-" and pattern[place + 1] != "]":
            high, place = _set_character(pattern, place + 1)
        low, high = min(low, high), max(low, high)
        parts.append(f"{re.escape(low)}-{re.escape(high)}")
    content = "".join(parts)
    if not content:
        return "." if negated else r"(?!)", place + 1
    return f"[{'^' if negated else ''}{content}]", place + 1


def _set_character(pattern: str, place: int) -> tuple[str, int]:
    if pattern[place] == "\\" and place + 1 < len(pattern):
        place += 1
    return pattern[place], place + 1
