"""Features of a frozen image encoder in place of images, as a data set."""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from operator import attrgetter
from typing import Protocol

import torch
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from dassl.utils import UnreadableImageError, error_reason, file_digest

from .data_manager import DatasetWrapper
from .images import find_unreadable, unreadable_images_error
from .samplers import EpochSampler
from .transforms import Pipeline

PREFETCH_DRAWS = 1024  # draws computed together: the encoder's blocks are full, and the cache has few files
get_datum_fields = attrgetter("_label", "_domain", "_impath")  # of a Datum, whose pickles have these names, too
IMAGE_KEY = re.compile(r"img([1-9]\d*)?")  # the entries of an item that hold views of an image

Request = tuple[bytes, Callable[[], torch.Tensor | None]]


class FeatureExtractor(Protocol):
    """Computes features and keeps them."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return features (n, dim) of images (n, 3, height, width)."""

    def __call__(self, requests: Sequence[Request], threads: int, name: str) -> torch.Tensor:
        """Return features (n, dim) for keys and functions that make the images; none where these return None."""


class FeatureDataset(Dataset):
    """The items of a :class:`DatasetWrapper`, with features (dim,) for images.

    It computes features about a thousand draws ahead of the batches, across epochs, in this process: a loader of it
    needs no workers. A feature that was computed before comes from the source's store; then no image is read. Copies
    share the source.
    """

    epoch: int | None = None  # set by TrainLoader
    batch_sampler = None  # set by feature_loader: the batches to come

    def __init__(self, dataset: Dataset, source: FeatureExtractor, name: str, threads: int = 1):
        """
        Args:
            dataset: of images. Others than a plain :class:`DatasetWrapper` make images in ways that no key can tell:
                their features are computed anew each time.
            name: of the split, for the progress bar.
            threads: how many read images.
        """
        self.dataset, self.source, self.name, self.threads = dataset, source, name, threads
        self.contents: dict[str, str] = {}  # checksums of the image files, by path
        self._inspect_transform()

    def _inspect_transform(self) -> None:
        self._features: dict[tuple[int | None, str], torch.Tensor] = {}  # by epoch (None: any) and path
        dataset, transform = self.dataset, getattr(self.dataset, "transform", None)
        self._inspected_transform = transform
        self.is_cacheable = type(dataset) is DatasetWrapper and isinstance(transform, Pipeline) and dataset.k_tfm == 1
        self.is_cacheable = (
            self.is_cacheable and not dataset.return_img0 and (dataset.is_train or not transform.is_random)
        )
        self.is_random = self.is_cacheable and dataset.is_train and transform.is_random
        self._transform = repr(transform)
        if self.is_random:
            self._transform += f" {dict(dataset.cfg.INPUT)}"  # torchvision's reprs round some settings

    def __setattr__(self, name: str, value) -> None:
        """Hand another ``transform`` or ``data_source`` on to the data set of images."""
        object.__setattr__(self.dataset if name in ("transform", "data_source") else self, name, value)

    def __getattr__(self, name: str):
        """Return an attribute of the data set of images, such as ``transform``."""
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __copy__(self) -> FeatureDataset:
        new = object.__new__(type(self))
        new.__dict__.update({**self.__dict__, "dataset": copy.copy(self.dataset)})
        return new

    def __deepcopy__(self, memo: dict) -> FeatureDataset:
        memo[id(self.source)] = self.source
        memo[id(self)] = new = object.__new__(type(self))
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """Return the items of a batch."""
        if getattr(self.dataset, "transform", None) is not self._inspected_transform:
            self._inspect_transform()
        if not self.is_cacheable or (self.is_random and self.epoch is None):
            return self._encoded(indices)
        epoch = self.epoch if self.is_random else None
        entries = [get_datum_fields(self.dataset.data_source[index]) for index in indices]
        if any((epoch, impath) not in self._features for *_, impath in entries):
            self._compute(indices)
        return [
            {"label": label, "domain": domain, "impath": impath, "index": index, "img": self._features[epoch, impath]}
            for index, (label, domain, impath) in zip(indices, entries, strict=True)
        ]

    def _encoded(self, indices: list[int]) -> list[dict]:
        """Return items whose features are computed now and not kept."""
        if isinstance(self.dataset, DatasetWrapper):
            self.dataset.epoch = self.epoch
        items = [self.dataset[index] for index in indices]
        for name in [name for name in items[0] if IMAGE_KEY.fullmatch(name)]:
            images = [item[name] for item in items]
            if isinstance(images[0], list):  # several views
                views = [self.source.encode(torch.stack(view)) for view in zip(*images, strict=True)]
                features = map(list, zip(*views, strict=True))
            else:
                features = self.source.encode(torch.stack(images))
            for item, feature in zip(items, features, strict=True):
                item[name] = feature
        return items

    def _compute(self, indices: list[int]) -> None:
        """Get the features of a batch and of the draws that follow it.

        Raises:
            UserError: images cannot be read; it names all of the split's.
        """
        bad: dict[str, str] = {}
        draws = list(self._prefetch_draws(indices))
        paths = {index: self.dataset.data_source[index].impath for _, index in draws}
        draws = [draw for draw in draws if self.is_random or (None, paths[draw[1]]) not in self._features]
        keys = {draw: self._key(*draw, bad) for draw in draws}
        requests = {key: partial(self._image, *draw, bad) for draw, key in keys.items()}
        given = self.source(list(requests.items()), self.threads, f"{self.name} images")
        features = dict(zip(requests, given, strict=False))
        if bad:
            whole = [item.impath for item in self.dataset.data_source]
            raise unreadable_images_error(
                find_unreadable(whole, f"{self.name} images") or bad, f"{len(whole):,} {self.name} images"
            )
        if self.is_random:
            self._features = {}
        self._features.update(((epoch, paths[index]), features[key]) for (epoch, index), key in keys.items())

    def _prefetch_draws(self, indices: list[int]) -> Iterator[tuple[int | None, int]]:
        """Yield the draws to compute, as (epoch, index): a batch's, then what follows as far as it is known."""
        if not self.is_random:
            yield from ((None, index) for index in (*indices, *self._remaining_draws()))
            return
        yield from ((self.epoch, index) for index in indices)
        batches = self._batches(self.epoch)
        batches = batches[batches.index(indices) :] if indices in batches else []
        count, epoch = 0, self.epoch
        while batches:
            for batch in batches:
                yield from ((epoch, index) for index in batch)
                count += len(batch)
                if count >= PREFETCH_DRAWS:
                    return
            epoch += 1
            batches = self._batches(epoch) if epoch < self.dataset.cfg.OPTIM.MAX_EPOCH else []

    def _remaining_draws(self) -> Iterator[int]:
        """Yield every image; of several processes that share the batches, those of this one."""
        if getattr(self.batch_sampler, "by", ""):
            yield from (index for batch in self._batches(self.epoch) for index in batch)
        elif self.batch_sampler is not None:
            yield from range(len(self))

    def _batches(self, epoch: int | None) -> list[list[int]]:
        """Return the batches of an epoch; none where a sampler of others would give them but once."""
        sampler = getattr(self.batch_sampler, "sampler", None)
        if not isinstance(sampler, (EpochSampler, SequentialSampler)):
            return []
        before = getattr(sampler, "epoch", None)
        sampler.epoch = epoch
        batches = list(self.batch_sampler)
        sampler.epoch = before
        return batches

    def _key(self, epoch: int | None, index: int, bad: dict[str, str]) -> bytes:
        """Return a digest of all that the image depends on: its file's content, the transforms, the random draw."""
        path = self.dataset.data_source[index].impath
        draw = self.dataset.draw(index, epoch) if self.is_random else ""
        try:
            stat = os.stat(path)
            content = self.contents[path] = _cached_file_digest(path, stat.st_mtime_ns, stat.st_size)
        except OSError as error:
            bad[path] = content = error.strerror or error_reason(error)
        return hashlib.blake2b(f"{content} {self._transform} {draw}".encode(), digest_size=16).digest()

    def _image(self, epoch: int | None, index: int, bad: dict[str, str]) -> torch.Tensor | None:
        try:
            return self.dataset.item(index, epoch)["img"]
        except UnreadableImageError as error:
            bad[error.path] = error.reason
            return None


def build_feature_loader(loader: DataLoader, source: FeatureExtractor, name: str) -> DataLoader:
    """Return a loader of the same kind that gives the same batches, with features in place of images."""
    dataset = FeatureDataset(loader.dataset, source, name, max(1, loader.num_workers))
    if loader.batch_size is None:
        batches = {"batch_sampler": loader.batch_sampler}
    else:
        batches = {"sampler": loader.sampler, "batch_size": loader.batch_size, "drop_last": loader.drop_last}
    kept = {name: getattr(loader, name) for name in ("collate_fn", "generator", "pin_memory")}
    features = type(loader)(dataset, **batches, **kept)
    dataset.batch_sampler = features.batch_sampler
    return features


@lru_cache(maxsize=1 << 20)
def _cached_file_digest(path: str, time: int, size: int) -> str:
    """Return the checksum of a file, which is read again if its time or size is another."""
    return file_digest(path, "blake2b")
