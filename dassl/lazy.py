"""Packages whose names are imported from their modules on first use: a tool that reads logs never loads PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def attach(package: str, names: dict[str, str]) -> tuple[Callable[[str], Any], list[str]]:
    """Return ``__getattr__`` and ``__all__`` of a package.

    Args:
        names: module of the package -> what it has, separated by spaces. The package imports the same names under
            ``TYPE_CHECKING``, which editors and type checkers follow.
    """
    modules = {name: module for module, listed in names.items() for name in listed.split()}

    def __getattr__(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return __getattr__, sorted(modules)
