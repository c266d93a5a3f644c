"""The feature cache: features on disk, shared by all runs on the machine.

A shard, ``<root>/<encoder>/<name>.safetensors``, holds some hundreds of features with their keys. It is written under a
temporary name, renamed once complete, and never changed, so any number of processes may read and write. It is used only
if its checksum matches its content, and removed otherwise. When the cache exceeds its limit, the least recently used
shards are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from dassl.distributed import get_rank, get_world_size
from dassl.utils import UserError, atomic_write, write_json
from dassl.utils.files import remove_temporary_files

DESCRIPTION_FILE = "encoder.json"  # the description of a folder's encoder, for readers and tools/features.py
ENCODER_FOLDER = re.compile("[0-9a-f]{32}")  # the name of an encoder's folder: a digest of 16 bytes
# Seconds that a process of a distributed run waits for another run, while its peers wait for it.
STORE_LOCK_TIMEOUT = 60.0
STALE_SECONDS = 3600.0  # age of a temporary file that has no writer any more; writing a shard takes far less
# Exceptions of the readers of a damaged file.
READ_ERRORS = (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError)


class FeatureStore:
    """The cached features of one encoder, by key: a digest (16 bytes) of the image or prompt."""

    is_disk_full = False  # after a failed write; ``try_put`` then writes nothing more

    def __init__(self, root: str | os.PathLike, encoder: Mapping[str, object], max_gb: float):
        """Open or create the encoder's folder in the feature cache ``root``.

        Args:
            encoder: description of the encoder: everything that a feature depends on, except for the image or prompt.
            max_gb: limit of the whole cache, of all encoders, in GB.

        Raises:
            UserError: the folder cannot be written.
        """
        self.root = Path(root).expanduser()
        self.encoder = _blake2b(json.dumps(encoder, sort_keys=True).encode()).hex()  # digest; the folder's name
        self.folder = self.root / self.encoder
        self.description = dict(encoder)
        self.max_bytes = int(max_gb * 1e9)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".lock").touch()
        except OSError as error:
            hint = "Name another folder with FEATURES.CACHE_DIR, or cache nothing: FEATURES.ENABLED False"
            raise UserError(f"cannot write features to {self.folder}: {error.strerror}. {hint}") from error
        self._paths: dict[bytes, Path] = {}  # the shard of each known key
        self._scanned: set[Path] = set()  # shards whose keys are known

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold this rank's lock of the encoder during a ``with``, so that no other run computes the same features.

        Wait for the lock without limit, but in a distributed run at most STORE_LOCK_TIMEOUT seconds; then continue
        without the lock. At worst, a feature is computed again.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / (f".lock-{get_rank()}" if get_rank() else ".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print("Waiting for another process that computes features with the same encoder")
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=STORE_LOCK_TIMEOUT if get_world_size() > 1 else -1)
        try:
            remove_temporary_files(self.folder, older_than=STALE_SECONDS)
            yield
        finally:
            lock.release()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, torch.Tensor]:
        """Return the cached features, each (embed_dim,), by key; keys that are not cached are left out."""
        if not all(key in self._paths for key in keys):
            self._scan_shards()
        features: dict[bytes, torch.Tensor] = {}
        for path in {self._paths[key]: None for key in keys if key in self._paths}:
            shard = read_shard(path, self.encoder)
            if shard is None:
                self._scanned.discard(path)
                self._paths = {key: other for key, other in self._paths.items() if other != path}
            else:
                with contextlib.suppress(OSError):
                    os.utime(path)  # used now
                features |= shard
        return {key: features[key] for key in keys if key in features}

    def try_put(self, keys: Sequence[bytes], features: torch.Tensor) -> None:
        """Write features (n, embed_dim) as ``put``; if that fails, print a note, and write nothing from then on."""
        if keys and not self.is_disk_full:
            try:
                self.put(keys, features)
            except UserError as error:
                print(f"Note: features are not kept from here on: {error}")
                self.is_disk_full = True

    def put(self, keys: Sequence[bytes], features: torch.Tensor) -> None:
        """Write features (n, embed_dim), on the CPU, one for each of ``keys`` (16 bytes), to a new file: a shard.

        Then remove the least recently used shards until the cache is within its limit.

        Raises:
            UserError: the folder cannot be written.
        """
        joined = b"".join(keys)
        tensors = {
            "keys": torch.frombuffer(bytearray(joined), dtype=torch.uint8).view(-1, 16),
            "features": features.contiguous(),
        }
        path = self.folder / f"{_blake2b(joined).hex()}.safetensors"
        if not (self.folder / DESCRIPTION_FILE).is_file():
            write_json(self.description, self.folder / DESCRIPTION_FILE)
        with atomic_write(path, "wb") as file:
            file.write(save({**tensors, "checksum": _compute_checksum(tensors, self.encoder)}))
        self._scanned.add(path)
        self._paths.update(dict.fromkeys(keys, path))
        evict_oldest(self.root, self.max_bytes)

    def _scan_shards(self) -> None:
        """Read the keys of shards written since the last scan; remove unreadable ones. ``get`` verifies checksums."""
        for path in sorted({*self.folder.glob("*.safetensors")} - self._scanned):
            self._scanned.add(path)
            try:
                with safe_open(path, framework="pt") as file:
                    self._paths.update(dict.fromkeys(_split_keys(file.get_tensor("keys")), path))
            except READ_ERRORS:
                read_shard(path, self.encoder)  # removes it


def _blake2b(content: bytes) -> bytes:
    """Return the BLAKE2b digest (16 bytes) of ``content``."""
    return hashlib.blake2b(content, digest_size=16).digest()


def _compute_checksum(tensors: Mapping[str, torch.Tensor], encoder_digest: str) -> torch.Tensor:
    """Return the checksum (16,), uint8, of a shard's tensors "keys" and "features" and of its encoder's digest."""
    digest = hashlib.blake2b(encoder_digest.encode(), digest_size=16)
    for tensor in (tensors["keys"], tensors["features"]):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _split_keys(tensor: torch.Tensor) -> list[bytes]:
    """Return the rows of a shard's tensor "keys" (n, 16) as bytes."""
    return [row.tobytes() for row in tensor.numpy()]


