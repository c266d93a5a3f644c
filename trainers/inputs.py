"""The data and the weights that a config names now, compared with those in the record of a finished run."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import torch
from yacs.config import CfgNode

from dassl.config.merge import flatten
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from dassl.data.datasets.fingerprint import get_image_root, split_fingerprints
from dassl.data.decoding import get_decoding
from dassl.data.images import skip_unreadable
from dassl.utils import UserError, file_digest
from datasets.feature_file import read_feature_file
from vlm.clip.load import load_cached_clip

SIZES_SUFFIX = " (sizes of their files)"  # of the name of a split whose images are replaced, not renamed
SPLIT_NAMES = {"train_x": "training images", "train_u": "unlabelled images", "val": "validation images"}


class CurrentInputs:
    """Fingerprints of data and weights as they are now, each computed once: for a sweep, or for one run."""

    def __init__(self):
        self._data: dict[object, dict[str, str]] = {}
        self._weights: dict[tuple[str, str], str] = {}
        self._notes: set[str] = set()

    def find_changes(self, record: dict, cfg: CfgNode) -> list[str]:
        """Return which inputs of a run of ``cfg`` differ from those in ``record``, such as "test images" or "weights".

        An entry that the record lacks is not compared. If data or weights cannot be read, it prints a note to standard
        error and returns [].
        """
        saved = _name_fingerprints(record.get("splits") or {}, record.get("few_shot_split"))
        files = {name: (record.get(name) or {}).get("sha256") for name in ("weights", "descriptions")}
        saved |= {name: sha256 for name, sha256 in files.items() if sha256}
        try:
            current = self.read_data(cfg) | ({"weights": self.read_weights(cfg)} if files["weights"] else {})
            if files["descriptions"] and (path := Path(cfg.DATASET.DESCRIPTIONS).expanduser()).is_file():
                current["descriptions"] = file_digest(path)
        except UserError as error:
            note = f"Note: finished runs could not be compared with the data and weights of now: {error}"
            if note not in self._notes:
                print(note, file=sys.stderr)
            self._notes.add(note)
            return []
        changed = [name for name, fingerprint in saved.items() if current.get(name, fingerprint) != fingerprint]
        return [name for name in changed if name.removesuffix(SIZES_SUFFIX) not in changed or SIZES_SUFFIX not in name]

    def read_data(self, cfg: CfgNode) -> dict[str, str]:
        """Return the fingerprints of the data set by name; UserError if it cannot be read."""
        is_few_shot = hasattr(DATASET_REGISTRY.get(cfg.DATASET.NAME), "split_source")
        node = {**dict(flatten(cfg.DATASET)), "NUM_SHOTS": cfg.DATASET.NUM_SHOTS >= 1}
        key = (repr(sorted(node.items())), None if is_few_shot else (cfg.DATASET.NUM_SHOTS, cfg.SEED))
        if key not in self._data:
            with contextlib.redirect_stdout(io.StringIO()):
                dataset = build_dataset(cfg)
                if cfg.DATASET.SKIP_BAD_IMAGES:
                    skip_unreadable(dataset, get_decoding(cfg))
            splits = split_fingerprints(dataset, get_image_root(cfg))
            self._data[key] = _name_fingerprints(splits, getattr(dataset, "split_source", None))
        return self._data[key]

    def read_weights(self, cfg: CfgNode) -> str:
        """Return the fingerprint of the weights of MODEL.BACKBONE, or of the features in place of them.

        Raises ``UserError`` if they cannot be read.
        """
        if cfg.DATASET.NAME == "Features":
            return read_feature_file(cfg.DATASET.FEATURES).sha256
        key = (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.WEIGHTS)
        if key not in self._weights:
            with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
                self._weights[key] = load_cached_clip(*key, "fp32", "cpu")[1]
        return self._weights[key]


def _name_fingerprints(splits: dict[str, dict], few_shot_split: dict | None) -> dict[str, str]:
    """Return the fingerprints in these entries of a record by name.

    The fingerprint of a few-shot split covers all images that training and validation images are drawn from.
    """
    names = {} if few_shot_split else SPLIT_NAMES
    present = {split: name for split, name in {"test": "test images", **names}.items() if split in splits}
    named = {name: splits[split]["sha256"] for split, name in present.items()}
    sized = {split: name for split, name in present.items() if "sizes" in splits[split]}
    named |= {f"{name}{SIZES_SUFFIX}": splits[split]["sizes"] for split, name in sized.items()}
    return named | ({"training images": few_shot_split["fingerprint"]} if few_shot_split else {})
