"""The data set that a config names, and its loaders of batches ``{img, label, domain, impath, index}``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset
from yacs.config import CfgNode

from dassl.distributed import get_local_world_size, get_world_size
from dassl.utils import UserError, check_at_least, derive_seed, read_image, relpath, temporary_seed, tolist_if_not

from .datasets import Datum, build_dataset
from .datasets.fingerprint import get_image_root
from .decoding import get_decoding
from .images import skip_unreadable
from .samplers import ShardedBatchSampler, build_sampler
from .transforms import build_plain_transform, build_transform

# Bytes of decoded images that a training set keeps in memory, as each epoch reads them again: enough for few shots.
IMAGE_CACHE_BYTES = 256 << 20


class DatasetWrapper(Dataset):
    """A data set of the transformed images of a list of ``Datum``.

    Random transforms of a training image depend on (SEED, epoch, image) alone, not on the number of workers, the order
    of the batches, or the place of the data. With FEATURES.VIEWS, they repeat after that many epochs.
    """

    epoch: int | None = None  # set by TrainLoader; None: epochs are not counted, random transforms differ each time

    def __init__(
        self,
        cfg: CfgNode,
        data_source: list[Datum],
        transform: Callable | list[Callable] | None = None,
        is_train: bool = False,
    ):
        """Use the whole config ``cfg``; UserError if, in training, K_TRANSFORMS is below 1 or needs a transform.

        Args:
            transform: takes a PIL image, gives ``img``; a list gives ``img``, ``img2``, …; None: the PIL image itself.
            is_train: whether to seed the random transforms, apply K_TRANSFORMS and keep images in memory.
        """
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        self.to_tensor = build_plain_transform(cfg)
        self.decoding = get_decoding(cfg)
        self._image_cache: dict[str, Image.Image] = {}  # by path
        self._free_cache_bytes = IMAGE_CACHE_BYTES if is_train else 0
        check_at_least(self.k_tfm, 1, "DATALOADER.K_TRANSFORMS")
        if self.k_tfm > 1 and transform is None:
            raise UserError("DATALOADER.K_TRANSFORMS above 1 needs transforms, but INPUT.NO_TRANSFORM is True")

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict:
        """Return the item ``idx`` of the current epoch, as ``load_item``."""
        return self.load_item(idx, self.epoch)

    def load_item(self, idx: int, epoch: int | None) -> dict:
        """Return the item ``idx`` in ``epoch``: a dict of the transformed image (img), label, domain, impath and index.

        Random transforms are seeded only in training and with an ``epoch``. RETURN_IMG0 adds ``img0``, not augmented.
        """
        item = self.data_source[idx]
        img0 = self._read_image(item.impath)
        with temporary_seed(self.transform_seed(idx, epoch)) if self.is_train and epoch is not None else nullcontext():
            images = self._apply_transforms(img0)
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx, **images}
        if self.return_img0:
            output["img0"] = self.to_tensor(img0)
        return output

    def transform_seed(self, idx: int, epoch: int) -> int:
        """Return the seed of an image's random transforms in ``epoch``, modulo FEATURES.VIEWS if that is above 0."""
        if views := self.cfg.FEATURES.VIEWS:
            epoch %= views
        return derive_seed(self.cfg.SEED, epoch, self._relative_path(self.data_source[idx]))

    def _read_image(self, impath: str) -> Image.Image:
        """Return an image from the cache in memory, or else read it, and cache it while there is space."""
        if impath in self._image_cache:
            return self._image_cache[impath]
        image = read_image(impath, self.decoding)
        size = image.width * image.height * 3
        if size <= self._free_cache_bytes:
            self._free_cache_bytes -= size
            self._image_cache[impath] = image
        return image

    def _relative_path(self, item: Datum) -> str:
        """Return an image's path below DATASET.ROOT/FOLDER with forward slashes, from which its seeds are derived."""
        return relpath(item.impath, get_image_root(self.cfg)).replace(os.sep, "/")

    def _apply_transforms(self, img0: Image.Image) -> dict:
        """Return the transforms' results as ``img``, ``img2``, …; without a transform, the PIL image as ``img``."""
        if self.transform is None:
            return {"img": img0}
        transforms = enumerate(tolist_if_not(self.transform), start=1)
        return {"img" if i == 1 else f"img{i}": self._transform_image(tfm, img0) for i, tfm in transforms}

    def _transform_image(self, tfm: Callable, img0: Image.Image):
        """Return ``tfm(img0)``; with ``k_tfm`` above 1, a list of as many views. Third-party subclasses call it."""
        views = [tfm(img0) for _ in range(self.k_tfm)]
        return views if self.k_tfm > 1 else views[0]


class TrainLoader(DataLoader):
    """A loader that counts epochs and sets the epoch of its sampler and data set, on which their draws depend.

    The trainer sets ``epoch`` at the start of each epoch, so a resumed run gets the batches of an uninterrupted one.
    """

    epoch = 0  # the next epoch

    def __iter__(self) -> Iterator[dict]:  # type: ignore[override]  # the base class names a private iterator class
        """Return an iterator over the batches of the epoch ``self.epoch``, and increase ``self.epoch``."""
        dataset: Any = self.dataset  # PyTorch's types do not know that our data sets and samplers have an epoch
        batch_sampler: Any = self.batch_sampler
        dataset.epoch = batch_sampler.sampler.epoch = self.epoch
        self.epoch += 1
        return super().__iter__()


