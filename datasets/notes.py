"""Notes on data sets whose accuracy is probably not what the user means."""

from __future__ import annotations

import re
from collections.abc import Sequence

# "1. cat", "001.Black footed Albatross", "01 cat", "7"; not "747-300", "1.5 litres" or "2nd gear"
NUMBERED_NAME = re.compile(r"(?P<number>\d{1,9})(?:[.)_ -]+\D.*)?", re.DOTALL)
WORDNET_ID = re.compile(r"n\d{8}\b")


def print_class_notes(classnames: Sequence[str]) -> None:
    """Print a note for names that look like list numbers or WordNet ids, and for a single class."""
    if len(classnames) == 1:
        print(
            f'Note: the data set has one class, "{classnames[0]}", so every accuracy is 100%: '
            "is DATASET.FOLDER (--root) one level too high or too low?"
        )
    named_by = "CLIP reads them as they are; DATASET.CLASSNAMES takes a file with better ones"
    if examples := [name for name in classnames if WORDNET_ID.match(name)]:
        hint = f"{named_by}, and tools/fix_imagenet.py writes ImageNet's"
        print(f"Note: class names are WordNet ids ({_first(examples)}): {hint}")
    elif examples := find_numbered_names(classnames):
        print(f"Note: class names begin with numbers ({_first(examples)}): {named_by}")


def find_numbered_names(classnames: Sequence[str]) -> list[str]:
    """Return the names that begin with their number in a list, if most names do; else an empty list.

    Names of things begin with numbers, too ("2012 Audi R8", "747-300"). A list's numbers all differ. They have leading
    zeros, or full stops or brackets behind them, or count from 0 or 1.
    """
    matches = [match for match in map(NUMBERED_NAME.fullmatch, classnames) if match]
    numbers = sorted(int(match["number"]) for match in matches)
    if 2 * len(matches) <= len(classnames) or len({*numbers}) < len(numbers):
        return []
    is_marked = any(re.match(r"0\d|\d+[.)]", match[0]) for match in matches)
    is_count = numbers in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))
    return [match[0] for match in matches] if is_marked or is_count else []


def _first(names: Sequence[str]) -> str:
    """Return the first three names as text."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
