"""The few shots that were drawn, kept in the data set's folder: ``split_fewshot/shot_<n>-seed_<s>.json``.

The file is for people and for programs; its paths are relative to the data set's folder. It holds the fingerprint of
the listing that it was drawn from, and is used as long as that is the listing of today: a draw follows from listing and
seed anyway. What the original left, a pickle of absolute paths, is read in its place if it fits (:mod:`.old_split`). A
file that gives way to another content is set aside beside it.
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
from dassl.utils.logger import set_aside

from .old_split import read_pickle

FOLDER = "split_fewshot"
MAX_VAL_SHOTS = 4  # CoOp's rule: at most 4 validation images a class
PARTS = ("train", "val")
DEPTH = 32  # folders above an image that are compared

Split = dict[str, list[Datum]]  # train and, where it is drawn, val


class Unfit(Exception):
    """Says why a stored split is none of this listing."""


class FewShotSplit:
    """The stored split of a listing.

    Args:
        folder: of the data set.
        val: the images that are for validation; None where these are drawn from what the few shots leave over.
    """

    def __init__(self, folder: Path, shots: int, seed: int, train: list[Datum], val: list[Datum] | None):
        self.prefix = str(folder / "x")[:-1]  # nothing for the folder "."
        self.path = folder / FOLDER / f"shot_{shots}-seed_{seed}.json"
        self.shots, self.train, self.val = shots, train, val
        self.fingerprint = self._fingerprint()
        self.about = {"shots": shots, "seed": seed, "fingerprint": self.fingerprint}
        self._is_stale = False

    def read(self) -> Split:
        """What is stored, by us or else by the original, if it is of this listing; notes say what is not, and why.

        Raises:
            UserError: the original's pickle holds something else than a split.
        """
        old = self.path.with_suffix(".pkl")
        there = [path for path in (self.path, old) if path.exists()]
        for path in there:
            try:
                split = self._from_pickle(old) if path == old else self._from_json()
            except Unfit as error:
                print(f"Note: {path} is not used: {error}")
                self._is_stale = self._is_stale or path == self.path
                continue
            if path == old:
                print(f"The original's few-shot split {old} fits these images")
                self.write(split)
            return split
        if there:
            print("The few shots are drawn anew")
        return {}

    def write(self, split: Split) -> None:
        """Keep a split, and set aside a file that holds another. Where the data cannot be written, a note says so: the
        same one is drawn next time."""
        blocks = [
            *(f"{_text(key)}: {_text(value)}" for key, value in self.about.items()),
            *(f"{_text(part)}: [\n" + ",\n".join(map(self._line, items)) + "]" for part, items in split.items()),
        ]
        try:
            if self._is_stale:
                with contextlib.suppress(FileNotFoundError):  # another run did it
                    set_aside(self.path)
                print(f"The former {self.path} is kept beside it, under its date")
            with atomic_write(self.path) as file:
                file.write("{\n" + ",\n".join(blocks) + "\n}\n")
        except (UserError, OSError) as error:
            print(f"Note: the few-shot split is not kept: {error}")
        else:
            print(f"Few-shot split kept: {self.path}")

    def _fingerprint(self) -> str:
        """Return a checksum over the classes in the order of the listing, and each class's images and their splits."""
        digests = defaultdict(hashlib.sha256)
        for part, items in (("train", self.train), ("val", self.val or [])):
            for item in items:
                digests[item.label, item.classname].update(
                    f"{part} {self._name(item)}\0".encode("utf-8", "surrogatepass")
                )
        classes = [(f"{label} {name}", digest.hexdigest()[:16]) for (label, name), digest in digests.items()]
        what = [list(dict(classes).items()), "left over" if self.val is None else "own"]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def _name(self, item: Datum) -> str:
        """An image's path below the data set's folder, with forward slashes."""
        return item.impath.removeprefix(self.prefix).replace(os.sep, "/")

    def _line(self, item: Datum) -> str:
        return f"  {_text([self._name(item), item.label, item.classname])}"

    def _from_json(self) -> Split:
        try:
            if self.path.stat().st_size > self._most_bytes():
                raise Unfit("it is larger than all images' names")
            content = read_json(self.path)
            found = {key: content[key] for key in self.about}
            entries = {part: content[part] for part in PARTS if part == "train" or part in content}
        except (UserError, OSError, KeyError, TypeError) as error:
            raise Unfit(f"it is damaged ({str(error) or type(error).__name__})") from error
        if found["fingerprint"] != self.fingerprint:
            raise Unfit("it was drawn from other images or classes, or in another order")
        if found != self.about:
            raise Unfit("it is of other shots or of another seed")
        if not all(map(_is_listing, entries.values())):
            raise Unfit("it does not list [path, label, class name]")
        return self._checked(entries)

    def _from_pickle(self, path: Path) -> Split:
        try:
            entries = read_pickle(path, self._most_bytes())
        except (OSError, ValueError) as error:
            raise Unfit(f"it cannot be read ({error})") from error
        listed = {item.impath for item in [*self.train, *(self.val or [])]}

        def here(path: str) -> str:
            """The longest tail of an absolute path that is an image of today."""
            folders = path.replace("\\", "/").split("/")[-DEPTH:]
            tails = ("/".join(folders[start:]) for start in range(len(folders)))
            return next((tail for tail in tails if self._path(tail) in listed), path)

        return self._checked({part: [(here(p), *rest) for p, *rest in items] for part, items in entries.items()})

    def _path(self, name: str) -> str:
        return self.prefix + name.replace("/", os.sep)

    def _most_bytes(self) -> int:
        """More than the file can take for this listing."""
        return (1 << 20) + 4096 * (len(self.train) + len(self.val or []))

    def _checked(self, entries: dict[str, Sequence[Sequence]]) -> Split:
        """The images of today that the entries name.

        Raises:
            Unfit: one of them is not in the listing, or is another one there, or a class has too many or too few.
        """
        split = {"train": _checked(self._found(entries["train"], self.train), self.train, self.shots)}
        if "val" in entries:
            pool = left_over(self.train, split["train"]) if self.val is None else self.val
            split["val"] = _checked(self._found(entries["val"], pool), pool, min(self.shots, MAX_VAL_SHOTS))
        return split

    def _found(self, entries: Sequence[Sequence], pool: list[Datum]) -> list[Datum]:
        listed = {item.impath: item for item in pool}
        found = []
        for name, label, classname in entries:
            item = listed.get(self._path(name))
            if item is None:
                raise Unfit(f"{_short(name)} is not among the images")
            if (item.label, item.classname) != (label, classname):
                was, now = _short(f"{label} {classname}"), _short(f"{item.label} {item.classname}")
                raise Unfit(f"{_short(name)} is of class {now} now, and was of {was}")
            found.append(item)
        return found


def _is_listing(items: object) -> bool:
    return isinstance(items, list) and all(
        isinstance(entry, list) and [type(value) for value in entry] == [str, int, str] for entry in items
    )


def left_over(items: list[Datum], chosen: list[Datum]) -> list[Datum]:
    taken = {item.impath for item in chosen}
    return [item for item in items if item.impath not in taken]


def _checked(items: list[Datum], pool: list[Datum], shots: int) -> list[Datum]:
    """``items``, if they are ``shots`` different ones of each class of ``pool``, or all there are."""
    have = Counter(item.label for item in {item.impath: item for item in items}.values())
    due = {label: min(shots, count) for label, count in Counter(item.label for item in pool).items()}
    if len(items) != have.total() or have != due:
        raise Unfit(f"it does not hold {shots} different images of each class")
    return items


def _text(value: object) -> str:
    """JSON, with whatever a screen cannot show, such as a name that is no Unicode, as numbers."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def _short(name: str) -> str:
    return _text(name if len(name) <= 200 else f"…{name[-200:]}")
