"""Extracting a feature set (:mod:`vlm.images.lance_features`) block by block: here, as tasks of Ray, or in shards.

Each block of the list of images becomes a fragment of the Lance data set, and a small file tells that it is there. So a
killed extraction loses one block, and who finds all blocks there commits the set.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from yacs.config import CfgNode

import datasets  # noqa: F401  registers the data sets
from dassl.config.merge import flatten
from dassl.data.datasets import build_dataset
from dassl.data.images import unreadable_images_error
from dassl.utils import UnreadableImageError, UserError, check_availability, read_image, read_json, write_json
from inference.classifier import build_preprocessing
from vlm.clip.load import load_cached_clip
from vlm.images.encoder import PRECISIONS, build_image_encoder
from vlm.images.extractor import CachedFeatureExtractor
from vlm.images.lance_features import METADATA_KEY, lance, open_lance_dataset
from vlm.images.lance_features import pyarrow as pa

from . import ray

SPLITS = {"train": ("train_x",), "val": ("val",), "test": ("test",), "all": ("train_x", "val", "test")}
LISTING_FOLDER = "images.lance"  # in the set's folder, until all features are there
MIN_BLOCK_IMAGES, MAX_BLOCKS = (
    1024,
    1000,
)  # images of a block; blocks of a large set, as each is a file that random reads open
COMPARED_KEYS = (
    "weights",
    "precision",
    "preprocessing",
)  # of the encoder: the rest moves a feature by less than fp16 does
IGNORED_DATASET_KEYS = ("ROOT", "SKIP_BAD_IMAGES", "FOLLOW_LINKS", "TEMPLATE")  # of DATASET: no feature depends on them


@dataclass(frozen=True)
class ExtractionJob:
    """A feature set to make in ``folder``: of a ``split`` of the data set of ``cfg``, by its backbone."""

    cfg: CfgNode
    split: str
    folder: Path

    @property
    def is_complete(self) -> bool:
        return (self.folder / "_versions").is_dir()

    def blocks(self) -> dict[Path, range]:
        """Return the rows of each block, by the file that tells that it is there."""
        rows = range(open_lance_dataset(self.folder / LISTING_FOLDER)[0].count_rows())
        size = max(MIN_BLOCK_IMAGES, len(rows) // MAX_BLOCKS)
        return {self.folder / f"blocks/{start // size}.json": rows[start : start + size] for start in rows[::size]}


def run_block(block: tuple[Path, range] | None, job: ExtractionJob) -> str | None:
    """Extract a block, or (None) begin the set; return what the user has to hint, or None."""
    node, device = job.cfg.MODEL.BACKBONE, "cuda" if job.cfg.USE_CUDA and torch.cuda.is_available() else "cpu"
    try:
        check_availability(job.cfg.FEATURES.PREC, PRECISIONS, "FEATURES.PREC")
        with torch.random.fork_rng(devices=[]):  # load_shared keeps a CLIP for the random state before loading it
            clip, weights = load_cached_clip(
                node.NAME, node.WEIGHTS, "fp16", device
            )  # as the trainers over a frozen CLIP
        encoder, transform = (
            build_image_encoder(clip.visual, weights, job.cfg.FEATURES.PREC),
            build_preprocessing(clip.visual),
        )
        if block:
            _extract_block(*block, job, encoder, transform)
        else:
            data = {key: value for key, value in job.cfg.DATASET.items() if key not in IGNORED_DATASET_KEYS}
            settings = {
                "encoder": {key: encoder.description[key] for key in COMPARED_KEYS},
                "transform": repr(transform),
            }
            _write_listing(job, json.loads(json.dumps({**settings, "split": job.split, "data": data})))
    except UserError as error:
        return str(error)
    return None


def _write_listing(job: ExtractionJob, settings: dict) -> None:
    """List the images; or compare the settings with those of the set that is there."""
    if job.is_complete or (job.folder / LISTING_FOLDER).exists():
        then = dict(
            flatten(open_lance_dataset(job.folder if job.is_complete else job.folder / LISTING_FOLDER)[1]["settings"])
        )
        if other := [f"{key} {then.get(key)}, not {now}" for key, now in flatten(settings) if now != then.get(key)]:
            raise UserError(f"{job.folder} was made with {'; '.join(other)}. Take another --output")
        return
    dataset, root = build_dataset(job.cfg), Path(job.cfg.DATASET.ROOT).expanduser()
    names = list(dataset.classnames)
    labels = {item.impath: item.label for part in SPLITS[job.split] for item in getattr(dataset, part) or ()}
    if not labels:
        raise UserError(f"{job.cfg.DATASET.NAME} has no images in --split {job.split}")
    rows = sorted((label if names else 0, os.path.relpath(path, root)) for path, label in labels.items())
    print(f"Listing {len(rows):,} images of {len(names):,} classes")
    label, path = zip(*rows, strict=True)
    table = pa.table({"path": [name.replace(os.sep, "/") for name in path], "label": pa.array(label, pa.int32())})
    description = json.dumps({"classnames": names or [""], "settings": settings})
    lance.write_dataset(table.replace_schema_metadata({METADATA_KEY: description}), str(job.folder / LISTING_FOLDER))


def _extract_block(done: Path, rows: range, job: ExtractionJob, encoder, transform) -> None:
    """Write the fragment of a block, without pictures that cannot be read, if these may be left out."""
    table, root = (
        open_lance_dataset(job.folder / LISTING_FOLDER)[0].take([*rows]),
        Path(job.cfg.DATASET.ROOT).expanduser(),
    )
    bad: dict[str, str] = {}

    def read(path: str) -> torch.Tensor | None:
        try:
            return transform(read_image(root / path))
        except UnreadableImageError as error:
            bad[path] = error.reason
            return None

    paths, threads = table["path"].to_pylist(), max(1, min(job.cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1))
    features = CachedFeatureExtractor(encoder)([(path.encode(), partial(read, path)) for path in paths], threads).half()
    if bad and (len(bad) == len(paths) or not job.cfg.DATASET.SKIP_BAD_IMAGES):
        raise unreadable_images_error(bad, f"{len(paths):,} images")
    if not features.isfinite().all():
        raise UserError("a feature is not finite, or too large for fp16; are the weights damaged?")
    for path, reason in bad.items():
        print(f"Left out (DATASET.SKIP_BAD_IMAGES): {path}: {reason}")
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.flatten().numpy()), features.shape[1])
    table = table.filter(pa.array([path not in bad for path in paths])).append_column("feature", column)
    (fragment,) = lance.fragment.write_fragments(table, str(job.folder))
    labels, counts = (array.tolist() for array in np.unique(table["label"], return_counts=True))
    write_json({"fragment": fragment.to_json(), "dim": features.shape[1], "labels": labels, "counts": counts}, done)


def _commit_dataset(job: ExtractionJob, blocks: list[Path]) -> None:
    """Make one data set of all fragments, in the order of the list."""
    listing, description = open_lance_dataset(job.folder / LISTING_FOLDER)
    entries, counts = [*map(read_json, blocks)], np.zeros(len(description["classnames"]), np.int64)
    for entry in entries:
        counts[entry["labels"]] += entry["counts"]
    schema = listing.schema.append(pa.field("feature", pa.list_(pa.float16(), entries[0]["dim"])))
    schema = schema.with_metadata({METADATA_KEY: json.dumps({**description, "counts": counts.tolist()})})
    fragments = [lance.FragmentMetadata.from_json(json.dumps(entry["fragment"])) for entry in entries]
    lance.LanceDataset.commit(str(job.folder), lance.LanceOperation.Overwrite(schema, fragments))
    for leftover in (job.folder / LISTING_FOLDER, blocks[0].parent):
        shutil.rmtree(leftover, ignore_errors=True)


def extract_features(
    job: ExtractionJob, shard: int, shards: int, address: str | None, resources: ray.Resources
) -> None:
    """Extract the missing blocks of a shard, here or (``address``) on Ray; commit the set once all blocks are there."""
    check_availability(job.split, SPLITS, "--split")
    if not 1 <= shard <= shards:
        raise UserError(f"--shard is {shard}; it counts from 1 to --shards, {shards}")
    with ray.local_or_ray(address, resources) as run:
        if error := next(run(run_block, [None], job)):  # where blocks are made, as a GPU has a precision of its own
            raise UserError(error)
        blocks = {} if job.is_complete else job.blocks()
        mine = [block for block in [*blocks.items()][shard - 1 :: shards] if not block[0].exists()]
        if errors := [error for error in run(run_block, mine, job) if error]:
            raise UserError("\n".join(errors))
    if missing := sum(not block.exists() for block in blocks):
        print(f"{job.folder}: {missing:,} of {len(blocks):,} blocks are missing, those of other shards")
        return
    if blocks:
        _commit_dataset(job, [*blocks])
    print(f"{job.folder}: complete, {open_lance_dataset(job.folder)[0].count_rows():,} images")
