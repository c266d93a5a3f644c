"""From words to tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dassl.utils import UserError

from . import openai

CONTEXT_LENGTH = 77  # tokens; the positions of OpenAI's text encoders


def tokenize(texts: Sequence[str], length: int = CONTEXT_LENGTH, cut: bool = False) -> torch.Tensor:
    """Token ids, int64 of shape (len(texts), length): start, words, end, zeros.

    Raises:
        UserError: a text does not fit into that many tokens, and is not to be ``cut``; it is named.
    """
    try:
        return openai.tokenize(list(texts), length, truncate=cut).long()
    except RuntimeError as error:
        longest = max(texts, key=token_count)
        shown = longest if len(longest) <= 100 else f"{longest[:45]} … {longest[-50:]}"
        raise UserError(
            f'the prompt "{shown}" has {token_count(longest) + 2} tokens with its start and end; CLIP takes '
            f"{length} tokens"
        ) from error


def token_count(text: str) -> int:
    """Tokens of a text, without start and end."""
    return len(openai.tokenizer.encode(text))


def readable(classname: str) -> str:
    """A class name as CLIP reads it: spaces for underscores."""
    return classname.replace("_", " ")
