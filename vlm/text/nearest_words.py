"""The words of the vocabulary that are nearest to learned vectors."""

from __future__ import annotations

import torch
from torch import nn

from vlm import openai


def find_nearest_words(vectors: torch.Tensor, encoder: nn.Module, k: int) -> list[list[tuple[str, float]]]:
    """For each of the ``vectors`` (n, width), the ``k`` words of the text encoder that are nearest to it, the nearest
    first, with their Euclidean distances.

    Exact differences, not products of matrices: the latter lose the digits that distances of near vectors are made of.
    """
    table = encoder.token_embedding.weight.float()
    distances = torch.cdist(vectors.to(table), table, compute_mode="donot_use_mm_for_euclid_dist")
    nearest, ids = distances.topk(min(k, len(table)), largest=False)
    return [
        [(decode_token(encoder, token), distance) for token, distance in zip(*row, strict=True)]
        for row in zip(ids.tolist(), nearest.tolist(), strict=True)
    ]


def decode_token(encoder: nn.Module, token: int) -> str:
    """A token of the text encoder as text. Of CLIP's own, those that begin a longer word end in a hyphen."""
    if hasattr(encoder, "tokenizer"):
        return encoder.tokenizer.convert_ids_to_tokens(token)
    text = openai.tokenizer.decode([token])
    if "\N{REPLACEMENT CHARACTER}" in text:  # a part of a letter
        text = openai.tokenizer.decoder[token].replace("</w>", " ")
    return text.strip() if text.endswith(" ") else f"{text}-"
