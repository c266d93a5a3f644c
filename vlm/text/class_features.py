"""Text features of many classes: computed in blocks of classes, and kept for the runs to come.

A block is the same classes in every run, computed by themselves. So what is found on disk is bit for bit what would be
computed, and a run that was killed goes on at the block it was at. Up to :data:`BLOCK` classes are one block.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version

import torch
from tqdm import tqdm

from dassl.utils import UserError
from vlm.images.feature_store import FeatureStore
from vlm.text.encoder import TextEncoder
from vlm.text.layout import CHUNK, FEWEST, GROUP

BLOCK = 1024  # classes
FEW = 2048  # prompts of a run: so few are computed in seconds, and trainers do not keep them

Inputs = Sequence[torch.Tensor]


class ClassFeatures:
    """Features of the prompts of classes, from ``store`` as far as it has them."""

    def __init__(self, store: FeatureStore | None = None):
        self.store = store

    def __call__(
        self, count: int, inputs: Callable[[torch.Tensor], Inputs], encode: Callable[..., torch.Tensor], name: str = ""
    ) -> torch.Tensor:
        """Features (count, embed_dim), as ``encode(*inputs(classes))`` gives them (classes, embed_dim).

        Args:
            count: classes.
            inputs: tensors that tell all about the prompts of some classes (int64 numbers), beside the encoder.
            name: of the prompts, for the progress bar.
        """
        blocks = torch.arange(count).split(BLOCK)
        found = self._found(blocks, inputs)
        missing = [number for number in range(len(blocks)) if number not in found]
        with self.store.locked() if self.store and missing else nullcontext():
            silent = True if len(blocks) == 1 else None
            for number in tqdm(missing, disable=silent, leave=False, desc=f"encoding classes{name}", unit="block"):
                needed = inputs(blocks[number])
                keys = keys_of(needed, len(blocks[number])) if self.store else []
                features = self._find(keys)  # another process may have computed them in the meantime
                if features is None:
                    features = encode(*needed)
                    self._keep(keys, features)
                found[number] = features.to(needed[0].device)
        return torch.cat([found[number] for number in range(len(blocks))])

    def _found(self, blocks: Sequence[torch.Tensor], inputs: Callable[[torch.Tensor], Inputs]) -> dict:
        """The features of those blocks that are there."""
        found = {}
        for number, classes in enumerate(blocks) if self.store else ():
            needed = inputs(classes)
            if (features := self._find(keys_of(needed, len(classes)))) is not None:
                found[number] = features.to(needed[0].device)
        return found

    def _find(self, keys: Sequence[bytes]) -> torch.Tensor | None:
        features = self.store.get(keys) if self.store else {}
        return torch.stack([features[key] for key in keys]) if keys and len(features) == len(keys) else None

    def _keep(self, keys: Sequence[bytes], features: torch.Tensor) -> None:
        if self.store:
            try:
                self.store.put(keys, features.cpu())
            except UserError as error:  # a full disk does not stop a run
                print(f"Note: class features are not kept from here on: {error}")
                self.store = None


def keys_of(inputs: Inputs, count: int) -> list[bytes]:
    """The key of each of ``count`` classes that are computed together: it tells all of them, and which one it is."""
    kind = inputs[0].device.type
    digest = hashlib.blake2b(f"{torch.is_autocast_enabled(kind)} {torch.get_autocast_dtype(kind)}".encode())
    for tensor in inputs:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    block = digest.digest()
    return [hashlib.blake2b(block + str(row).encode(), digest_size=16).digest() for row in range(count)]


def description(encoder: TextEncoder, weights: str) -> dict[str, object]:
    """Everything that a feature of ``encoder``, of fingerprint ``weights``, depends on, beside the prompts."""
    device = encoder.token_embedding.weight.device
    on_cpu = device.type == "cpu"
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "features": "of class names",
        "weights": weights,
        "precision": str(encoder.dtype).rpartition(".")[2],
        "runtime": f"torch {version('torch')}",
        "processor": processor if on_cpu else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads() if on_cpu else 0,  # the order of summation depends on them
        "products": torch.get_float32_matmul_precision(),
        "transformers": _version("transformers"),  # BERT's layers are its own
        "block": [BLOCK, CHUNK, GROUP, FEWEST],
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
