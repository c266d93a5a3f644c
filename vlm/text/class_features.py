"""Text features of many classes: computed in blocks of classes, and kept for the runs to come.

A block is the same classes in every run, computed by themselves. So what is found on disk is bit for bit what would be
computed, and a run that was killed goes on at the block it was at. Up to :data:`BLOCK_CLASSES` classes are one block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec

import torch
from tqdm import tqdm

from vlm.images.encoder import get_processor_name
from vlm.images.feature_store import FeatureStore
from vlm.text.encoder import TextEncoder
from vlm.text.layout import CHUNK_TOKENS, GROUP_TOKENS, MIN_ROWS

BLOCK_CLASSES = 1024  # classes
MIN_CACHED_PROMPTS = 2048  # prompts of a run: so few are computed in seconds, and trainers do not keep them

PromptInputs = Sequence[torch.Tensor]
EncodeFunction = Callable[..., torch.Tensor]


def encode_classes(
    count: int,
    inputs: Callable[[torch.Tensor], PromptInputs],
    encode: EncodeFunction,
    store: FeatureStore | None,
    name: str = "",
) -> torch.Tensor:
    """Return features (count, embed_dim), as ``encode(*inputs(classes))`` gives them (classes, embed_dim).

    Args:
        count: classes.
        inputs: tensors that tell all about the prompts of some classes (int64 numbers), beside the encoder.
        store: has them from earlier runs, and keeps what is computed.
        name: of the prompts, for the progress bar.
    """
    blocks = torch.arange(count).split(BLOCK_CLASSES)
    silent = True if len(blocks) == 1 else None
    bar = tqdm(blocks, disable=silent, leave=False, desc=f"encoding classes{name}", unit="block")
    return torch.cat([_encode_block(inputs(classes), len(classes), encode, store) for classes in bar])


def _encode_block(inputs: PromptInputs, count: int, encode: EncodeFunction, store: FeatureStore | None) -> torch.Tensor:
    if store is None:
        return encode(*inputs)
    keys = block_keys(inputs, count)
    found = store.get(keys)
    if len(found) < count:
        with store.locked():
            found = store.get(keys)  # another process may have computed them in the meantime
            if len(found) < count:
                features = encode(*inputs)
                store.keep(keys, features.cpu())
                return features
    return torch.stack([found[key] for key in keys]).to(inputs[0].device)


def block_keys(inputs: PromptInputs, count: int) -> list[bytes]:
    """The key of each of ``count`` classes that are computed together: it tells all of them, and which one it is."""
    kind = inputs[0].device.type
    digest = hashlib.blake2b(f"{torch.is_autocast_enabled(kind)} {torch.get_autocast_dtype(kind)}".encode())
    for tensor in inputs:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    block = digest.digest()
    return [hashlib.blake2b(block + str(row).encode(), digest_size=16).digest() for row in range(count)]


def describe_text_encoder(encoder: TextEncoder, weights: str) -> dict[str, object]:
    """Return everything that a feature of ``encoder``, of fingerprint ``weights``, depends on, beside the prompts."""
    device = encoder.token_embedding.weight.device
    return {
        "features": "of class names",
        "weights": weights,
        "precision": str(encoder.dtype).rpartition(".")[2],
        "runtime": f"torch {version('torch')}",
        "processor": get_processor_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,  # the order of summation depends on them
        "products": torch.get_float32_matmul_precision(),
        "transformers": version("transformers") if find_spec("transformers") else "",  # BERT's layers are its own
        "block": [BLOCK_CLASSES, CHUNK_TOKENS, GROUP_TOKENS, MIN_ROWS],
    }
