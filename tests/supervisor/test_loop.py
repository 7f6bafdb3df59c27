"""The event loop: deadlines fire in time and once, descriptors are served, signals arrive as calls."""

import os
import signal

from shmkv.supervisor.loop import Loop, Signals


def test_a_deadline_fires_once_and_not_before_its_time() -> None:
    now_s = [0.0]
    loop = Loop(lambda: now_s[0])
    calls: list[float] = []
    loop.call_at("a", 0.0, calls.append)
    loop.call_at("b", 5.0, calls.append)
    loop.turn()
    assert calls == [0.0]
    now_s[0] = 5.0
    loop.turn()
    assert calls == [0.0, 5.0]
    loop.close()


def test_a_key_that_is_armed_again_moves_its_deadline() -> None:
    loop = Loop(lambda: 3.0)
    calls: list[str] = []
    loop.call_at("a", 1.0, lambda _: calls.append("old"))
    loop.call_at("a", 2.0, lambda _: calls.append("new"))
    loop.call_at("gone", 2.0, lambda _: calls.append("gone"))
    loop.cancel("gone")
    loop.cancel("never armed")
    loop.turn()
    assert calls == ["new"]
    loop.close()


def test_a_descriptor_that_an_earlier_call_closed_is_not_served() -> None:
    loop = Loop()
    first, second = os.pipe(), os.pipe()
    served: list[int] = []

    def serve(mine: int, other: int) -> None:
        served.append(mine)
        loop.forget(other)

    loop.watch(first[0], lambda _: serve(first[0], second[0]))
    loop.watch(second[0], lambda _: serve(second[0], first[0]))
    for pipe in (first, second):
        os.write(pipe[1], b"x")
    loop.turn()
    assert len(served) == 1
    loop.close()
    for descriptor in (*first, *second):
        os.close(descriptor)


def test_signals_become_calls_and_the_old_handlers_come_back() -> None:
    loop = Loop()
    before = signal.getsignal(signal.SIGTERM)
    calls: list[str] = []
    signals = Signals(
        loop, {signal.SIGTERM: lambda _: calls.append("term"), signal.SIGHUP: lambda _: calls.append("hup")}
    )
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGHUP)
    loop.turn()
    assert sorted(calls) == ["hup", "term"]
    signals.close()
    loop.close()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_hangup_that_the_parent_ignores_stays_ignored() -> None:
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    loop = Loop()
    signals = Signals(loop, {signal.SIGHUP: lambda _: None})
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signals.close()
    loop.close()
    signal.signal(signal.SIGHUP, old)
