"""CLIP's tokenizer, which names the text that does not fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dassl.utils import UserError
from vlm import openai

CONTEXT_LENGTH = 77  # tokens: the number of positions of OpenAI's text encoders
# Characters of a text. The BPE of a single word of 5,000 takes a second, of ten times as many a minute.
MAX_CHARACTERS = 5000
SOT_TOKEN, EOT_TOKEN = (openai.tokenizer.encoder[word] for word in ("<|startoftext|>", "<|endoftext|>"))


def tokenize(texts: Sequence[str], length: int = CONTEXT_LENGTH, truncate: bool = False) -> torch.Tensor:
    """Return token ids, int64 of shape (len(texts), length): start of text, words, end of text, zeros.

    Args:
        length: tokens of a row, start and end included: the positions of the text encoder.
        truncate: whether a text that is too long loses its last words instead of raising.

    Raises:
        UserError: a text has more than ``length`` tokens or contains ``<|endoftext|>``, and ``truncate`` is False.
    """
    tokens = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        ids = [SOT_TOKEN, *_bpe_encode(text[:MAX_CHARACTERS] if truncate else text), EOT_TOKEN]
        if len(ids) > length and not truncate:
            count = f"{len(ids)} tokens with its start and end"
            raise UserError(f'the prompt "{abbreviate_prompt(text)}" has {count}; CLIP takes {length} tokens')
        if EOT_TOKEN in ids[:-1] and not truncate:
            raise UserError(f'the prompt "{abbreviate_prompt(text)}" contains <|endoftext|>, at which CLIP ends a text')
        ids = ids if len(ids) <= length else [*ids[: length - 1], EOT_TOKEN]
        row[: len(ids)] = torch.tensor(ids)
    return tokens


def count_tokens(text: str) -> int:
    """Return a text's number of tokens, without start and end; UserError for more than MAX_CHARACTERS characters."""
    return len(_bpe_encode(text))


def _bpe_encode(text: str) -> list[int]:
    """Return the token ids of a text, without start and end; UserError for more than MAX_CHARACTERS characters."""
    if len(text) > MAX_CHARACTERS:
        start = f'the prompt "{abbreviate_prompt(text)}" has {len(text):,} letters'
        raise UserError(f"{start}; no prompt of CLIP has {MAX_CHARACTERS:,}")
    return openai.tokenizer.encode(text)


def abbreviate_prompt(text: str) -> str:
    """Return a text of up to 100 characters unchanged, else its first 45 and last 50 around an ellipsis."""
    return text if len(text) <= 100 else f"{text[:45]} … {text[-50:]}"
