"""Long seeded runs of every operation on a store and a dict that must answer alike, audited at the end."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

import shmkv

Audit = Callable[[str], list[dict[str, Any]]]


def random_value(rng: random.Random) -> Any:
    kind = rng.randrange(9)
    size = rng.choice((0, 1, 8, 40, 40, 300, 5000))
    if kind == 0:
        return rng.randbytes(size)
    if kind == 1:
        return "é" * size
    if kind == 2:
        return rng.choice((0, -1, 2**63 - 1, 2**64, rng.getrandbits(80)))
    if kind == 3:
        return rng.random()
    if kind == 4:
        return [rng.randrange(100) for _ in range(size // 4)]
    if kind == 5:
        return {"n": rng.randrange(9), "t": (rng.randrange(9), "x" * size)}
    if kind == 6:
        return rng.choice((None, True, False))
    if kind == 7:
        return rng.randrange(10)
    return (rng.randrange(10),)


class Twin:
    """One store and one dict that must answer alike."""

    def __init__(self, db: shmkv.Store, seed: int) -> None:
        self.db, self.model, self.rng = db, {}, random.Random(seed)  # type: ignore[var-annotated]
        self.keys = [f"key {number}" for number in range(300)]
        self.operations = [getattr(self, name) for name in dir(self) if name.startswith("do_")]

    def key(self) -> str:
        return self.rng.choice(self.keys)

    def step(self) -> None:
        self.rng.choice(self.operations)()

    def do_set(self) -> None:
        key, value = self.key(), random_value(self.rng)
        self.db[key] = self.model[key] = value

    def do_get(self) -> None:
        key = self.key()
        assert self.db.get(key, "none") == self.model.get(key, "none")
        assert (key in self.db) == (key in self.model)

    def do_delete(self) -> None:
        key = self.key()
        assert self.db.delete(key) == (self.model.pop(key, self) is not self)

    def do_pop(self) -> None:
        key = self.key()
        assert self.db.pop(key.encode(), "none") == self.model.pop(key, "none")

    def do_setdefault(self) -> None:
        key, value = self.key(), random_value(self.rng)
        assert self.db.setdefault(key, value) == self.model.setdefault(key, value)

    def do_conditional_set(self) -> None:
        key, value = self.key(), random_value(self.rng)
        absent = self.rng.random() < 0.5
        wanted = (key not in self.model) if absent else (key in self.model)
        assert self.db.set(key, value, if_absent=absent, if_present=not absent) == wanted
        if wanted:
            self.model[key] = value

    def do_incr(self) -> None:
        key, amount = self.key(), self.rng.choice((1, -5, 2**62, 0.5, 2**70))
        old = self.model.get(key, 0)
        if type(old) in (int, float):
            result = self.db.incr(key, amount)
            assert result == old + amount
            assert type(result) is type(old + amount)
            self.model[key] = result
        else:
            with pytest.raises(TypeError):
                self.db.incr(key, amount)

    def do_append(self) -> None:
        key, text = self.key(), "é" * self.rng.randrange(50)
        old = self.model.get(key, "")
        if type(old) is str:
            self.model[key] = old + text
            assert self.db.append(key, text) == len(self.model[key].encode())

    def do_modify(self) -> None:
        key = self.key()
        self.model[key] = [self.model.get(key, 0)] if type(self.model.get(key, 0)) in (int, float) else 1
        assert self.db.modify(key, lambda old: [old] if type(old) in (int, float) else 1, default=0) == self.model[key]

    def do_update(self) -> None:
        pairs = {self.key(): random_value(self.rng) for _ in range(self.rng.randrange(20))}
        self.model.update(pairs)
        self.db.update(pairs)

    def do_many(self) -> None:
        keys = [self.key() for _ in range(20)]
        assert self.db.get_many(keys) == {key: self.model[key] for key in keys if key in self.model}
        if self.rng.random() < 0.3:
            doomed = set(keys[:5])
            assert self.db.delete_many(list(doomed)) == len(doomed & self.model.keys())
            for key in doomed:
                self.model.pop(key, None)

    def do_seldom(self) -> None:
        chance = self.rng.random()
        if chance < 0.01:
            self.db.clear()
            self.model.clear()
        elif chance < 0.02 and self.model:
            key, value = self.db.popitem()
            assert self.model.pop(key) == value
        elif chance < 0.08:
            self.compare()

    def compare(self) -> None:
        assert len(self.db) == len(self.model)
        assert dict(self.db.items()) == self.model
        assert set(self.db) == self.model.keys()
        prefix = f"key {self.rng.randrange(10)}"
        assert set(self.db.scan(prefix=prefix)) == {key for key in self.model if key.startswith(prefix)}


def random_run(db: shmkv.Store, audit: Audit, seed: int, steps: int) -> None:
    twin = Twin(db, seed)
    for number in range(steps):
        try:
            twin.step()
        except BaseException:
            print(f"seed {seed}, step {number}")
            raise
    twin.compare()
    assert audit(db.name) == []


def test_a_long_random_run_is_equal_to_a_dict(db: shmkv.Store, audit: Audit) -> None:
    random_run(db, audit, 1, 40_000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 10))
def test_longer_random_runs_are_equal_to_a_dict(db: shmkv.Store, audit: Audit, seed: int) -> None:
    random_run(db, audit, seed, 200_000)
