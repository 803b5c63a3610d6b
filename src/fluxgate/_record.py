"""Frozen, slotted records: what ``@dataclass(frozen=True, slots=True)`` gives, for less.

Events are made on the path of a call, and `import fluxgate` defines some twenty of them: dataclasses would take
about ten times as long for both. A subclass names its fields in ``__slots__`` and annotates them for type checkers.
Code in a hurry fills a `_draft`, a subclass without the lock, and
turns it into the record by setting its class.
"""

from typing import Any, ClassVar, NoReturn, Self, dataclass_transform


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Record:
    """Base of the immutable value types: equal by type and fields, hashable, picklable, printable."""

    __slots__ = ()
    _fields: ClassVar[tuple[str, ...]] = ()
    _draft: ClassVar[type[Any]]

    def __init_subclass__(cls) -> None:
        if cls.__setattr__ is object.__setattr__:
            return  # it is a draft
        cls._fields = (*cls._fields, *cls.__dict__.get("__slots__", ()))
        unlocked = {"__slots__": (), "__init__": object.__init__, "__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
        cls._draft = type(cls.__name__, (cls,), unlocked)

    def __init__(self, **values: Any) -> None:
        if values.keys() != set(self._fields):
            missing = [name for name in self._fields if name not in values]
            unknown = [name for name in values if name not in self._fields]
            raise TypeError(f"{type(self).__name__} takes {', '.join(self._fields)}; missing {missing}, unknown {unknown}")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name!r}")

    def _values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in self._fields])

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({values})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self._values())

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __replace__(self, **changes: Any) -> Self:
        """A copy with some fields changed; ``copy.replace`` calls it from Python 3.13 on."""
        return type(self)(**{**dict(zip(self._fields, self._values(), strict=True)), **changes})


def _restore(cls: type[Record], values: tuple[Any, ...]) -> Record:
    draft = cls._draft.__new__(cls._draft)
    for name, value in zip(cls._fields, values, strict=True):
        setattr(draft, name, value)
    draft.__class__ = cls
    return draft  # type: ignore[no-any-return]
