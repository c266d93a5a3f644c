"""Registries: maps from names in a config file to classes in the code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .errors import UserError, suggest_name


class Registry:
    """A map from names to classes or functions; ``name`` is what messages call these, such as "TRAINER".

    >>> TRAINER_REGISTRY = Registry("TRAINER")
    >>> @TRAINER_REGISTRY.register()
    ... class CoOp: ...
    """

    def __init__(self, name: str):
        self._name = name
        self._obj_map: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Register ``obj`` under its ``__name__`` and return it; without ``obj``, return a decorator that does so.

        Raises:
            KeyError: another object has that name and ``force`` is False.
        """
        if obj is None:
            return lambda decorated: self.register(decorated, force)
        name = obj.__name__
        if not force and self._obj_map.get(name, obj) is not obj:
            raise KeyError(f"{name} is already registered in {self._name}")
        self._obj_map[name] = obj
        return obj

    def get(self, name: str) -> Any:
        """Return the object of that name; raise ``UserError`` with the known names if there is none."""
        check_availability(name, self._obj_map, self._name.lower())
        return self._obj_map[name]

    def registered_names(self) -> list[str]:
        """Return all names in the order of registration."""
        return list(self._obj_map)


def check_availability(requested: str | Iterable[str], available: Iterable[str], kind: str = "name") -> None:
    """Raise ``UserError`` unless each ``requested`` name is ``available``.

    Args:
        requested: a name, or a list or tuple of names.
        kind: the kind of the names in the message, such as "trainer".
    """
    available = list(available)
    for name in map(str, tolist_if_not(requested)):
        if name not in available:
            problem = f'unknown {kind} "{name}"' if name else f"no {kind} is given"
            raise UserError(f"{problem}; {suggest_name(name, available)}")


def check_at_least(value: float, minimum: float, name: str) -> None:
    """Raise ``UserError``, with ``name`` as the value's name in the message, if ``value`` is below ``minimum``."""
    if value < minimum:
        raise UserError(f"{name} is {value}; it must be at least {minimum}")


def tolist_if_not(x: Any) -> list:
    """Return a list or a tuple as a list, and any other value ``x`` as ``[x]``."""
    return list(x) if isinstance(x, (list, tuple)) else [x]
