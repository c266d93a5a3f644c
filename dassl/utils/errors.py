"""The error for what a user can mend: one message, exit code 2, no traceback. Anything else is a bug."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Says what is wrong, where, and what would be right."""

    def __str__(self) -> str:
        # A DataLoader worker hands its error over inside its whole traceback; the message is what follows our name.
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].strip()


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the most similar known one (if any is), then all of them."""
    known = sorted(known)
    folded = {k.lower(): k for k in known}
    match = get_close_matches(name.lower(), folded, n=1)
    hint = f'did you mean "{folded[match[0]]}"? ' if match else ""
    return f"{hint}Known: {', '.join(known) or 'none'}"
