"""Access to models on the Hugging Face Hub or in local folders, through the libraries that load them."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from dassl.utils import UserError, error_reason

DOWNLOAD_HINT = "On a machine with a network, `hf download {0} --local-dir FOLDER` fetches it; {1}FOLDER then names it"
HUB_MIRROR_HINT = (
    "In China, a mirror of the Hub is quicker: set HF_ENDPOINT=https://hf-mirror.com "
    '(PowerShell: $env:HF_ENDPOINT = "https://hf-mirror.com")'
)


@contextmanager
def hub_access(name: str, hint: str) -> Iterator[None]:
    """Let the body of a ``with`` load the model ``name`` through a library; if offline, from the library's cache.

    ``name`` is a name on the Hub, or a folder. An absolute path, or a name that begins with "." or "~", is a folder and
    not expanded.

    Raises:
        UserError: the folder does not exist, or the body fails; ``hint`` ends the message. UserErrors stay as is.
    """
    from huggingface_hub import constants

    if (os.path.isabs(name) or name.startswith((".", "~"))) and not os.path.exists(name):
        raise UserError(f"there is no folder {name}")
    was_offline, level = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    constants.HF_HUB_OFFLINE = was_offline or not _is_reachable(constants.ENDPOINT)
    if is_remote := not os.path.exists(name):
        hint = f"{hint}\n  {HUB_MIRROR_HINT}"
    offline = " (the Hub cannot be reached)" if is_remote and constants.HF_HUB_OFFLINE else ""
    logging.disable(logging.ERROR)  # the libraries log the errors that they raise
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # for a damaged file, the libraries raise any exception of their readers
        raise UserError(f"{name} cannot be loaded{offline}: {error_reason(error)}\n  {hint}") from error
    finally:
        constants.HF_HUB_OFFLINE = was_offline
        logging.disable(level)


def load_complete_model(model_class: Any, name: str, problem: str) -> Any:
    """Return the model ``name`` of a class of transformers, in fp32.

    Raise ``UserError``, which begins with ``problem``, if weights of parameters are absent or have another shape:
    the library fills these at random.
    """
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = model_class.from_pretrained(name, dtype="float32", **options)
    parameters = {key for key, _ in model.named_parameters()}
    if random := parameters.intersection([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]):
        counts = f"{len(random):,} of the {len(parameters):,} parameters of a {type(model).__name__}"
        names = shorten(", ".join(sorted(random)), 200, placeholder=" …")
        raise UserError(f"{problem}: it has no weights, or some of another shape, for {counts} ({names})")
    return model


def _is_reachable(endpoint: str) -> bool:
    """Return whether a proxy is set or the host of ``endpoint`` (URL) resolves; a library would try for 30 s."""
    if {"https", "all"} & {*getproxies()}:
        return True
    try:
        socket.getaddrinfo(urlsplit(endpoint).hostname, None)
    except OSError:
        return False
    return True
