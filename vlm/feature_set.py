"""The features of very many images: a folder of shards that are extracted one by one, anywhere, and never loaded whole.

``set.json`` describes what all shards have in common, ``images.txt`` lists the images, one path a line, class by class,
and ``shard-00003-of-00100.safetensors`` has the features of one part of that list (:mod:`vlm.feature_shard`). What is
there is what the folder lists: no file knows of the others. A label follows from an image's place, so it takes no room.

It is not the cache of :mod:`vlm.feature_store`, which is keyed by content, and made for random draws of few images.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path, PurePath

import numpy as np
import torch

from dassl.utils import UserError, atomic_write, check_at_least, derive_seed, read_json, write_json

from .feature_shard import HERE, ShardFormat
from .feature_store import encoder_id

DESCRIPTION, LISTING, COMMAND = "set.json", "images.txt", "command"
FORMAT = 1  # of the description
SHOWN = 8  # shards that a message names
MOST = 1 << 53  # of anything that is counted; beyond it, a number is a mistake


class Description:
    """What ``set.json`` says, checked; and where in the set what lies."""

    def __init__(self, folder: Path):
        """Raises :class:`UserError` if there is none, or it makes no sense."""
        self.folder = folder
        path = folder / DESCRIPTION
        if not path.is_file():
            raise UserError(f"{folder} is no feature set: it has no {DESCRIPTION}. tools/features.py extract makes one")
        told = read_json(path)
        try:
            self.command = str(told.pop(COMMAND))
            self.settings = dict(told["settings"])
            self.images, self.dim = _whole(told["images"]), _whole(self.settings["dim"])
            self.shards = _whole(self.settings["shards"])
            self.classnames = [str(name) for name, _ in told["classes"]]
            self.counts = [_whole(count, 0) for _, count in told["classes"]]
            self.parts = [str(digest) for digest in told["listing"]["parts"]]
            self.offsets = [_whole(offset, 0) for offset in told["listing"]["offsets"]]
            if self.settings["format"] != FORMAT:
                raise ValueError(f"its format is {self.settings['format']}, and this version reads {FORMAT}")
            parts_fit = len(self.offsets) - 1 == len(self.parts) == self.shards <= self.images
            rising = sorted([0, *self.offsets[1:]]) == self.offsets
            if sum(self.counts) != self.images or not parts_fit or not rising:
                raise ValueError("its numbers contradict each other")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} does not describe a feature set: {error!r}") from error
        self.id = encoder_id(told)
        self.starts = [0, *accumulate(self.counts)][:-1]  # of the classes
        self.bounds = bounds(self.images, self.shards)

    def rows(self, shard: int) -> range:
        """The images of a shard; shards count from 1."""
        return range(self.bounds[shard - 1], self.bounds[shard])

    def path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05}-of-{self.shards:05}.safetensors"

    def form(self, shard: int) -> ShardFormat:
        return ShardFormat(len(self.rows(shard)), self.dim, self.id)

    def is_there(self, shard: int) -> bool:
        """Whether there is such a shard; of its content, nothing is read.

        Raises:
            UserError: what is there is something else.
        """
        path = self.path(shard)
        try:
            if self.form(shard).checksum_in(path) is not None:
                return True
        except FileNotFoundError:
            return False
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        raise UserError(
            f"{path} is damaged, or a shard of another set. Remove it, and extract it anew: {self.extract(shard)}"
        )

    def missing(self) -> list[int]:
        return [shard for shard in range(1, self.shards + 1) if not self.is_there(shard)]

    def extract(self, shard: int | None = None) -> str:
        """The command that extracts a shard, or all that are missing. Flags go before its KEY VALUE pairs."""
        return self.command if shard is None else self.command.replace("extract", f"extract --shard {shard}", 1)

    def paths(self, shard: int) -> list[str]:
        """The paths of a shard's images, below the data sets' folder.

        Raises:
            UserError: the listing is not as it was written, or a path leads out of that folder.
        """
        listing, (start, end) = self.folder / LISTING, self.offsets[shard - 1 : shard + 1]
        changed = UserError(f"{listing} is not as it was written; put it back, or begin another set")
        try:
            with open(listing, "rb") as file:
                if os.fstat(file.fileno()).st_size != self.offsets[-1]:  # or far more might be asked for than there is
                    raise changed
                file.seek(start)
                part = file.read(end - start)
        except OSError as error:
            raise UserError(f"cannot read {listing}: {error.strerror}") from error
        paths = os.fsdecode(part).split("\n")[:-1]
        if hashlib.sha256(part).hexdigest() != self.parts[shard - 1] or len(paths) != len(self.rows(shard)):
            raise changed
        if (astray := next(filter(leads_out, paths), None)) is not None:
            raise UserError(f"{listing} names {astray!r}, which is not below the data sets' folder; begin another set")
        return paths


def leads_out(path: str) -> bool:
    """Whether a path, as it is written, may lead out of the folder that it is joined to."""
    return os.path.isabs(path) or (".." in path and ".." in PurePath(path).parts)


def bounds(images: int, shards: int) -> list[int]:
    """Where shards begin and end, of as many images each as can be."""
    return [images * number // shards for number in range(shards + 1)]


def describe(
    folder: Path, settings: dict, classes: Sequence[tuple[str, int]], paths: Iterable[str], command: str
) -> None:
    """Begin a set.

    Args:
        settings: what the features depend on, beside the images; with ``dim`` and ``shards``.
        classes: names, and numbers of images, in the order of labels.
        paths: of the images, below the data sets' folder, class by class.

    Raises:
        UserError: a path cannot stand on a line, or leads elsewhere, or the folder cannot be written.
    """
    images = sum(count for _, count in classes)
    cuts, offsets, parts, digest = {*bounds(images, settings["shards"])}, [0], [], hashlib.sha256()
    with atomic_write(folder / LISTING, "wb") as file:
        for number, path in enumerate(paths, start=1):
            if "\n" in path:
                raise UserError(f"the path {path!r} has a line break; rename it")
            if leads_out(path):
                raise UserError(f"{path} is not below the data sets' folder; take a --root that holds all images")
            line = os.fsencode(path) + b"\n"
            file.write(line)
            digest.update(line)
            if number in cuts:
                offsets.append(file.tell())
                parts.append(digest.hexdigest())
                digest = hashlib.sha256()
    listing = {"parts": parts, "offsets": offsets}
    told = {"settings": {"format": FORMAT, **settings}, "images": images, "classes": classes, "listing": listing}
    write_json({**told, COMMAND: command}, folder / DESCRIPTION)


class FeatureSet:
    """A set that is read through memory maps: opening it reads the shards' headers, and each feature is read when it is
    asked for. Images count from 0, through all shards; they lie class by class."""

    def __init__(self, folder: str | os.PathLike, partial: bool = False):
        """``partial`` takes a set of which shards are missing: their images have no features.

        Raises:
            UserError: it is no set, a shard is damaged, or is missing; the message has the command that extracts it.
        """
        self.told = Description(Path(folder).expanduser())
        self.classnames, self.counts, self.dim = self.told.classnames, self.told.counts, self.told.dim
        missing = self.told.missing()
        if missing and (not partial or len(missing) == self.told.shards):
            shown = ", ".join(map(str, missing[:SHOWN])) + (", …" if len(missing) > SHOWN else "")
            raise UserError(
                f"{folder} lacks {len(missing):,} of {self.told.shards:,} shards: {shown}. This extracts them, or one "
                f"of them with --shard K: {self.told.extract()}"
            )
        self._missing = {*missing}
        self._bounds = np.array(self.told.bounds)
        self._maps: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        """All images, with those that could not be read, or whose shards are missing."""
        return self.told.images

    @cached_property
    def _starts(self) -> torch.Tensor:
        return torch.tensor(self.told.starts)

    def labels(self, indices: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Labels (n,) of images."""
        return torch.bucketize(torch.as_tensor(indices), self._starts, right=True) - 1

    def features(self, indices: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Features (n, dim) of images, in fp32 numbers that were rounded to fp16.

        Raises:
            UserError: an image has none.
            IndexError: there is no such image.
        """
        found = np.empty((len(indices), self.dim), np.float16)
        for maps, rows, places in self._by_shard(indices):
            if maps is None or (maps[1][rows] != HERE).any():
                lacks = next(i for i, there in zip(indices, self.has(indices), strict=True) if not there)
                raise UserError(f"image {int(lacks):,} of {self.told.folder} has no feature; has() tells which have")
            found[places] = maps[0][rows]
        return torch.from_numpy(found).float()

    def has(self, indices: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Whether there are features of images, (n,): not, if an image could not be read, or the shard is missing."""
        found = np.zeros(len(indices), bool)
        for maps, rows, places in self._by_shard(indices):
            if maps is not None:
                found[places] = maps[1][rows] == HERE
        return torch.from_numpy(found)

    def paths(self, indices: Sequence[int] | torch.Tensor) -> list[str]:
        """Where images lie, below the data sets' folder; reads the part of the listing that is theirs."""
        found = [""] * len(indices)
        for shard, rows, places in self._grouped(indices):
            listed = self.told.paths(shard)
            for row, place in zip(rows, places, strict=True):
                found[place] = listed[row]
        return found

    def few_shot(self, shots: int, seed: int) -> torch.Tensor:
        """Images drawn at random, ``shots`` a class that have features (all, where there are fewer), class by class.

        A class's images follow from (seed, its name, its images): not from the other classes, nor the shards.
        """
        check_at_least(shots, 1, "the number of shots")
        drawn: list[int] = []
        for name, start, count in zip(self.classnames, self.told.starts, self.counts, strict=True):
            rng = random.Random(derive_seed(seed, name))
            drawn += _draw(range(start, start + count), shots, rng, self.has)
        return torch.tensor(drawn, dtype=torch.long)

    def blocks(self, size: int = 4096) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Features (n, dim) and labels (n,) of all images that have some, in order, at most ``size`` at a time."""
        for shard in range(1, self.told.shards + 1):
            if shard in self._missing:
                continue
            first, (features, status) = self.told.rows(shard)[0], self._open(shard, in_order=True)
            for start in range(0, len(status), size):
                rows = np.flatnonzero(status[start : start + size] == HERE) + start
                if len(rows):
                    yield torch.from_numpy(features[rows]).float(), self.labels(rows + first)

    def _by_shard(self, indices: Sequence[int] | torch.Tensor) -> Iterator[tuple]:
        """Features and status of each shard (None, if it is missing), rows in it, and their places in ``indices``."""
        for shard, rows, places in self._grouped(indices):
            yield None if shard in self._missing else self._mapped(shard), rows, places

    def _grouped(self, indices: Sequence[int] | torch.Tensor) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        wanted = np.asarray(indices, dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"images count from 0 to {len(self) - 1:,}")
        shards = np.searchsorted(self._bounds, wanted, side="right")
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            yield shard, wanted[places] - self._bounds[shard - 1], places

    def _mapped(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        if shard not in self._maps:
            self._maps[shard] = self._open(shard)
        return self._maps[shard]

    def _open(self, shard: int, in_order: bool = False) -> tuple[np.ndarray, np.ndarray]:
        path = self.told.path(shard)
        try:
            return self.told.form(shard).maps(path, in_order)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}, which was there: {error}") from error


def _draw(rows: range, shots: int, rng: random.Random, has: Callable) -> list[int]:
    """At most ``shots`` of the rows that have features; all of a class are looked at only where most have none."""
    size = shots
    while True:
        drawn = rng.sample(rows, min(size, len(rows)))
        there = [row for row, known in zip(drawn, has(drawn).tolist(), strict=True) if known]
        if len(there) >= shots or size >= len(rows):
            return there[:shots]
        size *= 4


def _whole(value: object, least: int = 1) -> int:
    if type(value) is not int or not least <= value <= MOST:
        raise ValueError(f"{value!r} stands where a whole number from {least} to {MOST} should")
    return value
