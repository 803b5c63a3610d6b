"""Frozen, slotted records: what ``@dataclass(frozen=True, slots=True)`` gives, for less.

Events are made on the path of a call, and `import fluxgate` defines some twenty of them: dataclasses would take
about ten times as long for both. A subclass names its fields in ``__slots__`` and annotates them for type checkers.
Code in a hurry fills an instance of `drafts`, the same class without the lock, and makes it the record by setting its
class.
"""

from __future__ import annotations

from ._typing import TYPE_CHECKING, dataclass_transform

if TYPE_CHECKING:
    from typing import Any, ClassVar, NoReturn, Self


class _Drafts:
    """The class of a record's drafts, made when first asked for: a program sees events of a few types only."""

    def __get__(self, instance: object, owner: type[Any]) -> type[Any]:
        unlocked = {
            "__slots__": (),
            "__init__": object.__init__,
            "__setattr__": object.__setattr__,
            "__delattr__": object.__delattr__,
        }
        drafts = owner.drafts = type(owner.__name__, (owner,), unlocked)
        return drafts


_drafts = _Drafts()


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Record:
    """Base of the immutable value types: equal by type and fields, hashable, picklable, printable."""

    __slots__ = ()
    if TYPE_CHECKING:  # at run time `typing.get_type_hints` of a record would look for `ClassVar`
        fields: ClassVar[tuple[str, ...]]
        drafts: ClassVar[_Drafts]
    else:
        fields = ()

    def __init_subclass__(cls) -> None:
        if cls.__setattr__ is object.__setattr__:
            return  # it is a draft
        cls.fields = (*cls.fields, *cls.__dict__.get("__slots__", ()))
        cls.drafts = _drafts  # its own: it must not find its base's

    def __init__(self, **values: Any) -> None:
        if values.keys() != set(self.fields):
            missing = [name for name in self.fields if name not in values]
            unknown = [name for name in values if name not in self.fields]
            raise TypeError(
                f"{type(self).__name__} takes {', '.join(self.fields)}; missing {missing}, unknown {unknown}"
            )
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name!r}")

    def values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in self.fields])

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.values() == other.values()

    def __hash__(self) -> int:
        return hash((type(self), self.values()))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.fields)
        return f"{type(self).__name__}({values})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.values())

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __replace__(self, **changes: Any) -> Self:
        """A copy with some fields changed; ``copy.replace`` calls it from Python 3.13 on."""
        return type(self)(**{**dict(zip(self.fields, self.values(), strict=True)), **changes})


def _restore(cls: type[Record], values: tuple[Any, ...]) -> Record:
    draft = cls.drafts()
    for name, value in zip(cls.fields, values, strict=True):
        setattr(draft, name, value)
    draft.__class__ = cls
    return draft  # type: ignore[no-any-return]
