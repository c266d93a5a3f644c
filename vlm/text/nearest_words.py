"""Interpretation of learned context vectors by the nearest words of the vocabulary."""

from __future__ import annotations

import torch

from vlm import openai
from vlm.text.encoder import TextEncoder


def find_nearest_words(vectors: torch.Tensor, encoder: TextEncoder, k: int) -> list[list[tuple[str, float]]]:
    """Return, for each of the ``vectors`` (n, width), its ``k`` nearest tokens as (text, Euclidean distance) pairs.

    The nearest token comes first. Distances are computed from differences, since matrix products are less exact.
    """
    table = encoder.token_embedding.weight.float()
    distances = torch.cdist(vectors.to(table), table, compute_mode="donot_use_mm_for_euclid_dist")
    nearest, ids = distances.topk(min(k, len(table)), largest=False)
    return [
        [(decode_token(encoder, token), distance) for token, distance in zip(*row, strict=True)]
        for row in zip(ids.tolist(), nearest.tolist(), strict=True)
    ]


def decode_token(encoder: TextEncoder, token: int) -> str:
    """Return a token id as text; a token of CLIP that does not end a word gets a hyphen at its end."""
    tokenizer = getattr(encoder, "tokenizer", None)  # Chinese-CLIP's BERT has its own
    if tokenizer is not None:
        return tokenizer.convert_ids_to_tokens(token)
    text = openai.tokenizer.decode([token])
    if "\N{REPLACEMENT CHARACTER}" in text:  # the token is a part of a letter's UTF-8 bytes
        text = openai.tokenizer.decoder[token].replace("</w>", " ")
    return text.strip() if text.endswith(" ") else f"{text}-"
