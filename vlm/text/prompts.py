"""From words to tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dassl.utils import UserError
from vlm import openai

CONTEXT_LENGTH = 77  # tokens; the positions of OpenAI's text encoders
LONGEST = 5000  # letters of a text; a single word of so many takes a second to split into tokens, of ten times a minute
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
            count = f"{len(ids)} tokens with its start and end"
            raise UserError(f'the prompt "{shown(text)}" has {count}; CLIP takes {length} tokens')
        if END in ids[:-1] and not cut:
            raise UserError(f'the prompt "{shown(text)}" has <|endoftext|> in it, where its text would end for CLIP')
        ids = ids if len(ids) <= length else [*ids[: length - 1], END]
        row[: len(ids)] = torch.tensor(ids)
    return tokens


def token_count(text: str) -> int:
    """Tokens of a text, without start and end."""
    return len(_encode(text))


def _encode(text: str) -> list[int]:
    if len(text) > LONGEST:
        raise UserError(f'the prompt "{shown(text)}" has {len(text):,} letters; no prompt of CLIP has {LONGEST:,}')
    return openai.tokenizer.encode(text)


def shown(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:45]} … {text[-50:]}"