def build_data_loader(
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: list[Datum] | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Callable | list[Callable] | None = None,
    is_train: bool = True,
    dataset_wrapper: type[DatasetWrapper] | None = None,
) -> DataLoader:
    """Return a loader of batches of ``data_source``, in training (``is_train``) a ``TrainLoader``.

    As in Dassl, training drops a last batch that is not full, unless it is the only one.

    Args:
        sampler_type: name of the sampler, as in ``build_sampler``.
        batch_size: images in a batch; in training, the processes divide each batch among them.
        n_domain: domains in a batch of RandomDomainSampler (0: all).
        n_ins: images of each class in a batch of RandomClassSampler.
        tfm: transform of the images, as in ``DatasetWrapper``.
        dataset_wrapper: class of the data set in place of ``DatasetWrapper``, with the same arguments.

    Raises:
        UserError: there are no images, the batch size is below 1 (in training, below the number of processes), the
            number of workers is below 0, or the sampler refuses its values.
    """
    if not data_source:
        raise UserError(f"the data set {cfg.DATASET.NAME} has no images for a loader; is the data folder complete?")
    check_at_least(min(batch_size, len(data_source)), get_world_size() if is_train else 1, "the batch size")
    check_at_least(cfg.DATALOADER.NUM_WORKERS, 0, "DATALOADER.NUM_WORKERS")
    cores = max((os.cpu_count() or 1) // get_local_world_size(), 1)
    workers = min(cfg.DATALOADER.NUM_WORKERS, cores)  # more workers than cores would wait for each other
    batch_options: dict[str, Any] = {
        "sampler": build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins),
        "batch_size": batch_size,
        "drop_last": is_train and len(data_source) >= batch_size,
    }
    if get_world_size() > 1:
        batch_options = {"batch_sampler": ShardedBatchSampler(**batch_options)}
    return (TrainLoader if is_train else DataLoader)(
        (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train),
        **batch_options,
        num_workers=workers,
        generator=torch.Generator().manual_seed(max(cfg.SEED, 0)),  # DataLoader would draw from the global one
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )


class DataManager:
    """The data set that a config names (``dataset``), and its loaders for training, validation and testing."""

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Callable | list[Callable] | None = None,
        custom_tfm_test: Callable | None = None,
        dataset_wrapper: type[DatasetWrapper] | None = None,
    ):
        """Build all loaders; custom transforms replace those of INPUT, ``dataset_wrapper`` replaces DatasetWrapper."""
        self.dataset = build_dataset(cfg)
        self.bad_images = skip_unreadable(self.dataset, get_decoding(cfg)) if cfg.DATASET.SKIP_BAD_IMAGES else {}
        tfm_train, tfm_test = custom_tfm_train, custom_tfm_test
        if getattr(self.dataset, "has_images", True):
            tfm_train = tfm_train if tfm_train is not None else build_transform(cfg, is_train=True)
            tfm_test = tfm_test if tfm_test is not None else build_transform(cfg, is_train=False)

        def build_loader(data_source, node, tfm=tfm_train, is_train=True):
            """Return a loader with the keys of ``node``, such as DATALOADER.TRAIN_X; of test images, not augmented."""
            groups = {"n_domain": node.N_DOMAIN, "n_ins": node.N_INS} if is_train else {}
            options = {"tfm": tfm, "is_train": is_train, "dataset_wrapper": dataset_wrapper, **groups}
            return build_data_loader(cfg, node.SAMPLER, data_source, node.BATCH_SIZE, **options)

        build_test_loader = partial(build_loader, node=cfg.DATALOADER.TEST, tfm=tfm_test, is_train=False)
        loaders = cfg.DATALOADER
        self.train_loader_x = build_loader(self.dataset.train_x, loaders.TRAIN_X)
        self.train_loader_u = None
        if self.dataset.train_u:
            node = loaders.TRAIN_X if loaders.TRAIN_U.SAME_AS_X else loaders.TRAIN_U
            self.train_loader_u = build_loader(self.dataset.train_u, node)
        self.val_loader = build_test_loader(self.dataset.val) if self.dataset.val else None
        self.test_loader = build_test_loader(self.dataset.test)
        self._num_classes, self._lab2cname = self.dataset.num_classes, self.dataset.lab2cname
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    # Third-party subclasses that do not call __init__ set the attributes behind these properties.
    num_classes = property(lambda self: self._num_classes)
    lab2cname = property(lambda self: self._lab2cname)
    num_source_domains = property(lambda self: self._num_source_domains)

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Print the data set's name and domains, and the numbers of classes and of images in each split."""
        table = [["Dataset", cfg.DATASET.NAME]]
        table += [[name, ", ".join(d)] for name in ("SOURCE_DOMAINS", "TARGET_DOMAINS") if (d := cfg.DATASET[name])]
        table += [["# classes", f"{self.num_classes:,}"]]
        splits = ("train_x", "train_u", "val", "test")
        table += [[f"# {name}", f"{len(items):,}"] for name in splits if (items := getattr(self.dataset, name))]
        print(tabulate(table))