def read_shard(path: Path, encoder_digest: str) -> dict[bytes, torch.Tensor] | None:
    """Return a shard's features (embed_dim,) by key; None if it is absent or its checksum is wrong.

    The checksum covers ``encoder_digest``, the name of the encoder's folder. Remove a shard with a wrong one.
    """
    try:
        content = load(path.read_bytes())
        if torch.equal(content["checksum"], _compute_checksum(content, encoder_digest)):
            return dict(zip(_split_keys(content["keys"]), content["features"], strict=True))
    except FileNotFoundError:
        return None
    except READ_ERRORS:
        pass
    print(f"Note: {path} is damaged; its features are computed again")
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def list_encoder_folders(root: Path) -> list[Path]:
    """Return the encoders' folders in the feature cache ``root``, sorted; other folders and links are ignored."""
    return sorted(p for p in root.glob("*") if ENCODER_FOLDER.fullmatch(p.name) and p.is_dir() and not p.is_symlink())


def list_shards(*folders: Path) -> list[tuple[Path, os.stat_result]]:
    """Return the shards in encoders' ``folders`` with their stat results, the least recently used first."""
    files = []
    for path in (path for folder in folders for path in folder.glob("*.safetensors")):
        with contextlib.suppress(OSError):  # another process may have removed it just now
            files.append((path, path.stat()))
    return sorted(files, key=lambda item: item[1].st_mtime)


def evict_oldest(root: Path, max_bytes: int) -> None:
    """Remove the least recently used shards of the cache ``root``, until all shards take at most ``max_bytes``."""
    files = list_shards(*list_encoder_folders(root))
    size = sum(stat.st_size for _, stat in files)
    for path, stat in files:
        if size <= max_bytes:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            size -= stat.st_size
