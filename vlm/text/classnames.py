"""The names of classes as a text encoder reads them, and sentences with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from dassl.utils import UserError
from vlm.text.encoder import TextEncoder
from vlm.text.templates import clean_classname
from vlm.text.tokenizer import MAX_CHARACTERS

MAX_NOTES = 5  # names that a note tells of


def clean_classnames(encoder: TextEncoder, classnames: Sequence[str]) -> list[str]:
    """The names of classes as ``encoder`` reads them. It is noted where it reads two of them alike.

    Raises:
        UserError: nothing is left of a name; its class is named.
    """
    names = [clean_classname(name) for name in classnames]
    for number, name in enumerate(names):
        if len(name) <= MAX_CHARACTERS and not encoder.count_tokens(name):
            raise UserError(f'the name of class {number}, "{classnames[number]}", has no words that CLIP reads')
    groups = find_identical_names(encoder, names)
    for group in groups[:MAX_NOTES]:
        told = " and ".join(f'{number} ("{names[number]}")' for number in group)
        print(f"Note: for CLIP, the classes {told} have the same name: by their names alone, it cannot tell them apart")
    if len(groups) > MAX_NOTES:
        print(f"Note: so it is with {len(groups) - MAX_NOTES} further names")
    return names


def find_identical_names(encoder: TextEncoder, names: Sequence[str]) -> list[list[int]]:
    """The numbers of the names that are the same tokens: equal ones, those that differ in case or in blanks alone."""
    groups = defaultdict(list)
    for number, ids in enumerate(tokenize_class_prompts(encoder, names).tolist()):
        groups[tuple(ids)].append(number)
    return [group for group in groups.values() if len(group) > 1]


def tokenize_class_prompts(encoder: TextEncoder, names: Sequence[str], sentence: str = "{}") -> torch.Tensor:
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
