"""What the engine needs of `typing` while a program runs, without it: it would make `import fluxgate` a third longer.

So no annotation is evaluated as the engine is imported, and what only annotations name is imported for type checkers
alone: they take the name `TYPE_CHECKING` for true whoever defines it. What the fields of a record are annotated with is
there all the same, for `typing.get_type_hints`.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any
    from typing import cast as cast
    from typing import dataclass_transform as dataclass_transform
    from typing import final as final
    from typing import overload as overload
else:

    def cast(_: object, value: Any) -> Any:
        return value

    def dataclass_transform(**_: bool) -> Callable[[Any], Any]:
        return lambda decorated: decorated

    def final(decorated: Any) -> Any:
        decorated.__final__ = True
        return decorated

    def overload(function: Any) -> Any:
        return function


def when_asked_for(module: str, *names: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a module that has these names from `_protocols`, which needs `typing`."""
    home = sys.modules[module]

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        from . import _protocols

        found = getattr(_protocols, name)
        setattr(home, name, found)
        return found

    def list_all() -> list[str]:
        return sorted({*home.__dict__, *names})

    return get, list_all
