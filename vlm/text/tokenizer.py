"""From words to tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dassl.utils import UserError
from vlm import openai

CONTEXT_LENGTH = 77  # tokens; the positions of OpenAI's text encoders
MAX_CHARACTERS = (
    5000  # letters of a text; a single word of so many takes a second to split into tokens, of ten times a minute
)
SOT_TOKEN, EOT_TOKEN = (openai.tokenizer.encoder[word] for word in ("<|startoftext|>", "<|endoftext|>"))


def tokenize(texts: Sequence[str], length: int = CONTEXT_LENGTH, cut: bool = False) -> torch.Tensor:
    """Token ids, int64 of shape (len(texts), length): start, words, end, zeros.

    Raises:
        UserError: a text does not fit into that many tokens, or has CLIP's own mark of an end in it, and is not to be
            ``cut``; it is named.
    """
    tokens = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        ids = [SOT_TOKEN, *_bpe_encode(text[:MAX_CHARACTERS] if cut else text), EOT_TOKEN]
        if len(ids) > length and not cut:
            count = f"{len(ids)} tokens with its start and end"
            raise UserError(f'the prompt "{abbreviate(text)}" has {count}; CLIP takes {length} tokens')
        if EOT_TOKEN in ids[:-1] and not cut:
            raise UserError(
                f'the prompt "{abbreviate(text)}" has <|endoftext|> in it, where its text would end for CLIP'
            )
        ids = ids if len(ids) <= length else [*ids[: length - 1], EOT_TOKEN]
        row[: len(ids)] = torch.tensor(ids)
    return tokens


def count_tokens(text: str) -> int:
    """Tokens of a text, without start and end."""
    return len(_bpe_encode(text))


def _bpe_encode(text: str) -> list[int]:
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f'the prompt "{abbreviate(text)}" has {len(text):,} letters; no prompt of CLIP has {MAX_CHARACTERS:,}'
        )
    return openai.tokenizer.encode(text)


def abbreviate(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:45]} … {text[-50:]}"
