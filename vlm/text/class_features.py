"""Text features of many classes: computed in blocks of classes, and cached on disk block by block.

A block holds the same classes in every run and is encoded by itself. So cached features are bit for bit the computed
ones, and a run that was killed continues with the first block that is not cached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec

import torch

from dassl.mkl import describe_cpu_sums
from dassl.utils.progress import progress_bar
from vlm.images.encoder import get_processor_name
from vlm.images.feature_store import FeatureStore
from vlm.text.encoder import TextEncoder
from vlm.text.layout import CHUNK_TOKENS, GROUP_TOKENS, MIN_ROWS

BLOCK_CLASSES = 1024  # classes: an interrupted run loses at most one block, and ImageNet's 1,000 classes are one
MIN_CACHED_PROMPTS = 2048  # prompts of a run: trainers do not cache fewer, which are encoded in seconds

PromptInputs = Sequence[torch.Tensor]
EncodeFunction = Callable[..., torch.Tensor]


def encode_classes(
    num_classes: int,
    build_inputs: Callable[[torch.Tensor], PromptInputs],
    encode: EncodeFunction,
    store: FeatureStore | None,
    title: str = "",
) -> torch.Tensor:
    """Return text features (num_classes, embed_dim), cached ones or ``encode(*build_inputs(labels))`` of each block.

    Args:
        build_inputs: function from a block's labels (int64) to the tensors that define the prompts of these classes.
        encode: function from these tensors to features (classes, embed_dim).
        store: feature store to read from and to write to; None: every block is computed.
        title: end of the progress bar's title.
    """
    blocks = torch.arange(num_classes).split(BLOCK_CLASSES)
    bar = blocks if len(blocks) == 1 else progress_bar(blocks, desc=f"encoding blocks of classes{title}", unit="block")
    return torch.cat([_encode_block(build_inputs(labels), len(labels), encode, store) for labels in bar])


def _encode_block(inputs: PromptInputs, count: int, encode: EncodeFunction, store: FeatureStore | None) -> torch.Tensor:
    """Return features (count, embed_dim) of one block of classes: from ``store``, or computed and written to it."""
    if store is None:
        return encode(*inputs)
    keys = block_keys(inputs, count)
    cached = store.get(keys)
    if len(cached) < count:
        with store.locked():
            cached = store.get(keys)  # another process may have computed them in the meantime
            if len(cached) < count:
                features = encode(*inputs)
                store.try_put(keys, features.cpu())
                return features
    return torch.stack([cached[key] for key in keys]).to(inputs[0].device)


def block_keys(inputs: PromptInputs, count: int) -> list[bytes]:
    """Return the cache key (16 bytes) of each of the ``count`` classes of a block.

    A key is a digest of all the block's inputs, of the autocast state and of the class's number in the block.
    """
    device_type = inputs[0].device.type
    autocast = f"{torch.is_autocast_enabled(device_type)} {torch.get_autocast_dtype(device_type)}"
    digest = hashlib.blake2b(autocast.encode())
    for tensor in inputs:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    block = digest.digest()
    return [hashlib.blake2b(block + str(number).encode(), digest_size=16).digest() for number in range(count)]


def describe_text_encoder(encoder: TextEncoder, weights: str) -> dict[str, object]:
    """Return everything that a text feature depends on, except for the prompts; ``weights``: CLIP's fingerprint."""
    device = encoder.token_embedding.weight.device
    return {
        "features": "of class names",
        "weights": weights,
        "precision": str(encoder.dtype).rpartition(".")[2],
        "runtime": f"torch {version('torch')}",
        "processor": get_processor_name(device),
        "sums": describe_cpu_sums() if device.type == "cpu" else "",
        "products": torch.get_float32_matmul_precision(),
        "transformers": version("transformers") if find_spec("transformers") else "",  # it implements BERT
        "block": [BLOCK_CLASSES, CHUNK_TOKENS, GROUP_TOKENS, MIN_ROWS],
    }
