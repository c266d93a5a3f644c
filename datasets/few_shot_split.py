"""The few shots that were drawn, kept in the data set's folder: ``split_fewshot/shot_<n>-seed_<s>.json``.

The file is for people and for programs; its paths are relative to the data set's folder. It is used as long as the
listing of today has the fingerprint that it holds; else it is set aside, and drawn anew. What the original left, a
pickle of absolute paths, is read in its place if it fits (:mod:`.split_pickle`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from dassl.data.datasets import Datum
from dassl.utils import UserError, atomic_write, read_json
from dassl.utils.logger import rotate_file

from .split_pickle import SPLIT_NAMES, is_split_entry, read_split_pickle

SPLIT_FOLDER = "split_fewshot"
MAX_VAL_SHOTS = 4  # CoOp's rule: at most 4 validation images a class
MAX_PATH_DEPTH = 32  # folders above an image that are compared

SplitItems = dict[str, list[Datum]]  # train and, where it is drawn, val


class SplitMismatch(Exception):
    """Says why a stored split is none of this listing."""


class FewShotSplit:
    """The stored split of a listing.

    Args:
        folder: of the data set.
        val: the images that are for validation; None where these are drawn from what the few shots leave over.
    """

    def __init__(self, folder: Path, shots: int, seed: int, train: list[Datum], val: list[Datum] | None):
        self.prefix = str(folder / "x")[:-1]  # nothing for the folder "."
        self.path = folder / SPLIT_FOLDER / f"shot_{shots}-seed_{seed}.json"
        self.shots, self.train, self.val = shots, train, val
        self.fingerprint = self._fingerprint()
        self.about = {"shots": shots, "seed": seed, "fingerprint": self.fingerprint}

    def read(self) -> SplitItems:
        """Return what is stored, by us or else by the original, if it is of this listing.

        Notes say what is not, and why; a file of ours that is not is set aside.

        Raises:
            UserError: the original's pickle holds something else than a split.
        """
        readers = {self.path: self._from_json, self.path.with_suffix(".pkl"): self._from_pickle}
        there = [path for path in readers if path.exists()]
        for path in there:
            try:
                split = self._checked(readers[path](path))
            except SplitMismatch as error:
                print(f"Note: {path} is not used: {error}")
                if path == self.path:
                    with contextlib.suppress(OSError):  # nothing can be written there, which the end of a draw tells
                        rotate_file(path)
                        print(f"The former {path} is kept beside it, under its date")
                continue
            if path != self.path:
                print(f"The original's few-shot split {path} fits these images")
                self.write(split)
            return split
        if there:
            print("The few shots are drawn anew")
        return {}

    def write(self, split: SplitItems) -> None:
        """Keep a split. Where the data cannot be written, a note says so: the same one is drawn next time."""
        blocks = [f'"{key}": {_to_json(value)}' for key, value in self.about.items()]
        for part, items in split.items():
            lines = (f"  {_to_json([self._name(item), item.label, item.classname])}" for item in items)
            blocks.append(f'"{part}": [\n' + ",\n".join(lines) + "]")
        try:
            with atomic_write(self.path) as file:
                file.write("{\n" + ",\n".join(blocks) + "\n}\n")
        except UserError as error:
            print(f"Note: the few-shot split is not kept: {error}")
        else:
            print(f"Few-shot split kept: {self.path}")

    def _fingerprint(self) -> str:
        """Return a checksum over the classes in the order of the listing, and each class's images and their splits."""
        digests = defaultdict(hashlib.sha256)
        for part, items in (("train", self.train), ("val", self.val or [])):
            for item in items:
                image = f"{part} {self._name(item)}\0"
                digests[item.label, item.classname].update(image.encode("utf-8", "surrogatepass"))
        classes = [(f"{label} {name}", digest.hexdigest()[:16]) for (label, name), digest in digests.items()]
        what = [classes, "left over" if self.val is None else "own"]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def _name(self, item: Datum) -> str:
        """Return an image's path below the data set's folder, with forward slashes."""
        return item.impath.removeprefix(self.prefix).replace(os.sep, "/")

    def _from_json(self, path: Path) -> dict[str, list]:
        try:
            content = read_json(path)
            found = {key: content[key] for key in self.about}
            entries = {part: content[part] for part in SPLIT_NAMES if part == "train" or part in content}
        except (UserError, KeyError, TypeError) as error:
            raise SplitMismatch(f"it is damaged ({str(error) or type(error).__name__})") from error
        if found != self.about:
            raise SplitMismatch("it was drawn from other images or classes, in another order, or with another seed")
        if not all(isinstance(items, list) and all(map(is_split_entry, items)) for items in entries.values()):
            raise SplitMismatch("it does not list [path, label, class name]")
        return entries

    def _from_pickle(self, path: Path) -> dict[str, list]:
        listed = {self._name(item) for item in [*self.train, *(self.val or [])]}
        try:
            entries = read_split_pickle(path, most_bytes=(1 << 20) + 4096 * len(listed))
        except (OSError, ValueError) as error:
            raise SplitMismatch(f"it cannot be read ({error})") from error

        def here(path: str) -> str:
            """Return the longest tail of an absolute path that is an image of today."""
            folders = path.replace("\\", "/").split("/")[-MAX_PATH_DEPTH:]
            tails = ("/".join(folders[start:]) for start in range(len(folders)))
            return next((tail for tail in tails if tail in listed), path)

        return {part: [(here(name), *rest) for name, *rest in items] for part, items in entries.items()}

    def _checked(self, entries: dict[str, Sequence[Sequence]]) -> SplitItems:
        """Return the images of today that the entries name; :class:`SplitMismatch` as :meth:`_found`."""
        split = {"train": self._found(entries["train"], self.train, self.shots)}
        if "val" in entries:
            pool = exclude_items(self.train, split["train"]) if self.val is None else self.val
            split["val"] = self._found(entries["val"], pool, min(self.shots, MAX_VAL_SHOTS))
        return split

    def _found(self, entries: Sequence[Sequence], pool: list[Datum], shots: int) -> list[Datum]:
        """Return the images of ``pool`` that the entries name.

        Raises:
            Unfit: one of them is not there, or is of another class, or of a class there are not ``shots`` (or all).
        """
        listed = {self._name(item): item for item in pool}
        found = []
        for name, label, classname in entries:
            item = listed.get(name)
            if item is None:
                raise SplitMismatch(f"{_to_json(name)} is not among the images")
            if (item.label, item.classname) != (label, classname):
                was, now = _to_json(f"{label} {classname}"), _to_json(f"{item.label} {item.classname}")
                raise SplitMismatch(f"{_to_json(name)} is of class {now} now, and was of {was}")
            found.append(item)
        have = Counter(item.label for item in set(found))
        due = {label: min(shots, count) for label, count in Counter(item.label for item in pool).items()}
        if len(found) != have.total() or have != due:
            raise SplitMismatch(f"it does not hold {shots} different images of each class")
        return found


def exclude_items(items: list[Datum], chosen: list[Datum]) -> list[Datum]:
    taken = {item.impath for item in chosen}
    return [item for item in items if item.impath not in taken]


def _to_json(value: object) -> str:
    """Return JSON, with whatever a screen cannot show, such as a name that is no Unicode, as numbers."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)
