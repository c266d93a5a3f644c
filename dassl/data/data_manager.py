"""From a config to loaders of batches ``{img, label, domain, impath, index}``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset
from yacs.config import CfgNode

from dassl.distributed import get_local_world_size, get_world_size
from dassl.utils import UserError, check_at_least, derive_seed, read_image, temporary_seed, tolist_if_not

from .datasets import Datum, build_dataset
from .images import skip_unreadable
from .samplers import ShardedBatchSampler, build_sampler
from .transforms import build_plain_transform, build_transform

IMAGE_CACHE_BYTES = (
    256 << 20
)  # bytes of decoded pictures kept in memory: few-shot training sets are read again in every epoch


class DatasetWrapper(Dataset):
    """Reads and transforms the images of a list of :class:`Datum`.

    Random transforms of a training image depend on (SEED, epoch, image) alone: not on the number of workers, the
    order of the batches, or where the data lies. With FEATURES.VIEWS, the epoch counts modulo their number.
    """

    epoch: int | None = None  # set by TrainLoader; None: nobody counts epochs, and each draw is a new one

    def __init__(
        self,
        cfg: CfgNode,
        data_source: list[Datum],
        transform: Callable | list[Callable] | None = None,
        is_train: bool = False,
    ):
        """``transform``: several of them give ``img``, ``img2``, …; each is applied K_TRANSFORMS times in training."""
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        self.to_tensor = build_plain_transform(cfg)
        self._kept: dict[str, Image.Image] = {}
        self._room = IMAGE_CACHE_BYTES if is_train else 0
        check_at_least(self.k_tfm, 1, "DATALOADER.K_TRANSFORMS")
        if self.k_tfm > 1 and transform is None:
            raise UserError("DATALOADER.K_TRANSFORMS above 1 needs transforms, but INPUT.NO_TRANSFORM is True")

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict:
        return self.item(idx, self.epoch)

    def item(self, idx: int, epoch: int | None) -> dict:
        """The image ``idx`` as it is in an epoch, with its label and the rest of what a batch holds."""
        item = self.data_source[idx]
        img0 = self._read(item.impath)
        with temporary_seed(self.draw(idx, epoch)) if self.is_train and epoch is not None else nullcontext():
            images = self._transform(img0)
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx, **images}
        if self.return_img0:
            output["img0"] = self.to_tensor(img0)
        return output

    def draw(self, idx: int, epoch: int) -> int:
        """The seed of an image's random transforms in an epoch."""
        if views := self.cfg.FEATURES.VIEWS:
            epoch %= views
        return derive_seed(self.cfg.SEED, epoch, self._name(self.data_source[idx]))

    def _read(self, impath: str) -> Image.Image:
        if impath in self._kept:
            return self._kept[impath]
        image = read_image(impath)
        size = image.width * image.height * 3
        if size <= self._room:
            self._room -= size
            self._kept[impath] = image
        return image

    def _name(self, item: Datum) -> str:
        """The image's path below the data root, so that moved data gives the same draws."""
        node = self.cfg.DATASET
        root = os.path.join(os.path.expanduser(node.ROOT), os.path.expanduser(node.FOLDER))
        return os.path.relpath(item.impath, root).replace(os.sep, "/")

    def _transform(self, img0) -> dict:
        if self.transform is None:
            return {"img": img0}
        transforms = enumerate(tolist_if_not(self.transform), start=1)
        return {"img" if i == 1 else f"img{i}": self._transform_image(tfm, img0) for i, tfm in transforms}

    def _transform_image(self, tfm: Callable, img0: Image.Image):
        """One view, or a list of K_TRANSFORMS views; wrappers of the field call it, too."""
        views = [tfm(img0) for _ in range(self.k_tfm)]
        return views if self.k_tfm > 1 else views[0]


