"""Extraction of image features: read from a feature store, or computed by the image encoder and written to the store.

A request is a pair of a cache key and a function. The key is a digest of the image's content, its preprocessing and its
random draw. The function returns the preprocessed image, or None for an image that cannot be read. The encoder gives an
image the same feature beside any other images, so a cached feature is bit for bit the computed one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from platformdirs import user_cache_dir
from tqdm import tqdm

from dassl.utils import UserError
from dassl.utils.progress import progress_bar
from vlm.images.encoder import ImageEncoder
from vlm.images.feature_store import FeatureStore

if TYPE_CHECKING:  # at run time, it would load torchvision, which tools/features.py ls does not need
    from dassl.data.features import Request

SHARD_FEATURES = 512  # features of a shard: an interrupted extraction loses no more than these
PREFETCH_IMAGES = 64  # images prepared ahead of the encoder: some seconds of its work, and 40 MB at 224 pixels
# Of features that no working encoder computes.
REMEDY = (
    "The weights are damaged, or are computed wrongly on this machine; nothing of it is kept. Fetch the weights again, "
    "or compute otherwise: PREC fp32, or without OpenVINO (pip uninstall openvino)"
)


def default_cache_dir() -> Path:
    """Return the feature cache's default folder, in the user's cache folder (for an empty FEATURES.CACHE_DIR)."""
    return Path(user_cache_dir("coop-dassl", appauthor=False), "features")


class CachedFeatureExtractor:
    """Computes features of images (3, height, width); those with a key (requests) are cached in ``store``."""

    def __init__(self, encoder: ImageEncoder, store: FeatureStore | None = None):
        """Use ``encoder``, and ``store``, the feature store of this encoder; None: nothing is cached."""
        self.encoder = encoder
        self.store = store

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Compute features (n, embed_dim), not normalised, of preprocessed images (n, 3, height, width), uncached."""
        return torch.stack(list(self.encoder.encode(iter(images))))

    def __call__(self, requests: Sequence[Request], threads: int = 1, name: str = "images") -> torch.Tensor:
        """Return features (n, embed_dim), not normalised, of the requested images that can be read, in their order.

        Args:
            requests: cache keys (16 bytes), each with a function that returns the preprocessed image, or None if the
                image cannot be read.
            threads: number of threads that call these functions while the encoder runs.
            name: what the images are, for the progress bar.

        Raises:
            UserError: a feature is not finite, or different images have one and the same feature; of these, none is
                stored.
        """
        loaders = dict(requests)
        features = self.store.get(list(loaders)) if self.store else {}
        if len(features) < len(loaders):
            with self.store.locked() if self.store else nullcontext():
                # Another process may have computed some while this one waited for the lock.
                features |= self.store.get([key for key in loaders if key not in features]) if self.store else {}
                missing = [(key, load) for key, load in loaders.items() if key not in features]
                features |= self._extract(missing, threads, name, next(iter(features.values()), None))
        elif _are_equal(iter(features.values())) and _images_differ(requests):  # of an earlier version, which kept them
            raise UserError(f"all {name} have the same stored feature. Remove them: python tools/features.py rm")
        rows = [features[key] for key, _ in requests if key in features]
        return torch.stack(rows) if rows else torch.empty(0)

    def _extract(
        self, requests: Sequence[Request], threads: int, name: str, first: torch.Tensor | None
    ) -> dict[bytes, torch.Tensor]:
        """Compute features, write them to the store shard by shard, and return them by key; skip unreadable images.

        ``name``: name of the images in the progress bar. ``first``: a stored feature (embed_dim,), if there is one.
        Raises as ``__call__``.
        """
        features: dict[bytes, torch.Tensor] = {}
        unsaved: list[bytes] = []
        pending: deque[bytes] = deque()  # keys of the images that the encoder has taken and not yet returned
        is_valid = False  # whether features differ; until then, none is saved
        bar = progress_bar(total=len(requests), desc=f"encoding {name}", unit="image")
        with bar, ThreadPoolExecutor(threads) as pool:
            try:
                for feature in self.encoder.encode(_prefetch_images(pool, requests, pending, bar)):
                    key = pending.popleft()
                    if not feature.isfinite().all():
                        raise UserError(f"a feature of the {name} is NaN or infinite ({self.encoder}). {REMEDY}")
                    first = feature if first is None else first
                    is_valid = is_valid or not torch.equal(feature, first)
                    features[key] = feature
                    unsaved.append(key)
                    bar.update()
                    if len(unsaved) >= SHARD_FEATURES and is_valid:
                        self._save(unsaved, features)
                        unsaved = []
                if not is_valid and _images_differ(requests):
                    raise UserError(f"all {name} have the same feature, though they differ ({self.encoder}). {REMEDY}")
                is_valid = True
            finally:  # also after Ctrl-C
                if is_valid:
                    self._save(unsaved, features)
        return features

    def _save(self, keys: list[bytes], features: dict[bytes, torch.Tensor]) -> None:
        """Write the features of ``keys`` to the store as one shard, if there is a store."""
        if keys and self.store:
            self.store.try_put(keys, torch.stack([features[key] for key in keys]))


def _are_equal(tensors: Iterator[torch.Tensor]) -> bool:
    """Return whether all tensors are equal, read up to the first that differs."""
    first = next(tensors, None)
    return first is None or all(torch.equal(tensor, first) for tensor in tensors)


def _images_differ(requests: Sequence[Request]) -> bool:
    """Return whether two of the requested images have other pixels; unreadable ones are left out."""
    images = (load() for _, load in requests)
    return not _are_equal(image for image in images if image is not None)


def _prefetch_images(
    pool: ThreadPoolExecutor, requests: Sequence[Request], keys: deque[bytes], bar: tqdm
) -> Iterator[torch.Tensor]:
    """Yield the images that can be read, in order, prepared by the pool up to PREFETCH_IMAGES ahead.

    Args:
        keys: queue that the key of each image is appended to before the image is yielded.
        bar: progress bar, updated for each image that cannot be read.
    """
    waiting = deque(pool.submit(load) for _, load in requests[:PREFETCH_IMAGES])
    for number, (key, _) in enumerate(requests):
        image = waiting.popleft().result()
        if number + PREFETCH_IMAGES < len(requests):
            waiting.append(pool.submit(requests[number + PREFETCH_IMAGES][1]))
        if image is None:
            bar.update()
        else:
            keys.append(key)
            yield image
