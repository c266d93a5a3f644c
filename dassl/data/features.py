"""A data set that serves features of a frozen image encoder in place of images."""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from dassl.config.run_config import DECODING_KEYS
from dassl.utils import UnreadableImageError, error_reason, file_digest

from .data_manager import DatasetWrapper
from .decoding import describe_changes
from .images import find_unreadable, unreadable_images_error
from .samplers import EpochSampler
from .transforms import Pipeline

PREFETCH_DRAWS = 1024  # images encoded together: full batches of the encoder, few files in the feature cache
get_datum_fields = attrgetter("_label", "_domain", "_impath")  # one call a Datum; its pickles fix these names
IMAGE_KEY = re.compile(r"img([1-9]\d*)?")  # the keys of an item that hold images: img, img1, img2, …; not img0

Draw = tuple[int | None, int]  # an image as it is in an epoch (None: in any epoch), and its index in the data set
Request = tuple[bytes, Callable[[], torch.Tensor | None]]  # a feature's key, and a function that loads the image


class FeatureExtractor(Protocol):
    """A frozen image encoder that can store features. An image's feature does not depend on the other images."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return features (n, dim) of transformed images (n, 3, height, width), in their order; store nothing."""

    def __call__(self, requests: Sequence[Request], threads: int, name: str) -> torch.Tensor:
        """Return features (n, dim) in the order of the requests; store those that are not stored yet.

        Args:
            requests: unique keys, each with a function that returns the transformed image (3, height, width), or None
                if the image cannot be read. The result has no row for None.
            threads: number of threads that load images.
            name: name of the images in the lines on progress.
        """


class StoredFeatures(FeatureExtractor):
    """Features from a file in place of an encoder; ``rows`` has the feature (dim,) of each image by (None, path)."""

    def __init__(self, rows: dict[tuple[int | None, str], torch.Tensor]):
        self.rows = rows