class TrainLoader(DataLoader):
    """Counts its epochs and tells them to its sampler and data set, whose draws depend on them.

    A trainer sets ``epoch`` as each epoch begins, so a resumed run sees the batches it would have seen.
    """

    epoch = 0

    def __iter__(self) -> Iterator[dict]:
        self.dataset.epoch = self.batch_sampler.sampler.epoch = self.epoch
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
    """A loader of ``data_source``. As in Dassl, training drops a last batch that is not full if it has others.

    Raises:
        UserError: there are no images, the batch size is below 1 (in training, below the number of processes), or the
            number of workers below 0.
    """
    if not data_source:
        raise UserError(f"the data set {cfg.DATASET.NAME} has no images for a loader; is the data folder complete?")
    check_at_least(min(batch_size, len(data_source)), get_world_size() if is_train else 1, "the batch size")
    check_at_least(cfg.DATALOADER.NUM_WORKERS, 0, "DATALOADER.NUM_WORKERS")
    cores = max((os.cpu_count() or 1) // get_local_world_size(), 1)
    workers = min(cfg.DATALOADER.NUM_WORKERS, cores)  # more would only wait for each other
    batches = {
        "sampler": build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins),
        "batch_size": batch_size,
        "drop_last": is_train and len(data_source) >= batch_size,
    }
    if get_world_size() > 1:
        batches = {"batch_sampler": ShardedBatchSampler(**batches)}
    return (TrainLoader if is_train else DataLoader)(
        (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train),
        **batches,
        num_workers=workers,
        generator=torch.Generator().manual_seed(max(cfg.SEED, 0)),  # else each epoch draws from the global one
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )


class DataManager:
    """The data set that a config names, and its loaders."""

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Callable | list[Callable] | None = None,
        custom_tfm_test: Callable | None = None,
        dataset_wrapper: type[DatasetWrapper] | None = None,
    ):
        self.dataset = build_dataset(cfg)
        self.bad_images = skip_unreadable(self.dataset) if cfg.DATASET.SKIP_BAD_IMAGES else {}
        tfm_train = custom_tfm_train if custom_tfm_train is not None else build_transform(cfg, is_train=True)
        tfm_test = custom_tfm_test if custom_tfm_test is not None else build_transform(cfg, is_train=False)

        def build(data_source, node, **settings):
            settings["dataset_wrapper"] = dataset_wrapper
            return build_data_loader(cfg, node.SAMPLER, data_source, node.BATCH_SIZE, **settings)

        def train_loader(data_source, node):
            return build(data_source, node, n_domain=node.N_DOMAIN, n_ins=node.N_INS, tfm=tfm_train)

        def test_loader(data_source):
            return build(data_source, cfg.DATALOADER.TEST, tfm=tfm_test, is_train=False)

        loaders = cfg.DATALOADER
        self.train_loader_x = train_loader(self.dataset.train_x, loaders.TRAIN_X)
        self.train_loader_u = None
        if self.dataset.train_u:
            node = loaders.TRAIN_X if loaders.TRAIN_U.SAME_AS_X else loaders.TRAIN_U
            self.train_loader_u = train_loader(self.dataset.train_u, node)
        self.val_loader = test_loader(self.dataset.val) if self.dataset.val else None
        self.test_loader = test_loader(self.dataset.test)
        self._num_classes, self._lab2cname = self.dataset.num_classes, self.dataset.lab2cname
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    # Managers of the field that do not call __init__ set what stands behind these.
    num_classes = property(lambda self: self._num_classes)
    lab2cname = property(lambda self: self._lab2cname)
    num_source_domains = property(lambda self: self._num_source_domains)

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Print the number of classes and of images in each split."""
        table = [["Dataset", cfg.DATASET.NAME]]
        table += [[name, ", ".join(d)] for name in ("SOURCE_DOMAINS", "TARGET_DOMAINS") if (d := cfg.DATASET[name])]
        table += [["# classes", f"{self.num_classes:,}"]]
        splits = ("train_x", "train_u", "val", "test")
        table += [[f"# {name}", f"{len(items):,}"] for name in splits if (items := getattr(self.dataset, name))]
        print(tabulate(table))
