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
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from dassl.distributed import get_rank, get_world_size
from dassl.utils import UserError, atomic_write, write_json
from dassl.utils.files import remove_temporary_files

DESCRIPTION_FILE = "encoder.json"  # what the folder's features were made with; for people
ENCODER_FOLDER = re.compile("[0-9a-f]{32}")  # the name of an encoder's folder
LOCK_TIMEOUT = 60.0  # seconds in which one of several processes of a run waits for another run
STALE_SECONDS = 3600.0  # seconds after which nobody is writing to a file any more; processes without the lock may be
READ_ERRORS = (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError)


class FeatureStore:
    """The features that one encoder gave, by key (16 bytes)."""

    full = False  # whether the disk is: then nothing more is kept

    def __init__(self, root: str | os.PathLike, encoder: Mapping[str, object], max_gb: float):
        """``encoder`` describes everything that the features of an image depend on, beside the image.

        Raises:
            UserError: the folder cannot be written.
        """
        self.root = Path(root).expanduser()
        self.encoder = _blake2b(json.dumps(encoder, sort_keys=True).encode()).hex()
        self.folder = self.root / self.encoder
        self.description = dict(encoder)
        self.max_bytes = int(max_gb * 1e9)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".lock").touch()
        except OSError as error:
            hint = "Name another folder with FEATURES.CACHE_DIR, or keep none: FEATURES.ENABLED False"
            raise UserError(f"features cannot be kept in {self.folder}: {error.strerror}. {hint}") from error
        self._where: dict[bytes, Path] = {}
        self._seen: set[Path] = set()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """For the body of a ``with``, no other process computes features of this encoder, but for those of the same
        run: they have images of their own. They wait for each other as well, so none of them waits for another run
        without end: at worst, something is computed twice."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / (f".lock-{get_rank()}" if get_rank() else ".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print("Waiting for another process that computes features with the same encoder")
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=LOCK_TIMEOUT if get_world_size() > 1 else -1)
        try:
            remove_temporary_files(self.folder, older_than=STALE_SECONDS)
            yield
        finally:
            lock.release()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, torch.Tensor]:
        """Return the features that are there, each (embed_dim,)."""
        if not all(key in self._where for key in keys):
            self._scan_files()
        found: dict[bytes, torch.Tensor] = {}
        for path in {self._where[key]: None for key in keys if key in self._where}:
            features = read_shard(path, self.encoder)
            if features is None:
                self._seen.discard(path)
                self._where = {key: where for key, where in self._where.items() if where != path}
            else:
                with contextlib.suppress(OSError):
                    os.utime(path)  # used now
                found |= features
        return {key: found[key] for key in keys if key in found}

    def keep(self, keys: Sequence[bytes], features: torch.Tensor) -> None:
        """Write features (n, embed_dim); a full disk does not stop a run, but nothing is kept from then on."""
        if keys and not self.full:
            try:
                self.put(keys, features)
            except UserError as error:
                print(f"Note: features are not kept from here on: {error}")
                self.full = True

    def put(self, keys: Sequence[bytes], features: torch.Tensor) -> None:
        """Write features (n, embed_dim).

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
            file.write(save({**tensors, "checksum": _checksum(tensors, self.encoder)}))
        self._seen.add(path)
        self._where.update(dict.fromkeys(keys, path))
        evict_oldest(self.root, self.max_bytes)

    def _scan_files(self) -> None:
        """Read the keys in new files, unchecked."""
        for path in sorted({*self.folder.glob("*.safetensors")} - self._seen):
            self._seen.add(path)
            try:
                with safe_open(path, framework="pt") as file:
                    self._where.update(dict.fromkeys(_split_keys(file.get_tensor("keys")), path))
            except READ_ERRORS:
                read_shard(path, self.encoder)  # removes it


def _blake2b(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _checksum(tensors: Mapping[str, torch.Tensor], encoder: str) -> torch.Tensor:
    digest = hashlib.blake2b(encoder.encode(), digest_size=16)
    for tensor in (tensors["keys"], tensors["features"]):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _split_keys(tensor: torch.Tensor) -> list[bytes]:
    return [row.tobytes() for row in tensor.numpy()]


def read_shard(path: Path, encoder: str) -> dict[bytes, torch.Tensor] | None:
    """Return the features in a file by key; None, and the file is removed, if it is not as it was written."""
    try:
        content = load(path.read_bytes())
        if torch.equal(content["checksum"], _checksum(content, encoder)):
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
    """Return the folders of encoders in ``root``. Whatever else lies there is not ours."""
    return sorted(p for p in root.glob("*") if ENCODER_FOLDER.fullmatch(p.name) and p.is_dir() and not p.is_symlink())


def list_feature_files(*folders: Path) -> list[tuple[Path, os.stat_result]]:
    """Return every file of features in the ``folders`` of encoders, the least recently used first."""
    found = []
    for path in (path for folder in folders for path in folder.glob("*.safetensors")):
        with contextlib.suppress(OSError):  # another process may have removed it just now
            found.append((path, path.stat()))
    return sorted(found, key=lambda item: item[1].st_mtime)


def evict_oldest(root: Path, max_bytes: int) -> None:
    """Remove the least recently used files until the rest takes no more than ``max_bytes``."""
    files = list_feature_files(*list_encoder_folders(root))
    size = sum(stat.st_size for _, stat in files)
    for path, stat in files:
        if size <= max_bytes:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            size -= stat.st_size
