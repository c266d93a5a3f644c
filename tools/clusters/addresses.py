"""The address that may follow ``--ray`` on a command line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dassl.utils import UserError

ADDRESS = re.compile(r"auto|ray://[^/\s]+:\d+|[^/\s]+:\d+")
ELSE = re.compile(r"-.*|.*\.ya?ml|[A-Z][A-Z0-9_.]*")  # another option, the sweep's file, a config key


def with_address(argv: list[str]) -> list[str]:
    """The arguments, with ``--ray=ADDRESS`` for ``--ray``, which has no address unless the next word is one: argparse
    would take a config key for it.

    Raises:
        UserError: the next word is none, nor anything else that can stand there.
    """
    return list(_joined(iter(argv)))


def _joined(words: Iterator[str]) -> Iterator[str]:
    for word in words:
        if word.startswith("--ray=") and not ADDRESS.fullmatch(word.removeprefix("--ray=")):
            raise _no_address(word.removeprefix("--ray="))
        if word != "--ray":
            yield word
            continue
        following = next(words, "--")
        if ADDRESS.fullmatch(following):
            yield f"--ray={following}"
        elif ELSE.fullmatch(following):
            yield "--ray="
            yield from [] if following == "--" else _joined(iter([following]))
        else:
            raise _no_address(following)


def _no_address(word: str) -> UserError:
    return UserError(
        f'--ray takes the address of a cluster (auto, HOST:PORT, ray://HOST:PORT) or nothing; "{word}" is none'
    )
