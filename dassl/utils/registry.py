"""Registries: names in a config file that stand for classes in the code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .errors import UserError, suggest_name


class Registry:
    """Maps names to classes or functions.

    >>> TRAINER_REGISTRY = Registry("TRAINER")
    >>> @TRAINER_REGISTRY.register()
    ... class CoOp: ...
    """

    def __init__(self, name: str):
        self._name = name
        self._obj_map: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Register ``obj`` under its ``__name__``; without ``obj``, a decorator that does so.

        Raises:
            KeyError: another object holds that name and ``force`` is False.
        """
        if obj is None:
            return lambda decorated: self.register(decorated, force)
        name = obj.__name__
        if not force and self._obj_map.get(name, obj) is not obj:
            raise KeyError(f"{name} is already registered in {self._name}")
        self._obj_map[name] = obj
        return obj

    def get(self, name: str) -> Any:
        """The object of that name; :class:`UserError` with the nearest names if there is none."""
        check_availability(name, self._obj_map, self._name.lower())
        return self._obj_map[name]

    def registered_names(self) -> list[str]:
        return list(self._obj_map)


def check_availability(requested: str | Iterable[str], available: Iterable[str], what: str = "name") -> None:
    """Raise :class:`UserError` unless everything ``requested`` is ``available``; ``what`` names the kind of thing."""
    available = list(available)
    for name in map(str, tolist_if_not(requested)):
        if name not in available:
            problem = f'unknown {what} "{name}"' if name else f"no {what} is given"
            raise UserError(f"{problem}; {suggest_name(name, available)}")


def check_at_least(value: int, least: int, what: str) -> None:
    """Raise :class:`UserError` unless ``value`` is ``least`` or more; ``what`` names it."""
    if value < least:
        raise UserError(f"{what} is {value}; it must be at least {least}")


def tolist_if_not(x: Any) -> list:
    """``[x]``, unless ``x`` is a list (or a tuple) already."""
    return list(x) if isinstance(x, (list, tuple)) else [x]
