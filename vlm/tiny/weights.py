"""The tiny CLIP's weights: half precision, with the token rows that its captions used; the others are regenerated."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

TINY = "tiny"  # its backbone name
WEIGHTS_FILE = Path(__file__).with_name("tiny.safetensors")
VOCAB_SIZE = 49_408  # CLIP's tokens
SEED = 0  # of the rows that no caption used: they are as CLIP's constructor would leave them, untrained
EMBEDDING_KEY, TOKEN_IDS_KEY = "token_embedding.weight", "token_embedding.ids"


def initial_token_embedding(width: int) -> torch.Tensor:
    """Untrained token embeddings (VOCABULARY, width), the same on every machine."""
    return torch.empty(VOCAB_SIZE, width).normal_(std=0.02, generator=torch.Generator().manual_seed(SEED))


def save_tiny(state_dict: dict[str, torch.Tensor], used: torch.Tensor, path: Path = WEIGHTS_FILE) -> None:
    """Write the weights, with only the ``used`` token rows (ids, shape (n,))."""
    compact = {**state_dict, EMBEDDING_KEY: state_dict[EMBEDDING_KEY][used]}
    compact = {key: value.half() if value.is_floating_point() else value for key, value in compact.items()}
    save_file({key: value.contiguous() for key, value in compact.items()} | {TOKEN_IDS_KEY: used}, path)


def load_tiny(path: Path = WEIGHTS_FILE) -> dict[str, torch.Tensor]:
    """The state dict of the tiny CLIP, fp32."""
    state_dict = load_file(path)
    used = state_dict.pop(TOKEN_IDS_KEY)
    table = initial_token_embedding(state_dict[EMBEDDING_KEY].shape[1])
    table[used] = state_dict[EMBEDDING_KEY].float()
    state_dict[EMBEDDING_KEY] = table
    return {key: value.float() if value.is_floating_point() else value for key, value in state_dict.items()}
