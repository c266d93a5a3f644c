"""Weights that other libraries load: by their name on the Hugging Face Hub, or from a local folder."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import getproxies

from dassl.utils import UserError, error_reason

DOWNLOAD_HINT = "On a machine with a network, `hf download {0} --local-dir FOLDER` fetches it; {1}FOLDER then names it"


def import_optional(module: str, package: str, user: str) -> ModuleType:
    """Import a module of an optional package, or raise :class:`UserError`; ``user`` is what needs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"{user} needs the package {package}: pip install {package}") from error


@contextmanager
def hub_access(name: str, hint: str) -> Iterator[None]:
    """For a ``with`` in which a library fetches ``name``. Without a network, what was fetched before is taken, at once.

    Raises:
        UserError: what is named cannot be had, or is damaged; ``hint`` says what would help.
    """
    from huggingface_hub import constants

    if name.startswith(("/", ".", "~")) and not os.path.exists(name):
        raise UserError(f"there is no folder {name}")
    before, level = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    constants.HF_HUB_OFFLINE = before or not _is_reachable(constants.ENDPOINT)
    offline = "" if os.path.exists(name) or not constants.HF_HUB_OFFLINE else " (the Hub cannot be reached)"
    logging.disable(logging.ERROR)  # the libraries log what they raise
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the libraries raise whatever their readers meet in a damaged file
        raise UserError(f"{name} cannot be loaded{offline}: {error_reason(error)}\n  {hint}") from error
    finally:
        constants.HF_HUB_OFFLINE = before
        logging.disable(level)


def _is_reachable(endpoint: str) -> bool:
    """Whether the address of the Hub, or a proxy, is known here: the library itself would try for half a minute."""
    if {"https", "all"} & {*getproxies()}:
        return True
    try:
        socket.getaddrinfo(urlsplit(endpoint).hostname, None)
    except OSError:
        return False
    return True