class FeatureDataset(Dataset):
    """A data set with the items of another one, in which features (dim,) of a frozen encoder replace the images.

    Features are computed in this process, about a thousand items ahead and across epochs, so a loader needs no workers.
    An image whose feature is stored is not read. Attributes such as ``transform`` are those of the data set of images.
    """

    epoch: int | None = None  # set by TrainLoader
    batch_sampler: Iterable[list[int]] | None = None  # set by build_feature_loader; gives the coming batches

    def __init__(self, dataset: Dataset, extractor: FeatureExtractor, name: str, threads: int = 1):
        """
        Args:
            dataset: data set of images. For any class but ``DatasetWrapper`` itself, features are computed each
                time and not stored, as a key cannot cover how that class makes images.
            name: name of the split, for the progress bar and for messages.
            threads: number of threads that read images.
        """
        self.dataset: Any = dataset  # a DatasetWrapper where ``is_cacheable``
        self.extractor, self.name, self.threads = extractor, name, threads
        self.contents: dict[str, str] = {}  # checksums of the image files whose features were requested, by path
        self._inspect_transform()

    def _inspect_transform(self) -> None:
        """Set ``is_cacheable``, ``is_random`` and the transform's text for the keys; forget the features in memory."""
        self._features: dict[tuple[int | None, str], torch.Tensor] = {}  # by epoch (None: any epoch) and path
        dataset, transform = self.dataset, getattr(self.dataset, "transform", None)
        self._inspected_transform = transform
        self._transform_text = repr(transform)
        self.is_cacheable = self.is_random = False
        if isinstance(self.extractor, StoredFeatures):  # no image is read, whatever the transform is
            self._features, self.is_cacheable = self.extractor.rows, True
            return
        if type(dataset) is not DatasetWrapper or not isinstance(transform, Pipeline):
            return
        if dataset.k_tfm == 1 and not dataset.return_img0:
            self.is_random = dataset.is_train and transform.is_random
            self.is_cacheable = self.is_random or not transform.is_random
        if self.is_random:
            # torchvision's reprs round some values. DECODING_KEYS count in _feature_key, for the images they change.
            values = {key: value for key, value in dataset.cfg.INPUT.items() if f"INPUT.{key}" not in DECODING_KEYS}
            self._transform_text += f" {values}"

    def __setattr__(self, name: str, value) -> None:
        """Set an attribute; ``transform`` and ``data_source`` are set on the data set of images."""
        object.__setattr__(self.dataset if name in ("transform", "data_source") else self, name, value)

    def __getattr__(self, name: str):
        """Return an attribute of the data set of images, such as ``transform``."""
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __copy__(self) -> FeatureDataset:
        """Return a copy with a shallow copy of the data set of images."""
        new = object.__new__(type(self))
        new.__dict__.update({**self.__dict__, "dataset": copy.copy(self.dataset)})
        return new

    def __deepcopy__(self, memo: dict) -> FeatureDataset:
        """Return a deep copy that shares the extractor, which holds the weights of the encoder."""
        memo[id(self.extractor)] = self.extractor
        memo[id(self)] = new = object.__new__(type(self))
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def __getitem__(self, index: int) -> dict:
        """Return the item ``index`` of the data set of images, with the feature (dim,) as ``img``."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """Return the items of a batch; DataLoader calls it instead of ``__getitem__``.

        Raises:
            UserError: images cannot be read; where ``is_cacheable``, the message lists all such images of the split.
        """
        if getattr(self.dataset, "transform", None) is not self._inspected_transform:
            self._inspect_transform()
        if not self.is_cacheable or (self.is_random and self.epoch is None):
            return self._encode_items(indices)
        epoch, data_source = self.epoch if self.is_random else None, self.dataset.data_source
        entries = [get_datum_fields(data_source[index]) for index in indices]
        if any((epoch, impath) not in self._features for *_, impath in entries):
            self._prefetch(indices)
        return [
            {"label": label, "domain": domain, "impath": impath, "index": index, "img": self._features[epoch, impath]}
            for index, (label, domain, impath) in zip(indices, entries, strict=True)
        ]

    def _encode_items(self, indices: list[int]) -> list[dict]:
        """Return the items of a batch; features, computed now and not stored, replace all images but ``img0``."""
        if isinstance(self.dataset, DatasetWrapper):
            self.dataset.epoch = self.epoch
        items = [self.dataset[index] for index in indices]
        for key in [key for key in items[0] if IMAGE_KEY.fullmatch(key)]:
            images = [item[key] for item in items]
            features: Iterable[torch.Tensor | list[torch.Tensor]]
            if isinstance(images[0], list):  # K_TRANSFORMS views of each image
                views = [self.extractor.encode(torch.stack(view)) for view in zip(*images, strict=True)]
                features = map(list, zip(*views, strict=True))
            else:
                features = self.extractor.encode(torch.stack(images))
            for item, feature in zip(items, features, strict=True):
                item[key] = feature
        return items

    def _prefetch(self, indices: list[int]) -> None:
        """Put into memory the features of a batch and of the batches after it; raise as ``__getitems__`` does."""
        reasons: dict[str, str] = {}  # by path, of images that cannot be read
        draws = list(self._coming_draws(indices))
        paths = {index: self.dataset.data_source[index].impath for _, index in draws}
        draws = [draw for draw in draws if self.is_random or (None, paths[draw[1]]) not in self._features]
        keys = {draw: self._feature_key(*draw, reasons) for draw in draws}
        requests = {key: partial(self._load_image, *draw, reasons) for draw, key in keys.items()}
        computed = self.extractor(list(requests.items()), self.threads, f"{self.name} images")
        features = dict(zip(requests, computed, strict=False))
        if reasons:
            all_paths = [item.impath for item in self.dataset.data_source]
            reasons = find_unreadable(all_paths, self.dataset.decoding, f"{self.name} images") or reasons
            raise unreadable_images_error(reasons, f"{len(all_paths):,} {self.name} images")
        if self.is_random:
            self._features = {}
        self._features.update(((epoch, paths[index]), features[key]) for (epoch, index), key in keys.items())

    def _coming_draws(self, indices: list[int]) -> Iterator[Draw]:
        """Yield the draws (epoch, index) of a batch and of the batches after it, about ``PREFETCH_DRAWS``.

        Without random transforms, they are the batch and all images that this process serves.
        """
        if not self.is_random:
            yield from ((None, index) for index in (*indices, *self._served_indices()))
            return
        epoch = self.epoch
        assert epoch is not None  # __getitems__ prefetches random draws only where epochs are counted
        yield from ((epoch, index) for index in indices)
        batches = self._list_batches(epoch)
        batches = batches[batches.index(indices) :] if indices in batches else []
        count = 0
        while batches:
            for batch in batches:
                yield from ((epoch, index) for index in batch)
                count += len(batch)
                if count >= PREFETCH_DRAWS:
                    return
            epoch += 1
            batches = self._list_batches(epoch) if epoch < self.dataset.cfg.OPTIM.MAX_EPOCH else []

    def _served_indices(self) -> Iterator[int]:
        """Yield the indices of all images, or if batches are divided, of this process's; none without batches."""
        if getattr(self.batch_sampler, "shard_by", ""):
            yield from (index for batch in self._list_batches(self.epoch) for index in batch)
        elif self.batch_sampler is not None:
            yield from range(len(self))

    def _list_batches(self, epoch: int | None) -> list[list[int]]:
        """Return the batches of an epoch as lists of indices; [] if the sampler would draw others the next time."""
        batch_sampler = self.batch_sampler
        sampler = getattr(batch_sampler, "sampler", None)
        if batch_sampler is None or not isinstance(sampler, (EpochSampler, SequentialSampler)):
            return []  # listing the batches of another sampler would change its later draws
        if isinstance(sampler, SequentialSampler):
            return list(batch_sampler)
        current_epoch, sampler.epoch = sampler.epoch, epoch
        batches = list(batch_sampler)
        sampler.epoch = current_epoch
        return batches

    def _feature_key(self, epoch: int | None, index: int, reasons: dict[str, str]) -> bytes:
        """Return a digest (16 bytes) of an image's file, decoding, transform and seed.

        If the file is unreadable, note why in ``reasons``. The decoding counts where it is not the original's.
        """
        path = self.dataset.data_source[index].impath
        seed = self.dataset.transform_seed(index, epoch) if self.is_random and epoch is not None else ""
        try:
            stat = os.stat(path)
            content = self.contents[path] = _cached_file_digest(path, stat.st_mtime_ns, stat.st_size)
        except OSError as error:
            reasons[path] = content = error.strerror or error_reason(error)
        changes = describe_changes(path, self.dataset.decoding)
        return hashlib.blake2b(f"{content} {self._transform_text} {seed}{changes}".encode(), digest_size=16).digest()

    def _load_image(self, epoch: int | None, index: int, reasons: dict[str, str]) -> torch.Tensor | None:
        """Return the image transformed as in ``epoch``; None, with the reason in ``reasons`` by path, if unreadable."""
        try:
            return self.dataset.load_item(index, epoch)["img"]
        except UnreadableImageError as error:
            reasons[error.path] = error.reason
            return None


def build_feature_loader(loader: DataLoader, extractor: FeatureExtractor, name: str) -> DataLoader:
    """Return a loader with the class and batches of ``loader``, and features for images; ``name`` is the split's."""
    dataset = FeatureDataset(loader.dataset, extractor, name, max(1, loader.num_workers))
    options: dict[str, Any] = {key: getattr(loader, key) for key in ("collate_fn", "generator", "pin_memory")}
    batch_options = ("batch_sampler",) if loader.batch_size is None else ("sampler", "batch_size", "drop_last")
    options |= {key: getattr(loader, key) for key in batch_options}
    feature_loader = type(loader)(dataset, **options)
    dataset.batch_sampler = feature_loader.batch_sampler
    return feature_loader


@lru_cache(maxsize=1 << 20)  # files; bounds the memory with very large data sets
def _cached_file_digest(path: str, time: int, size: int) -> str:
    """Return a file's BLAKE2b checksum; read it again only if ``time`` (of its last change) or ``size`` is new."""
    return file_digest(path, "blake2b")
