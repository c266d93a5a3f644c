"""The tiny CLIP's weights: half precision, with the token rows that its captions used; the others are regenerated."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

TINY = "tiny"  # its backbone name
FILE = Path(__file__).with_name("tiny.safetensors")
VOCABULARY = 49_408  # CLIP's tokens
SEED = 0  # of the rows that no caption used: they are as CLIP's constructor would leave them, untrained
TABLE, IDS = "token_embedding.weight", "token_embedding.ids"


def token_table(width: int) -> torch.Tensor:
    """Untrained token embeddings (VOCABULARY, width), the same on every machine."""
    return torch.empty(VOCABULARY, width).normal_(std=0.02, generator=torch.Generator().manual_seed(SEED))


def save_tiny(state_dict: dict[str, torch.Tensor], used: torch.Tensor, path: Path = FILE) -> None:
    """Write the weights, with only the ``used`` token rows (ids, shape (n,))."""
    compact = {**state_dict, TABLE: state_dict[TABLE][used]}
    compact = {key: value.half() if value.is_floating_point() else value for key, value in compact.items()}
    save_file({key: value.contiguous() for key, value in compact.items()} | {IDS: used}, path)


def load_tiny(path: Path = FILE) -> dict[str, torch.Tensor]:
    """The state dict of the tiny CLIP, fp32."""
    state_dict = load_file(path)
    used = state_dict.pop(IDS)
    table = token_table(state_dict[TABLE].shape[1])
    table[used] = state_dict[TABLE].float()
    state_dict[TABLE] = table
    return {key: value.float() if value.is_floating_point() else value for key, value in state_dict.items()}
