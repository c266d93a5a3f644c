"""Extraction of a feature set (``vlm.images.lance_features``) in blocks: in this process, as Ray tasks, in shards.

The images are listed once and the list is cut into blocks. A block becomes a fragment of the Lance data set, and then a
JSON file marks the block as complete, so a killed extraction loses one block. The call that sees all blocks complete
commits the set.
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
from dassl import engine
from dassl.config import get_cfg_default
from dassl.config.merge import flatten
from dassl.data.datasets import build_dataset
from dassl.data.decoding import ORIGINAL, describe_deep_images, get_decoding
from dassl.data.images import unreadable_images_error
from dassl.data.transforms import Pipeline
from dassl.utils import (
    Decoding,
    UnreadableImageError,
    UserError,
    check_availability,
    read_image,
    read_json,
    relpath,
    write_json,
)
from inference.classifier import build_preprocessing
from vlm.clip.load import load_cached_clip
from vlm.images.encoder import FEATURE_PRECISIONS, ImageEncoder, build_image_encoder
from vlm.images.extractor import CachedFeatureExtractor
from vlm.images.lance_features import METADATA_KEY, lance, open_lance_dataset
from vlm.images.lance_features import pyarrow as pa

from . import ray

# The lists of a DatasetBase that each value of --split takes its images from.
SPLIT_ATTRIBUTES = {"train": ("train_x",), "val": ("val",), "test": ("test",), "all": ("train_x", "val", "test")}
LISTING_FOLDER = "images.lance"  # paths and labels of the images, in the set's folder until the set is complete
MIN_BLOCK_IMAGES = 1024  # images of a block: RN50 takes over a minute on two cores, longer than a task's start
MAX_BLOCKS = 1000  # blocks of a large set: each is a file, and reading random rows opens all files
# Keys of ImageEncoder.description; the others, such as the runtime, change a feature by less than rounding to fp16.
COMPARED_KEYS = ("weights", "precision", "preprocessing")
# Keys of DATASET on which no feature depends.
IGNORED_DATASET_KEYS = ("ROOT", "SKIP_BAD_IMAGES", "FOLLOW_LINKS", "TEMPLATE", "DESCRIPTIONS")


@dataclass(frozen=True)
class ExtractionJob:
    """A feature set to make: the config of a data set and a backbone, the ``--split``, and the set's folder."""

    cfg: CfgNode
    split: str
    folder: Path

    @property
    def is_complete(self) -> bool:
        """Whether the feature set is complete: ``folder`` has ``_versions``, which Lance writes last."""
        return (self.folder / "_versions").is_dir()

    def list_blocks(self) -> dict[Path, range]:
        """Return each block's rows in the list of images, by its marker: the path of a complete block's file."""
        rows = range(open_lance_dataset(self.folder / LISTING_FOLDER)[0].count_rows())
        size = max(MIN_BLOCK_IMAGES, len(rows) // MAX_BLOCKS)
        return {self.folder / f"blocks/{start // size}.json": rows[start : start + size] for start in rows[::size]}


def run_block(block: tuple[Path, range] | None, job: ExtractionJob) -> str | None:
    """Write the features of the rows of a block, then its marker file; return None, or the message of a UserError.

    ``block``: the path of the marker file, which shows that the block is complete, and the range of rows. Before the
    first block, a call with None writes the list of images, or compares the settings with those of an existing list.
    """
    node, device = job.cfg.MODEL.BACKBONE, "cuda" if job.cfg.USE_CUDA and torch.cuda.is_available() else "cpu"
    try:
        check_availability(job.cfg.FEATURES.PREC, FEATURE_PRECISIONS, "FEATURES.PREC")
        # load_cached_clip reuses its CLIP only under the same random state. Prompt trainers load fp16 weights, too.
        with torch.random.fork_rng(devices=[]):
            clip, weights = load_cached_clip(node.NAME, node.WEIGHTS, "fp16", device)
        encoder = build_image_encoder(clip.visual, weights, job.cfg.FEATURES.PREC)
        transform = build_preprocessing(clip.visual)
        if block:
            _extract_block(*block, job, encoder, transform)
        else:
            description = {key: encoder.description[key] for key in COMPARED_KEYS}
            data = {key: value for key, value in job.cfg.DATASET.items() if key not in IGNORED_DATASET_KEYS}
            settings = {"encoder": description, "transform": repr(transform), "split": job.split, "data": data}
            settings["input"] = to_input(Decoding(job.cfg.INPUT.WHITE_LEVEL, job.cfg.INPUT.ORIENTATION))
            _write_listing(job, json.loads(json.dumps(settings)))
    except UserError as error:
        return str(error)
    return None


def to_input(decoding: Decoding) -> dict[str, int | str]:
    """Return the values of the keys of INPUT that ``decoding`` has, for the settings of a list of images."""
    return {"WHITE_LEVEL": decoding.white_level, "ORIENTATION": decoding.orientation}


def _write_listing(job: ExtractionJob, settings: dict) -> None:
    """Write the list of the set's images, with ``settings``; of an existing list, only compare the settings.

    The features depend on the ``settings``. Without values for the keys of ``input``, a new list gets those of
    ``dassl.data.decoding.get_decoding``, and an existing one keeps its own.

    Raises:
        UserError: the settings differ, or the split has no images.
    """
    listing = job.folder / LISTING_FOLDER
    if job.is_complete or listing.exists():
        # An earlier version's list lacks newer keys, which then had their defaults.
        saved = {f"data.{key}": value for key, value in get_cfg_default().DATASET.items()}
        saved |= {f"input.{key}": value for key, value in to_input(ORIGINAL).items()}
        saved |= flatten(open_lance_dataset(job.folder if job.is_complete else listing)[1]["settings"])
        unset = {"input.WHITE_LEVEL": -1, "input.ORIENTATION": ""}.items()
        pairs = [pair for pair in flatten(settings) if pair not in unset]
        if changed := [f"{key} {saved.get(key)}, not {value}" for key, value in pairs if value != saved.get(key)]:
            raise UserError(f"{job.folder} was made with {'; '.join(changed)}. Take another --output")
        return
    settings["input"] = to_input(decoding := get_decoding(job.cfg))
    dataset, root = build_dataset(job.cfg), Path(job.cfg.DATASET.ROOT).expanduser()
    classnames = list(dataset.classnames)
    labels = {item.impath: item.label for name in SPLIT_ATTRIBUTES[job.split] for item in getattr(dataset, name) or ()}
    if not labels:
        raise UserError(f"{job.cfg.DATASET.NAME} has no images in --split {job.split}")
    rows = sorted((label if classnames else 0, relpath(path, root)) for path, label in labels.items())
    print(f"Listing {len(rows):,} images of {len(classnames):,} classes")
    if note := describe_deep_images([*labels], decoding):
        print(note)
    label, path = zip(*rows, strict=True)
    table = pa.table({"path": [name.replace(os.sep, "/") for name in path], "label": pa.array(label, pa.int32())})
    metadata = {METADATA_KEY: json.dumps({"classnames": classnames or [""], "settings": settings})}
    lance.write_dataset(table.replace_schema_metadata(metadata), str(listing))


def _extract_block(marker: Path, rows: range, job: ExtractionJob, encoder: ImageEncoder, transform: Pipeline) -> None:
    """Write the fp16 features of ``rows`` in the list of images as a Lance fragment, then the file ``marker``.

    Raises:
        UserError: an image cannot be read (with DATASET.SKIP_BAD_IMAGES: no image can), or a feature is not finite.
    """
    listing, description = open_lance_dataset(job.folder / LISTING_FOLDER)
    node = description["settings"].get("input", to_input(ORIGINAL))
    table, decoding = listing.take([*rows]), Decoding(node["WHITE_LEVEL"], node["ORIENTATION"])
    root = Path(job.cfg.DATASET.ROOT).expanduser()
    bad: dict[str, str] = {}

    def read(path: str) -> torch.Tensor | None:
        """Return the preprocessed image (3, height, width) at root/``path``; if unreadable, None; reason in ``bad``."""
        try:
            return transform(read_image(root / path, decoding))
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
    write_json({"fragment": fragment.to_json(), "dim": features.shape[1], "labels": labels, "counts": counts}, marker)


def _commit_dataset(job: ExtractionJob, markers: list[Path]) -> None:
    """Commit the fragments of all blocks as one Lance data set with class counts; remove the list and the markers."""
    listing, description = open_lance_dataset(job.folder / LISTING_FOLDER)
    blocks, counts = [*map(read_json, markers)], np.zeros(len(description["classnames"]), np.int64)
    for block in blocks:
        counts[block["labels"]] += block["counts"]
    schema = listing.schema.append(pa.field("feature", pa.list_(pa.float16(), blocks[0]["dim"])))
    schema = schema.with_metadata({METADATA_KEY: json.dumps({**description, "counts": counts.tolist()})})
    fragments = [lance.FragmentMetadata.from_json(json.dumps(block["fragment"])) for block in blocks]
    lance.LanceDataset.commit(str(job.folder), lance.LanceOperation.Overwrite(schema, fragments))
    for folder in (job.folder / LISTING_FOLDER, markers[0].parent):
        shutil.rmtree(folder, ignore_errors=True)


def extract_features(
    job: ExtractionJob, shard: int, shards: int, address: str | None, resources: ray.Resources
) -> None:
    """Extract the incomplete blocks of one shard, a part of the set; commit the set once all blocks are complete.

    Args:
        shard: number of the shard, from 1 to ``shards``; the shard has every ``shards``-th block.
        address: address of a Ray, as for ``studies.ray.connect``; None: the blocks are computed in this process.
        resources: what each Ray task occupies, from ``studies.ray.build_resources``.

    Raises:
        UserError: a wrong split, shard or config, settings other than the set's, or images that cannot be read.
    """
    check_availability(job.split, SPLIT_ATTRIBUTES, "--split")
    engine.is_decoding_set(job.cfg)  # refuses wrong values
    if not 1 <= shard <= shards:
        raise UserError(f"--shard is {shard}; it must be from 1 to --shards, {shards}")
    with ray.local_or_ray(address, resources) as run:
        # The list is written where the blocks are extracted: its precision is that of their device, such as a GPU.
        if error := next(run(run_block, [None], job)):
            raise UserError(error)
        blocks = {} if job.is_complete else job.list_blocks()
        todo = [block for block in [*blocks.items()][shard - 1 :: shards] if not block[0].exists()]
        if errors := [error for error in run(run_block, todo, job) if error]:
            raise UserError("\n".join(errors))
    if missing := sum(not marker.exists() for marker in blocks):
        print(f"{job.folder}: {missing:,} of {len(blocks):,} blocks are missing, those of other shards")
        return
    if blocks:
        _commit_dataset(job, [*blocks])
    print(f"{job.folder}: complete, {open_lance_dataset(job.folder)[0].count_rows():,} images")
