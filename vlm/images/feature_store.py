"""Features on disk, shared by every run on the machine.

``<root>/<encoder>/<name>.safetensors`` holds up to some hundreds of features with their keys. Files are written once,
under a temporary name, and never changed, so any number of processes may read and write. A file is believed only if
the checksum in it is that of its content; any other is removed, as if it had never been. The least recently used
files go when the whole cache grows over its limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from dassl.distributed import get_rank, get_world_size
from dassl.utils import UserError, atomic_write, write_json
from dassl.utils.files import remove_temporaries

DESCRIPTION = "encoder.json"  # what the folder's features were made with; for people
FOLDER = re.compile("[0-9a-f]{32}")  # the name of an encoder's folder
KEY_BYTES = 16
PATIENCE = 60.0  # seconds in which one of several processes of a run waits for another run
ABANDONED = 3600.0  # seconds after which nobody is writing to a file any more; processes without the lock may be
DAMAGE = (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError)


@dataclass(frozen=True)
class Shard:
    """What a file holds: keys (n, 16) as bytes and features (n, embed_dim)."""

    keys: torch.Tensor
    features: torch.Tensor

    def checksum(self, encoder: str) -> torch.Tensor:
        digest = hashlib.blake2b(encoder.encode(), digest_size=16)
        for tensor in (self.keys, self.features):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy())
        return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)

    def rows(self) -> dict[bytes, int]:
        return _rows(self.keys)


class FeatureStore:
    """The features that one encoder gave, by key (16 bytes)."""

    def __init__(self, root: str | os.PathLike, encoder: Mapping[str, object], max_gb: float):
        """``encoder`` describes everything that the features of an image depend on, beside the image.

        Raises:
            UserError: the folder cannot be written.
        """
        self.root = Path(root).expanduser()
        self.encoder = encoder_id(encoder)
        self.folder = self.root / self.encoder
        self.description = dict(encoder)
        self.max_bytes = int(max_gb * 1e9)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".lock").touch()
        except OSError as error:
            raise UserError(
                f"features cannot be kept in {self.folder}: {error.strerror}. Name another folder with "
                "FEATURES.CACHE_DIR, or keep none: FEATURES.ENABLED False"
            ) from error
        self._where: dict[bytes, Path] = {}
        self._seen: set[Path] = set()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """For the body of a ``with``, no other process computes features of this encoder, but for those of the same
        run: they have images of their own. They wait for each other as well, so none of them waits for another run
        without end: at worst, something is computed twice."""
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / (f".lock-{get_rank()}" if get_rank() else ".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print("Waiting for another process that computes features with the same encoder")
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=PATIENCE if get_world_size() > 1 else -1)
        try:
            remove_temporaries(self.folder, older_than=ABANDONED)
            yield
        finally:
            lock.release()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, torch.Tensor]:
        """The features that are there, each (embed_dim,)."""
        if not all(key in self._where for key in keys):
            self._look_for_files()
        found: dict[bytes, torch.Tensor] = {}
        for path in {self._where[key]: None for key in keys if key in self._where}:
            shard = read_shard(path, self.encoder)
            if shard is None:
                self._forget(path)
                continue
            with contextlib.suppress(OSError):
                os.utime(path)  # used now
            found.update((key, shard.features[row]) for key, row in shard.rows().items())
        return {key: found[key] for key in keys if key in found}

    def put(self, keys: Sequence[bytes], features: torch.Tensor) -> None:
        """Keep ``features`` (n, embed_dim).

        Raises:
            UserError: the folder cannot be written.
        """
        shard = Shard(torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, KEY_BYTES), features)
        path = self.folder / f"{keys_digest(keys).hex()}.safetensors"
        if not (self.folder / DESCRIPTION).is_file():
            write_json(self.description, self.folder / DESCRIPTION)
        with atomic_write(path, "wb") as file:
            checksum = shard.checksum(self.encoder)
            file.write(save({"keys": shard.keys, "features": shard.features.contiguous(), "checksum": checksum}))
        self._seen.add(path)
        self._where.update(dict.fromkeys(keys, path))
        remove_oldest(self.root, self.max_bytes)

    def _look_for_files(self) -> None:
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in self._seen:
                self._seen.add(path)
                self._where.update(dict.fromkeys(_keys_in(path, self.encoder), path))

    def _forget(self, path: Path) -> None:
        self._seen.discard(path)
        self._where = {key: where for key, where in self._where.items() if where != path}


def encoder_id(description: Mapping[str, object]) -> str:
    """The name of an encoder's folder."""
    return hashlib.blake2b(json.dumps(description, sort_keys=True).encode(), digest_size=16).hexdigest()


def keys_digest(keys: Sequence[bytes]) -> bytes:
    return hashlib.blake2b(b"".join(keys), digest_size=16).digest()


def read_shard(path: Path, encoder: str) -> Shard | None:
    """What a file of features holds; None, and the file is removed, if it is not as it was written."""
    try:
        content = load(path.read_bytes())
        shard = Shard(content["keys"], content["features"])
        if torch.equal(content["checksum"], shard.checksum(encoder)):
            return shard
    except FileNotFoundError:
        return None
    except DAMAGE:
        pass
    print(f"Note: {path} is damaged; its features are computed again")
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def _keys_in(path: Path, encoder: str) -> list[bytes]:
    """The keys in a file, unchecked; none, and the file is removed, if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return list(_rows(file.get_tensor("keys")))
    except DAMAGE:
        read_shard(path, encoder)
        return []


def _rows(keys: torch.Tensor) -> dict[bytes, int]:
    raw = keys.numpy().tobytes()
    return {raw[i : i + KEY_BYTES]: i // KEY_BYTES for i in range(0, len(raw), KEY_BYTES)}


def encoder_folders(root: Path) -> list[Path]:
    """The folders of encoders in ``root``. Whatever else lies there is not ours."""
    return sorted(p for p in root.glob("*") if FOLDER.fullmatch(p.name) and p.is_dir() and not p.is_symlink())


def shards(root: Path) -> list[tuple[Path, os.stat_result]]:
    """Every file of features below ``root``, the least recently used first."""
    found = []
    for path in (path for folder in encoder_folders(root) for path in folder.glob("*.safetensors")):
        with contextlib.suppress(OSError):  # another process may have removed it just now
            found.append((path, path.stat()))
    return sorted(found, key=lambda item: item[1].st_mtime)


def remove_oldest(root: Path, max_bytes: int) -> None:
    """Remove the least recently used files until the rest takes no more than ``max_bytes``."""
    files = shards(root)
    size = sum(stat.st_size for _, stat in files)
    for path, stat in files:
        if size <= max_bytes:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            size -= stat.st_size
