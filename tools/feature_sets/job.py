"""What an extraction was asked for, and what it comes to: config, encoder, list of images."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from yacs.config import CfgNode

import datasets  # noqa: F401  registers the data sets
from dassl.config import get_cfg_default, merge_file, merge_flag, merge_options
from dassl.config.merge import leaves, shortened
from dassl.data.datasets import build_dataset
from dassl.data.transforms import Pipeline, build_transform
from dassl.utils import UserError, check_at_least, check_availability, mkdir_if_missing
from vlm.feature_set import DESCRIPTION, Description, describe
from vlm.image_encoder import PRECISIONS, ImageEncoder, image_encoder
from vlm.load import load_shared
from vlm.text_encoder import text_encoder

PARTS = {"train": ("train_x",), "val": ("val",), "test": ("test",), "all": ("train_x", "val", "test")}
# Of the encoder. Processor, runtime and number of threads move a feature by less than rounding to fp16 does, so the
# machines of a cluster may differ in them.
TELLING = ("weights", "precision", "preprocessing")
SILENT = ("ROOT", "SKIP_BAD_IMAGES", "FOLLOW_LINKS", "TEMPLATE")  # of DATASET: no feature depends on them


@dataclass(frozen=True)
class Job:
    """The arguments of ``tools/features.py extract``, but for the shard."""

    dataset: str
    root: str
    backbone: str
    weights: str
    split: str
    output: str
    shards: int
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The command that extracts what is missing."""
        flags = ("dataset", "root", "backbone", "weights", "split", "output", "shards")
        words = [word for flag in flags if (value := getattr(self, flag)) for word in (f"--{flag}", str(value))]
        return shlex.join(["python", "tools/features.py", "extract", *words, *self.options])

    @property
    def folder(self) -> Path:
        return Path(self.output).expanduser()

    def cfg(self) -> CfgNode:
        """The defaults, the data set's YAML, the flags, then the KEY VALUE pairs."""
        cfg = get_cfg_default()
        if self.dataset.endswith((".yaml", ".yml")):
            merge_file(cfg, self.dataset)
        else:
            merge_flag(cfg, "DATASET.NAME", self.dataset)
        merge_flag(cfg, "MODEL.BACKBONE.NAME", self.backbone)
        for key, value in (("DATASET.ROOT", self.root), ("MODEL.BACKBONE.WEIGHTS", self.weights)):
            if value:
                merge_flag(cfg, key, value)
        merge_options(cfg, list(self.options))
        check_availability(cfg.FEATURES.PREC, PRECISIONS, "FEATURES.PREC")
        if cfg.DATASET.NUM_SHOTS >= 1:
            raise UserError("DATASET.NUM_SHOTS: a set is of all images; shots are drawn from it when it is read")
        return cfg


@dataclass
class Loaded:
    """What makes features of pictures."""

    cfg: CfgNode
    encoder: ImageEncoder
    transform: Pipeline
    settings: dict  # what the features depend on, as the set tells it

    @property
    def root(self) -> Path:
        return Path(self.cfg.DATASET.ROOT).expanduser()

    @property
    def threads(self) -> int:
        """That read images."""
        check_at_least(self.cfg.DATALOADER.NUM_WORKERS, 0, "DATALOADER.NUM_WORKERS")
        return max(1, min(self.cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1))


@lru_cache(maxsize=1)
def loaded(job: Job) -> Loaded:
    """CLIP's image encoder, with the preprocessing that it learned with, as far as the KEY VALUE pairs do not tell
    another."""
    cfg = job.cfg()
    node, device = cfg.MODEL.BACKBONE, "cuda" if cfg.USE_CUDA and torch.cuda.is_available() else "cpu"
    clip, weights = load_shared(node.NAME, node.WEIGHTS, "fp16", device)  # as the trainers over a frozen CLIP
    visual = clip.visual
    cfg.INPUT.INTERPOLATION, cfg.INPUT.TRANSFORMS = "bicubic", ("normalize",)
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD, cfg.INPUT.RESIZE = [*visual.mean], [*visual.std], visual.resize
    merge_options(cfg, list(job.options))
    cfg.INPUT.SIZE = (visual.input_resolution,) * 2
    encoder, transform = image_encoder(visual, weights, cfg.FEATURES.PREC), build_transform(cfg, is_train=False)
    if transform is None:
        raise UserError("INPUT.NO_TRANSFORM is True, but CLIP takes pictures that have been transformed")
    settings = {
        "encoder": {key: encoder.description[key] for key in TELLING},
        "transform": repr(transform),
        "data": {"split": job.split, **_changed(cfg.DATASET, get_cfg_default().DATASET)},
        "dim": text_encoder(clip).embed_dim,
        "shards": job.shards,
    }
    return Loaded(cfg, encoder, transform, json.loads(json.dumps(settings)))


def _changed(node: CfgNode, default: CfgNode) -> dict:
    """What of DATASET is not as by default, so that a key which is added later changes no set."""
    return {key: value for key, value in node.items() if value != default[key] and key not in SILENT}


def begun(job: Job) -> Description:
    """The set in the output folder; if there is none, the data set's images are listed first, once for all shards.

    Raises:
        UserError: the set that is there was made with other settings, the data set or CLIP is not to be had, there are
            fewer images than shards, or the folder cannot be written.
    """
    folder, settings = job.folder, loaded(job).settings
    check_at_least(job.shards, 1, "--shards")
    mkdir_if_missing(folder)
    with _alone(folder / ".lock"):
        if not (folder / DESCRIPTION).is_file():
            _list(job, folder, settings)
    there = Description(folder)
    now, then = dict(leaves(settings)), dict(leaves(there.settings))
    if differ := [key for key in now | then if key != "format" and now.get(key) != then.get(key)]:
        told = "".join(f"\n  {k} is {_shown(then, k)}, and would be {_shown(now, k)}" for k in differ)
        raise UserError(f"{folder} holds a set that was made otherwise; take another --output:{told}")
    return there


def _shown(settings: dict, key: str) -> str:
    return shortened(repr(settings[key])) if key in settings else "not set"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """For the body of a ``with``, no other process has the lock; waits for the one that has it."""
    lock = FileLock(path)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        print("Waiting for another process that lists the images")
        held = lock.acquire()
    with held:
        yield


def _list(job: Job, folder: Path, settings: dict) -> None:
    data = loaded(job)
    check_availability(job.split, PARTS, "--split")
    dataset = build_dataset(data.cfg)
    names = list(dataset.classnames) or [""]  # captions have no classes
    unique = {item.impath: item for part in PARTS[job.split] for item in getattr(dataset, part) or ()}
    if len(unique) < job.shards:
        raise UserError(
            f"{data.cfg.DATASET.NAME} has {len(unique):,} images in --split {job.split}; take no more shards than that"
        )
    by_class: list[list[str]] = [[] for _ in names]
    for path, item in unique.items():
        by_class[item.label if dataset.classnames else 0].append(path)
    classes = [(name, len(paths)) for name, paths in zip(names, by_class, strict=True)]
    print(f"Listing {len(unique):,} images of {len(names):,} classes in {folder}")
    describe(folder, settings, classes, _below(data.root, chain.from_iterable(map(sorted, by_class))), str(job))


def _below(root: Path, paths: Iterator[str]) -> Iterator[str]:
    """Paths below the data sets' folder, with forward slashes."""
    start = f"{root}{os.sep}"
    for path in paths:
        short = path[len(start) :] if path.startswith(start) else os.path.relpath(path, root)
        yield short.replace(os.sep, "/")
