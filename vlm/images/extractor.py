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
        rows = [features[key] for key, _ in requests if key in features]
        return torch.stack(rows) if rows else torch.empty(0)

    def _extract(
        self, requests: Sequence[Request], threads: int, name: str, stored: torch.Tensor | None
    ) -> dict[bytes, torch.Tensor]:
        """Compute features, write them to the store shard by shard, and return them by key; skip unreadable images.

        ``name``: name of the images in the progress bar. ``stored``: a stored feature (embed_dim,), if there is one.
        Raises as :meth:`__call__`.
        """
        features: dict[bytes, torch.Tensor] = {}
        unsaved: list[bytes] = []
        pending: deque[tuple[bytes, torch.Tensor]] = deque()  # images that the encoder has taken and not yet returned
        check = _FeatureCheck(stored)
        bar = progress_bar(total=len(requests), desc=f"encoding {name}", unit="image")
        with bar, ThreadPoolExecutor(threads) as pool:
            try:
                for feature in self.encoder.encode(_prefetch_images(pool, requests, pending, bar)):
                    key, image = pending.popleft()
                    if not feature.isfinite().all():
                        raise UserError(f"a feature of the {name} is NaN or infinite ({self.encoder}). {REMEDY}")
                    check.update(image, feature)
                    features[key] = feature
                    unsaved.append(key)
                    bar.update()
                    if len(unsaved) >= SHARD_FEATURES and check.features_differ:
                        self._save(unsaved, features)
                        unsaved = []
                if check.images_differ and not check.features_differ:
                    raise UserError(f"all {name} have the same feature, though they differ ({self.encoder}). {REMEDY}")
            finally:  # also after Ctrl-C
                if check.features_differ or not check.images_differ:
                    self._save(unsaved, features)
        return features

    def _save(self, keys: list[bytes], features: dict[bytes, torch.Tensor]) -> None:
        """Write the features of ``keys`` to the store as one shard, if there is a store."""
        if keys and self.store:
            self.store.try_put(keys, torch.stack([features[key] for key in keys]))


class _FeatureCheck:
    """Notes whether images differ and whether their features do: equal features of different images are wrong."""

    images_differ = features_differ = False

    def __init__(self, feature: torch.Tensor | None):
        """Compare with ``feature`` (embed_dim,); None: with that of the first image."""
        self.feature = feature
        self.image: torch.Tensor | None = None

    def update(self, image: torch.Tensor, feature: torch.Tensor) -> None:
        """Note an image (3, height, width) and its feature (embed_dim,), unless features differ already."""
        if self.features_differ:
            return
        self.image = image if self.image is None else self.image
        self.feature = feature if self.feature is None else self.feature
        self.images_differ = self.images_differ or not torch.equal(image, self.image)
        self.features_differ = not torch.equal(feature, self.feature)


def _prefetch_images(
    pool: ThreadPoolExecutor, requests: Sequence[Request], pending: deque[tuple[bytes, torch.Tensor]], bar: tqdm
) -> Iterator[torch.Tensor]:
    """Yield the images that can be read, in order, prepared by the pool up to PREFETCH_IMAGES ahead.

    Args:
        pending: queue that each image, with its key, is appended to before it is yielded.
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
            pending.append((key, image))
            yield image
