"""From words to tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from dassl.utils import UserError

from . import openai

if TYPE_CHECKING:
    from .text_encoder import TextEncoder

CONTEXT_LENGTH = 77  # tokens; the positions of OpenAI's text encoders
LONGEST = 5000  # letters of a text; a single word of so many takes a second to split into tokens, of ten times a minute
SHOWN = 5  # names that a note tells of
START, END = (openai.tokenizer.encoder[word] for word in ("<|startoftext|>", "<|endoftext|>"))


def tokenize(texts: Sequence[str], length: int = CONTEXT_LENGTH, cut: bool = False) -> torch.Tensor:
    """Token ids, int64 of shape (len(texts), length): start, words, end, zeros.

    Raises:
        UserError: a text does not fit into that many tokens, or has CLIP's own mark of an end in it, and is not to be
            ``cut``; it is named.
    """
    tokens = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        ids = [START, *_encode(text[:LONGEST] if cut else text), END]
        if len(ids) > length and not cut:
            raise UserError(
                f'the prompt "{_shown(text)}" has {len(ids)} tokens with its start and end; CLIP takes {length} tokens'
            )
        if END in ids[:-1] and not cut:
            raise UserError(f'the prompt "{_shown(text)}" has <|endoftext|> in it, where its text would end for CLIP')
        ids = ids if len(ids) <= length else [*ids[: length - 1], END]
        row[: len(ids)] = torch.tensor(ids)
    return tokens


def token_count(text: str) -> int:
    """Tokens of a text, without start and end."""
    return len(_encode(text))


def _encode(text: str) -> list[int]:
    if len(text) > LONGEST:
        raise UserError(f'the prompt "{_shown(text)}" has {len(text):,} letters; no prompt of CLIP has {LONGEST:,}')
    return openai.tokenizer.encode(text)


def _shown(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:45]} … {text[-50:]}"


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
    """Token ids (classes, length) of a sentence with the name of each class in its ``{}``.

    Raises:
        UserError: as :func:`tokenize`; the class is named.
    """
    texts = [sentence.replace("{}", name) for name in names]
    try:
        return encoder.tokenize(texts)
    except UserError:
        for number, text in enumerate(texts):
            try:
                encoder.tokenize([text])
            except UserError as error:
                raise UserError(f'class {number} ("{_shown(names[number])}"): {error}') from error
        raise


def readable(classname: str) -> str:
    """A class name as CLIP reads it: spaces for underscores."""
    return classname.replace("_", " ")
