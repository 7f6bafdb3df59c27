"""`dataclass` and its helpers as those of the standard library, for modules that a restart loads.

Why here: the standard ones write and compile source for each class, 1 to 1.5 ms apiece, and load `inspect`: half of
what a persister's start would cost. These do the same with closures. They are for few, long-lived objects: making one
takes some microseconds. Type checkers see the standard ones.

Invariants:
  I1  What works here works alike with the standard ones, in the part that is used: frozen, slots, defaults,
      factories, comparison, hash, repr. Anything else is a TypeError where the class is made.
"""

from __future__ import annotations

# What type checkers take for true; importing `typing` costs as much as three classes.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import asdict as asdict
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import fields as fields
    from dataclasses import replace as replace
    from typing import Any


class _Factory:
    """A default that is made anew for each object."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def _field(*, default_factory: Callable[[], Any]) -> Any:
    return _Factory(default_factory)


def _dataclass(
    class_: type[Any] | None = None, /, *, frozen: bool = False, slots: bool = False
) -> type[Any] | Callable[[type[Any]], type[Any]]:
    if class_ is None:
        return lambda decorated: _build(decorated, frozen, slots)
    return _build(class_, frozen, slots)


def _build(class_: type[Any], frozen: bool, slots: bool) -> type[Any]:
    own = tuple(class_.__annotations__)
    if class_.__bases__ != (object,) or any("ClassVar" in str(kind) for kind in class_.__annotations__.values()):
        raise TypeError(f"{class_.__name__} has a base class or a class variable: use the standard dataclass")
    body = dict(class_.__dict__)
    defaults = {name: body.pop(name) for name in own if name in body}
    if slots:
        del body["__dict__"], body["__weakref__"]
        body["__slots__"] = own
    body["__light_fields__"] = body["__match_args__"] = own
    for name, method in _methods(own, defaults, frozen, body.get("__post_init__")).items():
        body.setdefault(name, method)
    if not frozen:
        body["__hash__"] = None
    return type(class_.__name__, (), body)


def _methods(own: tuple[str, ...], defaults: dict[str, Any], frozen: bool, after: Any) -> dict[str, Any]:
    put = object.__setattr__

    def __init__(self: Any, *args: Any, **named: Any) -> None:
        if len(args) > len(own):
            raise TypeError(f"{type(self).__name__} takes {len(own)} arguments, not {len(args)}")
        for name, value in zip(own, args):  # noqa: B905 - the rest is named, or has a default
            if name in named:
                raise TypeError(f"{type(self).__name__} got {name!r} twice")
            put(self, name, value)
        for name in own[len(args) :]:
            if name in named:
                put(self, name, named.pop(name))
            elif name in defaults:
                default = defaults[name]
                put(self, name, default.make() if type(default) is _Factory else default)
            else:
                raise TypeError(f"{type(self).__name__} needs {name!r}")
        if named:
            raise TypeError(f"{type(self).__name__} has no {', '.join(map(repr, named))}")
        if after is not None:
            after(self)

    def values(self: Any) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in own)

    def __repr__(self: Any) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in own)})"

    def __eq__(self: Any, other: object) -> Any:
        return values(self) == values(other) if type(other) is type(self) else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(values(self))

    def __setattr__(self: Any, name: str, value: Any) -> None:
        raise AttributeError(f"cannot change {name!r}: a {type(self).__name__} is frozen")

    def __delattr__(self: Any, name: str) -> None:
        raise AttributeError(f"cannot delete {name!r}: a {type(self).__name__} is frozen")

    methods: dict[str, Any] = {"__init__": __init__, "__repr__": __repr__, "__eq__": __eq__}
    if frozen:
        methods |= {"__hash__": __hash__, "__setattr__": __setattr__, "__delattr__": __delattr__}
    return methods


class _Named:
    """What `fields` says of a field."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def _fields(class_: type[Any]) -> tuple[Any, ...]:
    return tuple(map(_Named, class_.__light_fields__))


def _replace(instance: Any, /, **changes: Any) -> Any:
    if not hasattr(type(instance), "__light_fields__"):
        from dataclasses import replace as standard

        return standard(instance, **changes)
    return type(instance)(**{**{name: getattr(instance, name) for name in type(instance).__light_fields__}, **changes})


def _asdict(instance: Any) -> dict[str, Any]:
    return {name: _plain(getattr(instance, name)) for name in type(instance).__light_fields__}


def _plain(value: Any) -> Any:
    if hasattr(type(value), "__light_fields__"):
        return _asdict(value)
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return {key: _plain(each) for key, each in value.items()} if type(value) is dict else value


if not TYPE_CHECKING:
    dataclass, field, fields, replace, asdict = _dataclass, _field, _fields, _replace, _asdict
