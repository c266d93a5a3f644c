"""The file of the tiny CLIP's weights: half precision, and only the token embeddings that its captions used.

The other token embeddings are untrained, and drawn again from a fixed seed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

TINY = "tiny"  # the backbone's name
WEIGHTS_FILE = Path(__file__).with_name("tiny.safetensors")
VOCAB_SIZE = 49_408  # tokens: the size of CLIP's vocabulary
SEED = 0  # of the untrained token embeddings; fixed, since the file leaves them out
EMBEDDING_KEY, TOKEN_IDS_KEY = "token_embedding.weight", "token_embedding.ids"


def initial_token_embedding(width: int) -> torch.Tensor:
    """Return untrained token embeddings (VOCAB_SIZE, width), the same on every machine."""
    return torch.empty(VOCAB_SIZE, width).normal_(std=0.02, generator=torch.Generator().manual_seed(SEED))


def save_tiny(state_dict: dict[str, torch.Tensor], used: torch.Tensor, path: Path = WEIGHTS_FILE) -> None:
    """Write a tiny CLIP to ``path`` in half precision; of its token embeddings, only those of the ids ``used`` (n,)."""
    compact = {**state_dict, EMBEDDING_KEY: state_dict[EMBEDDING_KEY][used]}
    compact = {key: value.half() if value.is_floating_point() else value for key, value in compact.items()}
    save_file({key: value.contiguous() for key, value in compact.items()} | {TOKEN_IDS_KEY: used}, path)


def load_tiny(path: Path = WEIGHTS_FILE) -> dict[str, torch.Tensor]:
    """Return the state dict of the tiny CLIP in ``path``, in fp32, with all token embeddings."""
    state_dict = load_file(path)
    used = state_dict.pop(TOKEN_IDS_KEY)
    table = initial_token_embedding(state_dict[EMBEDDING_KEY].shape[1])
    table[used] = state_dict[EMBEDDING_KEY].float()
    state_dict[EMBEDDING_KEY] = table
    return {key: value.float() if value.is_floating_point() else value for key, value in state_dict.items()}
