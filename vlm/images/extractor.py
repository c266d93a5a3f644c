"""Features of images from a frozen image encoder: computed once, kept, and served to every run that asks.

A request is a key, which tells the image's content, its preprocessing and its random draw, and a function that makes
the preprocessed image; or gives None if it cannot be read, and then there is no feature. The encoder gives an image the
same feature whatever other images it is encoded with, so a feature from the cache is bit for bit the one that would be
computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import torch
from platformdirs import user_cache_dir
from tqdm import tqdm

from vlm.images.encoder import ImageEncoder
from vlm.images.feature_store import FeatureStore

SHARD_FEATURES = 512  # features; what an interrupted extraction loses at most
PREFETCH_IMAGES = 64  # images prepared before the encoder asks for them

Request = tuple[bytes, Callable[[], torch.Tensor | None]]


def default_cache_dir() -> Path:
    """Return where features are kept by default, in the user's cache folder."""
    return Path(user_cache_dir("coop-dassl", appauthor=False), "features")


class CachedFeatureExtractor:
    """Features of images (3, height, width), from ``store`` as far as it has them."""

    def __init__(self, encoder: ImageEncoder, store: FeatureStore | None = None):
        self.encoder = encoder
        self.store = store

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, height, width) -> features (n, embed_dim), computed and not kept."""
        return torch.stack(list(self.encoder.encode(iter(images))))

    def __call__(self, requests: Sequence[Request], threads: int = 1, name: str = "images") -> torch.Tensor:
        """Features (n, embed_dim) of those requested images that can be read.

        Args:
            threads: how many of them prepare images while others are encoded.
            name: of the images, for the progress bar.
        """
        wanted = dict(requests)
        found = self.store.get(list(wanted)) if self.store else {}
        if len(found) < len(wanted):
            with self.store.locked() if self.store else nullcontext():
                # Another process may have computed some while this one waited for its turn.
                found |= self.store.get([key for key in wanted if key not in found]) if self.store else {}
                missing = [(key, make) for key, make in wanted.items() if key not in found]
                found |= self._extract(missing, threads, name)
        features = [found[key] for key, _ in requests if key in found]
        return torch.stack(features) if features else torch.empty(0)

    def _extract(self, requests: Sequence[Request], threads: int, name: str) -> dict[bytes, torch.Tensor]:
        found: dict[bytes, torch.Tensor] = {}
        fresh: list[bytes] = []
        read: deque[bytes] = deque()  # keys of the images that the encoder has taken and not yet answered
        bar = tqdm(total=len(requests), disable=None, leave=False, desc=f"encoding {name}", unit="image")
        with bar, ThreadPoolExecutor(threads) as pool:
            try:
                for feature in self.encoder.encode(_prefetch_images(pool, requests, read, bar)):
                    key = read.popleft()
                    found[key] = feature
                    fresh.append(key)
                    bar.update()
                    if len(fresh) == SHARD_FEATURES:
                        self._keep(fresh, found)
                        fresh = []
            finally:  # Ctrl-C keeps what there is
                self._keep(fresh, found)
        return found

    def _keep(self, keys: list[bytes], found: dict[bytes, torch.Tensor]) -> None:
        if keys and self.store:
            self.store.keep(keys, torch.stack([found[key] for key in keys]))


def _prefetch_images(
    pool: ThreadPoolExecutor, requests: Sequence[Request], keys: deque[bytes], bar: tqdm
) -> Iterator[torch.Tensor]:
    """Yield the images that can be read, made in the pool a few ahead; ``keys`` takes the key of each."""
    waiting = deque(pool.submit(make) for _, make in requests[:PREFETCH_IMAGES])
    for number, (key, _) in enumerate(requests):
        image = waiting.popleft().result()
        if number + PREFETCH_IMAGES < len(requests):
            waiting.append(pool.submit(requests[number + PREFETCH_IMAGES][1]))
        if image is None:
            bar.update()
        else:
            keys.append(key)
            yield image
