"""Batches that hold the features of a frozen image encoder in place of images."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Protocol

import torch
from torch.utils.data import DataLoader

from dassl.utils import BadImage, rank, reason_of, world_size
from dassl.utils.downloads import file_digest

from .bad_images import none_readable
from .data_manager import DatasetWrapper
from .samplers import PARTS, TURNS, in_step, share_of
from .transforms import Pipeline

AHEAD = 1024  # images whose features are asked for together, across epochs: a fuller pipeline, fewer files


Request = tuple[bytes, Callable[[], torch.Tensor | None]]


class FeatureSource(Protocol):
    """What computes and keeps features."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, height, width) -> features (n, dim)."""

    def __call__(self, requests: Sequence[Request], threads: int, name: str) -> torch.Tensor:
        """Features (n, dim) for keys and functions that make the images; none for those that give None instead."""


class FeatureLoader:
    """Gives the batches that ``loader`` would give, with features in place of ``img`` (and ``img2``, …)."""

    def __init__(self, loader: DataLoader, source: FeatureSource, name: str):
        self.loader, self.source, self.name = loader, source, name
        self.dataset, self.batch_sampler = loader.dataset, loader.batch_sampler
        self.sampler = self.batch_sampler.sampler
        self._have: dict[bytes, torch.Tensor] = {}
        self._unreadable: dict[bytes, str] = {}  # why there is no image for a key
        self._contents: dict[int, str] = {}  # checksums of the image files
        d = self.dataset
        # Only of our own way of making an image do we know everything it depends on.
        self.by_key = type(d) is DatasetWrapper and isinstance(d.transform, Pipeline) and d.k_tfm == 1
        self.by_key = self.by_key and not d.return_img0 and (d.is_train or not d.transform.is_random)
        self._transform = repr(d.transform)
        self._is_random = d.is_train and self.by_key and d.transform.is_random
        if self._is_random:
            self._transform += f" {dict(d.cfg.INPUT)}"  # torchvision's reprs round some settings

    def __len__(self) -> int:
        return len(self.loader)

    # The epoch that comes next; the engine sets it, as it does with a loader of images.
    epoch = property(
        lambda self: getattr(self.loader, "epoch", 0), lambda self, epoch: setattr(self.loader, "epoch", epoch)
    )
    # Who is told of images that cannot be read, as with a loader of images.
    on_bad_image = property(
        lambda self: getattr(self.loader, "on_bad_image", None),
        lambda self, listener: setattr(self.loader, "on_bad_image", listener),
    )

    def __iter__(self) -> Iterator[dict]:
        return self._cached() if self.by_key else self._encoded()

    def _encoded(self) -> Iterator[dict]:
        """The loader's own batches, their images encoded."""
        for batch in self.loader:
            for key in [key for key in batch if re.fullmatch(r"img([1-9]\d*)?", key)]:
                views, encode = batch[key], self.source.encode
                batch[key] = [encode(view) for view in views] if isinstance(views, list) else encode(views)
            yield batch

    def _cached(self) -> Iterator[dict]:
        """Batches of features found by key; no image is read if all are there."""
        epoch = self.epoch
        self.epoch = epoch + 1
        given, failed = 0, None
        for number, indices in enumerate(batches := self._batches(epoch)):
            keys = {index: self._key(index, epoch) for index in indices}
            if not all(key in self._have or key in self._unreadable for key in keys.values()):
                self._fetch(epoch, batches[number:])
            for index, key in keys.items():
                if key not in self._have:
                    failed = self._report(index, self._unreadable[key])
            readable = [index for index in indices if keys[index] in self._have]
            batch = self._batch(readable, keys) if readable else None
            if share_of(self) == PARTS:
                batch = in_step(batch)
            if batch is not None:
                given += 1
                yield batch
        if failed and not given and share_of(self) != TURNS:
            raise none_readable(failed)

    def _batch(self, indices: list[int], keys: dict[int, bytes]) -> dict:
        items = [self.dataset.data_source[index] for index in indices]
        return {
            "img": torch.stack([self._have[keys[index]] for index in indices]),
            "label": torch.tensor([item.label for item in items]),
            "domain": torch.tensor([item.domain for item in items]),
            "impath": [item.impath for item in items],
            "index": torch.tensor(indices),
        }

    def _batches(self, epoch: int) -> list[list[int]]:
        self.sampler.epoch = epoch
        return list(self.batch_sampler)

    def _fetch(self, epoch: int, batches: list[list[int]]) -> None:
        """Get the features of ``batches`` of an epoch and of those that come next; where nothing changes from epoch to
        epoch, those of all images. Of several processes that all need all, each begins with others, and then finds
        theirs."""
        requests: dict[bytes, Callable[[], torch.Tensor | None]] = {}
        for at, indices in self._coming(epoch, batches):
            keys = ((self._key(index, at), index) for index in indices)
            requests.update(
                (key, partial(self._image, key, index, at)) for key, index in keys if key not in self._unreadable
            )
            if self._is_random and len(requests) >= AHEAD:
                break
        threads = max(1, self.loader.num_workers)
        self._have = {}
        shared = share_of(self) != TURNS and not self._is_random
        for turn in range(world_size() if shared else 1):
            some = list(requests.items())
            some = some[(rank() + turn) % world_size() :: world_size()] if shared else some
            features = self.source(some, threads, f"{self.name} images")
            readable = (key for key, _ in some if key not in self._unreadable)
            self._have.update(zip(readable, features, strict=True))

    def _coming(self, epoch: int, batches: list[list[int]]) -> Iterator[tuple[int, list[int]]]:
        """Epochs and batches from here to the end of training."""
        if not self._is_random:
            everything = list(range(len(self.dataset)))
            yield epoch, [index for indices in batches for index in indices] if share_of(self) == TURNS else everything
            return
        yield from ((epoch, indices) for indices in batches)
        for later in range(epoch + 1, self.dataset.cfg.OPTIM.MAX_EPOCH):
            yield from ((later, indices) for indices in self._batches(later))

    def _key(self, index: int, epoch: int) -> bytes:
        """Everything that the image depends on: its file's content, the transforms, the random draw. Or, of a file that
        cannot be opened, its path."""
        draw = self.dataset.draw(index, epoch) if self._is_random else ""
        if index not in self._contents:
            path = self.dataset.data_source[index].impath
            try:
                self._contents[index] = _content(path)
            except OSError as error:
                key = os.fsencode(path)
                self._unreadable[key] = error.strerror or reason_of(error)
                self._report(index, self._unreadable[key])
                return key
        return hashlib.blake2b(f"{self._contents[index]} {self._transform} {draw}".encode(), digest_size=16).digest()

    def _image(self, key: bytes, index: int, epoch: int) -> torch.Tensor | None:
        try:
            return self.dataset.item(index, epoch)["img"]
        except BadImage as error:
            self._unreadable[key] = error.reason
            self._report(index, error.reason)
            return None

    def _report(self, index: int, reason: str) -> BadImage:
        """Tell whoever listens that an image cannot be read; raise the error where nobody does."""
        error = BadImage.of(self.dataset.data_source[index].impath, reason)
        if self.on_bad_image is None:
            raise error
        self.on_bad_image(error)
        return error


def _content(path: str) -> str:
    """The checksum of a file, which is read again if it has changed."""
    stat = os.stat(path)
    return _digest(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1 << 20)
def _digest(path: str, *_: int) -> str:
    return file_digest(path, "blake2b")
