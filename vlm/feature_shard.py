"""One file of a feature set (:mod:`vlm.feature_set`): the features of a range of its images, as safetensors.

``features`` (n, dim) in fp16 and ``status`` (n,), a byte an image: 2 * dim + 1 bytes each, behind a header of whole
pages. The header follows from n, dim, the set and the checksum, so a file is believed to be a shard of the set if its
header is, byte for byte, the one it must have, and its size the one that follows. That reads some bytes; the checksum
is of the content, and compared by who wants to read all of it.

Rounding to fp16 moves a number by 0.05% at most (by 3e-8 where it is below 6e-5), and the cosine of two features by
less than 1e-4; numbers above 65,504 have no fp16.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from pathlib import Path

import numpy as np
import torch

from dassl.utils import UserError, cannot_write

HERE, NOT_YET, UNREADABLE = range(3)  # status: there is a feature; not encoded so far; the image cannot be read
PAGE = 4096  # bytes; a row of 1,024 or 512 numbers then lies in one page of memory
KEPT_EVERY = 512  # images; what a killed extraction encodes again at most
DIGEST = 16  # bytes
UNFINISHED = "0" * 2 * DIGEST  # in place of the checksum
CHUNK = 1 << 24  # bytes


class ShardFormat:
    """What every byte of a shard of ``rows`` images but the features follows from."""

    def __init__(self, rows: int, dim: int, owner: str):
        """``owner`` names the set."""
        self.rows, self.dim, self.owner = rows, dim, owner
        self.pages = len(self.header(UNFINISHED))
        self.status_at = self.pages + 2 * rows * dim
        self.size = self.status_at + rows

    def header(self, checksum: str) -> bytes:
        """The file's beginning, as safetensors has it: the length of what follows, JSON, spaces."""
        end = 2 * self.rows * self.dim
        told = {
            "__metadata__": {"format": "pt", "set": self.owner, "checksum": checksum},
            "features": {"dtype": "F16", "shape": [self.rows, self.dim], "data_offsets": [0, end]},
            "status": {"dtype": "U8", "shape": [self.rows], "data_offsets": [end, end + self.rows]},
        }
        text = json.dumps(told).encode()
        length = -(-(8 + len(text)) // PAGE) * PAGE - 8
        return length.to_bytes(8, "little") + text.ljust(length)

    def checksum_in(self, path: Path) -> str | None:
        """The checksum that a file tells, which need not be that of its content; None, if it is no such shard.

        Raises:
            OSError: it cannot be read.
        """
        with open(path, "rb") as file:
            found = file.read(self.pages)
            size = os.fstat(file.fileno()).st_size
        at = self.header(UNFINISHED).rindex(UNFINISHED.encode())
        checksum = found[at : at + 2 * DIGEST].decode("ascii", "replace")
        return checksum if size == self.size and found == self.header(checksum) else None

    def is_sound(self, path: Path) -> bool:
        """Whether the content is what was written; reads all of it."""
        try:
            return self.checksum_in(path) == self.checksum_of(path)
        except OSError:
            return False

    def checksum_of(self, path: Path) -> str:
        with open(path, "rb") as file:
            file.seek(self.pages)
            digest = hashlib.blake2b(digest_size=DIGEST)
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def maps(self, path: Path, in_order: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Features (rows, dim) and status (rows,), memory maps; ``in_order`` lets the system read features ahead, which
        for features here and there would be thirty times as much as is asked for."""
        features = np.memmap(path, np.float16, "r", self.pages, (self.rows, self.dim))
        status = np.memmap(path, np.uint8, "r", self.status_at, (self.rows,))
        if not in_order and hasattr(mmap, "MADV_RANDOM"):
            features._mmap.madvise(mmap.MADV_RANDOM)
        return features, status


class ShardWriter:
    """Writes a shard as its features come, in any order, under another name, and goes on with what lies there.

    A feature is synced to the disk before its status says that it is there, so whatever kills the writer, what the file
    tells is so. The room on the disk is taken at once.
    """

    def __init__(self, path: Path, form: ShardFormat):
        """Raises :class:`UserError` if the file cannot be written."""
        self.path, self.form = path, form
        self._new: dict[int, int] = {}  # row -> status, not written yet
        try:
            # A sound one was killed before finish could rename it.
            ours = path.is_file() and (form.checksum_in(path) == UNFINISHED or form.is_sound(path))
            self._file = open(path, "r+b" if ours else "w+b")  # noqa: SIM115  until finish or close
            if not ours:
                self._make()
            self._file.seek(form.status_at)
            self.status = np.frombuffer(bytearray(self._file.read()), np.uint8)
        except OSError as error:
            raise cannot_write(path, error) from error

    def _make(self) -> None:
        """A file of its final size, whose header comes last, so that half a file is none."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), 0, self.form.size)
        self._file.seek(self.form.status_at)
        self._file.write(bytes([NOT_YET]) * self.form.rows)
        self._sync()
        self._file.seek(0)
        self._file.write(self.form.header(UNFINISHED))
        self._sync()

    def missing(self) -> list[int]:
        """The rows that are neither there nor known to be unreadable."""
        return np.flatnonzero(self.status == NOT_YET).tolist()

    def put(self, row: int, feature: torch.Tensor) -> None:
        """Write the feature (dim,) of an image.

        Raises:
            UserError: it does not fit into fp16, or the file cannot be written.
        """
        rounded = feature.half()
        if not torch.isfinite(rounded).all():
            raise UserError(f"the feature of image {row} is not finite, or too large for fp16; is the encoder damaged?")
        try:
            self._file.seek(self.form.pages + 2 * self.form.dim * row)
            self._file.write(rounded.numpy().tobytes())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._say(row, HERE)

    def leave_out(self, row: int) -> None:
        """There is no feature, as the image cannot be read."""
        self._say(row, UNREADABLE)

    def _say(self, row: int, status: int) -> None:
        self._new[row] = status
        if len(self._new) >= KEPT_EVERY:
            self.keep()

    def keep(self) -> None:
        """Sync what was put to the disk."""
        if not self._new:
            return
        try:
            self._sync()
            for row, status in self._new.items():
                self.status[row] = status
                self._file.seek(self.form.status_at + row)
                self._file.write(bytes([status]))
            self._sync()
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._new = {}

    def close(self) -> None:
        """Sync and stop; another writer goes on."""
        try:
            self.keep()
        finally:
            self._file.close()

    def finish(self, path: Path) -> None:
        """Put in the checksum, and rename the file, which is whole, to its final name."""
        self.close()
        if missing := self.missing():
            raise ValueError(f"{len(missing)} features are missing")
        try:
            header = self.form.header(self.form.checksum_of(self.path))
            with open(self.path, "r+b") as file:
                file.write(header)
                file.flush()
                os.fsync(file.fileno())
            os.replace(self.path, path)
        except OSError as error:
            raise cannot_write(path, error) from error

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
