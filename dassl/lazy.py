"""Lazy imports: a package imports a name from its modules on first use, so a tool that reads logs loads no PyTorch."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def attach(package: str) -> tuple[Callable[[str], Any], list[str]]:
    """Return ``__getattr__``, which imports a public name on first use, and ``__all__`` for the module ``package``.

    ``package`` is the full name of a package, ``__name__`` in its ``__init__.py``. The public names are those that this
    file imports from the package's own modules under ``TYPE_CHECKING``, where editors and type checkers see them.
    """
    spec: Any = sys.modules[package].__spec__  # Any: importlib declares no loader that has the source
    tree = ast.parse(spec.loader.get_source(package))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    modules = {alias.name: node.module for node in imports for alias in node.names}

    def __getattr__(name: str) -> Any:
        """Import the package's public ``name`` from its module, and return it; ``AttributeError`` for another name."""
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return __getattr__, sorted(modules)
