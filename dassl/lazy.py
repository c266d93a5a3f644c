"""Packages whose names are imported from their modules on first use: a tool that reads logs never loads PyTorch."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def attach(package: str) -> tuple[Callable[[str], Any], list[str]]:
    """Return ``__getattr__`` and ``__all__`` of a package: the names that its file imports from its modules.

    Those under ``TYPE_CHECKING``, where editors follow them, are imported on first use.
    """
    tree = ast.parse(sys.modules[package].__spec__.loader.get_source(package))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    modules = {alias.name: node.module for node in imports for alias in node.names}

    def __getattr__(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return __getattr__, sorted(modules)
