"""Stores few-shot splits in the data set's folder, as ``split_fewshot/shot_<n>-seed_<s>.json``.

The file lists image paths relative to the data set's folder, and the fingerprint of the images and classes that the
split was drawn from. It is used while the data set has this fingerprint; else it is renamed, and the split drawn again.
Without such a file, a few-shot split of CoOp's code, a pickle of absolute paths, is used if it matches the data set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from dassl.data.datasets import Datum
from dassl.engine.record import SPLIT_FOLDER
from dassl.utils import UserError, atomic_write, read_json
from dassl.utils.logger import rotate_file

from .split_pickle import FEW_SHOT_SPLITS, is_split_entry, read_split_pickle

MAX_VAL_SHOTS = 4  # CoOp's rule: at most 4 validation images a class
MAX_PATH_DEPTH = 32  # path components of a foreign absolute path that are compared; bounds the work for hostile paths

Split = dict[str, list[Datum]]  # train and, if validation images are drawn, val


class SplitMismatch(Exception):
    """A stored split does not match the data set; the message says why."""


class FewShotSplit:
    """The stored split of ``shots`` images a class, drawn with ``seed`` from the data set in ``folder``.

    ``train`` and ``val`` are all its images. If ``val`` is None, validation images come from the other training images.
    """

    def __init__(self, folder: Path, shots: int, seed: int, train: list[Datum], val: list[Datum] | None):
        self.prefix = str(folder / "x")[:-1]  # the start of the images' paths; "" for the folder "."
        self.path = folder / SPLIT_FOLDER / f"shot_{shots}-seed_{seed}.json"
        self.shots, self.train, self.val = shots, train, val
        self.fingerprint = self._compute_fingerprint()
        self.metadata = {"shots": shots, "seed": seed, "fingerprint": self.fingerprint}

    def read(self) -> Split:
        """Return the split stored as JSON, else as a pickle of CoOp's code; an empty dict if neither matches.

        It prints a note for each file that does not match the data set, and renames such a JSON file. It writes a
        pickle's split as JSON.
        """
        readers = {self.path: self._read_json, self.path.with_suffix(".pkl"): self._read_pickle}
        existing = [path for path in readers if path.exists()]
        for path in existing:
            try:
                split = self._match(readers[path](path))
            except SplitMismatch as error:
                print(f"Note: {path} is not used: {error}")
                if path == self.path:
                    with contextlib.suppress(OSError):  # write() prints a note if the folder is read-only
                        rotate_file(path)
                        edited = "To train on exactly its images, name it in DATASET.FEWSHOT_FILE"
                        print(f"The former {path} is kept beside it, under its date. {edited}")
                continue
            if path != self.path:
                print(f"The original's few-shot split {path} fits these images")
                self.write(split)
            return split
        if existing:
            print("The few shots are drawn anew")
        return {}

    def write(self, split: Split) -> None:
        """Write a split to ``self.path`` (JSON). If that fails, print a note: the next run draws the same split."""
        blocks = [f'"{key}": {_to_json(value)}' for key, value in self.metadata.items()]
        for name, items in split.items():
            lines = (f"  {_to_json([self._relative_path(item), item.label, item.classname])}" for item in items)
            blocks.append(f'"{name}": [\n' + ",\n".join(lines) + "]")
        try:
            with atomic_write(self.path) as file:
                file.write("{\n" + ",\n".join(blocks) + "\n}\n")
        except UserError as error:
            print(f"Note: the few-shot split is not kept: {error}")
        else:
            print(f"Few-shot split kept: {self.path}")

    def _compute_fingerprint(self) -> str:
        """Return a checksum over the classes in their order, each with its images' paths and splits."""
        digests: defaultdict = defaultdict(hashlib.sha256)
        for split, items in (("train", self.train), ("val", self.val or [])):
            for item in items:
                image = f"{split} {self._relative_path(item)}\0"
                digests[item.label, item.classname].update(image.encode("utf-8", "surrogatepass"))
        classes = [(f"{label} {name}", digest.hexdigest()[:16]) for (label, name), digest in digests.items()]
        content = [classes, "left over" if self.val is None else "own"]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _relative_path(self, item: Datum) -> str:
        """Return an image's path relative to the data set's folder, with forward slashes."""
        return item.impath.removeprefix(self.prefix).replace(os.sep, "/")

    def _read_json(self, path: Path) -> dict[str, list]:
        """Return the entries [path, label, class name] by split; raise ``SplitMismatch`` if metadata differ."""
        try:
            content = read_json(path)
            metadata = {key: content[key] for key in self.metadata}
            entries = {split: content[split] for split in FEW_SHOT_SPLITS if split == "train" or split in content}
        except (UserError, KeyError, TypeError) as error:
            raise SplitMismatch(f"it is damaged ({str(error) or type(error).__name__})") from error
        if metadata != self.metadata:
            raise SplitMismatch("it was drawn from other images or classes, in another order, or with another seed")
        if not all(isinstance(items, list) and all(map(is_split_entry, items)) for items in entries.values()):
            raise SplitMismatch("it does not list [path, label, class name]")
        return entries

    def _read_pickle(self, path: Path) -> dict[str, list]:
        """Return a pickle's entries (relative path, label, class name) by split; SplitMismatch if it is damaged."""
        relative_paths = {self._relative_path(item) for item in [*self.train, *(self.val or [])]}
        try:
            entries = read_split_pickle(path, max_bytes=(1 << 20) + 4096 * len(relative_paths))
        except (OSError, ValueError) as error:
            raise SplitMismatch(f"it cannot be read ({error})") from error

        def to_relative(path: str) -> str:
            """Return the longest tail of ``path`` that is the relative path of an image; ``path`` if there is none."""
            components = path.replace("\\", "/").split("/")[-MAX_PATH_DEPTH:]
            tails = ("/".join(components[start:]) for start in range(len(components)))
            return next((tail for tail in tails if tail in relative_paths), path)

        return {split: [(to_relative(path), *label) for path, *label in items] for split, items in entries.items()}

    def _match(self, entries: Mapping[str, Sequence[Sequence]]) -> Split:
        """Return the images that the entries of each split name; raise ``SplitMismatch`` if some do not match."""
        split = {"train": self._match_entries(entries["train"], self.train, self.shots)}
        if "val" in entries:
            pool = exclude_items(self.train, split["train"]) if self.val is None else self.val
            split["val"] = self._match_entries(entries["val"], pool, min(self.shots, MAX_VAL_SHOTS))
        return split

    def _match_entries(self, entries: Sequence[Sequence], pool: list[Datum], shots: int) -> list[Datum]:
        """Return the images of ``pool`` that the entries name.

        Raises:
            SplitMismatch: an entry names no such image, or another class; or a class has not ``shots`` different
                images, or all that ``pool`` has if these are fewer.
        """
        pool_items = {self._relative_path(item): item for item in pool}
        matches = []
        for path, label, classname in entries:
            item = pool_items.get(path)
            if item is None:
                raise SplitMismatch(f"{_to_json(path)} is not among the images")
            if (item.label, item.classname) != (label, classname):
                saved, current = _to_json(f"{label} {classname}"), _to_json(f"{item.label} {item.classname}")
                raise SplitMismatch(f"{_to_json(path)} is of class {current} now, and was of {saved}")
            matches.append(item)
        counts = Counter(item.label for item in set(matches))
        expected = {label: min(shots, count) for label, count in Counter(item.label for item in pool).items()}
        if len(matches) != counts.total() or counts != expected:
            raise SplitMismatch(f"it does not hold {shots} different images of each class")
        return matches


def exclude_items(items: list[Datum], excluded: list[Datum]) -> list[Datum]:
    """Return the images of ``items`` whose paths are not in ``excluded``, in their order."""
    paths = {item.impath for item in excluded}
    return [item for item in items if item.impath not in paths]


def _to_json(value: object) -> str:
    """Return JSON text in which characters that a terminal cannot print are escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)
