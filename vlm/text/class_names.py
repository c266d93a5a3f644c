"""The names of classes as a text encoder reads them, and sentences with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from dassl.utils import UserError
from vlm.text.encoder import TextEncoder
from vlm.text.prompts import LONGEST
from vlm.text.templates import readable

SHOWN = 5  # names that a note tells of


def class_names(encoder: TextEncoder, classnames: Sequence[str]) -> list[str]:
    """The names of classes as ``encoder`` reads them. It is noted where it reads two of them alike.

    Raises:
        UserError: nothing is left of a name; its class is named.
    """
    names = [readable(name) for name in classnames]
    for number, name in enumerate(names):
        if len(name) <= LONGEST and not encoder.token_count(name):
            raise UserError(f'the name of class {number}, "{classnames[number]}", has no words that CLIP reads')
    groups = alike(encoder, names)
    for group in groups[:SHOWN]:
        told = " and ".join(f'{number} ("{names[number]}")' for number in group)
        print(f"Note: for CLIP, the classes {told} have the same name: by their names alone, it cannot tell them apart")
    if len(groups) > SHOWN:
        print(f"Note: so it is with {len(groups) - SHOWN} further names")
    return names


def alike(encoder: TextEncoder, names: Sequence[str]) -> list[list[int]]:
    """The numbers of the names that are the same tokens: equal ones, those that differ in case or in blanks alone."""
    groups = defaultdict(list)
    for number, ids in enumerate(class_tokens(encoder, names).tolist()):
        groups[tuple(ids)].append(number)
    return [group for group in groups.values() if len(group) > 1]


def class_tokens(encoder: TextEncoder, names: Sequence[str], sentence: str = "{}") -> torch.Tensor:
    """Return token ids (classes, length) of a sentence with the name of each class in its ``{}``."""
    texts = [sentence.replace("{}", name) for name in names]
    try:
        return encoder.tokenize(texts)
    except UserError:
        for number, text in enumerate(texts):
            try:
                encoder.tokenize([text])
            except UserError as error:
                raise UserError(f"class {number}: {error}") from error
        raise
