"""What is in the feature store (:mod:`vlm.images.feature_store`), whether it is sound, and removing it."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from tabulate import tabulate
from tqdm import tqdm

from dassl.utils import UserError

from .feature_store import DAMAGE, DESCRIPTION, encoder_folders, read_shard
from .features import cache_folder  # noqa: F401  for tools/features.py

SHOWN = 12  # characters of names and checksums
# What runs write, and what is left of that if one is killed while it writes.
OURS = re.compile(r"[^.].*\.safetensors|encoder\.json|\.lock|\.(.+\.safetensors|encoder\.json)\.[^.]+(\.tmp)?")


@dataclass(frozen=True)
class Encoder:
    """A folder of features, all of one encoder."""

    folder: Path

    def __str__(self) -> str:
        return self.folder.name[:SHOWN]

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def description(self) -> list[str]:
        """Return weights, precision and runtime, as far as the folder tells them."""
        try:
            known = json.loads((self.folder / DESCRIPTION).read_text(encoding="utf-8"))
            weights, *rest = (str(known.get(key, "?")) for key in ("weights", "precision", "runtime"))
        except (OSError, ValueError, AttributeError):
            weights, *rest = "???"
        return [weights[:SHOWN], *rest]

    def remove(self) -> tuple[int, int]:
        """Remove what runs have written, and the folder if that was all; return the files of features and bytes."""
        ours = [path for path in self.folder.iterdir() if OURS.fullmatch(path.name) and not path.is_dir()]
        files, size = sum(path.suffix == ".safetensors" for path in ours), sum(map(_size, ours))
        for path in ours:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"cannot remove {path}: {error.strerror}") from error
        try:
            self.folder.rmdir()
        except OSError:
            print(f"Note: {self.folder} stays, as it holds something else")
        return files, size


def encoders_in(root: Path) -> list[Encoder]:
    return [Encoder(folder) for folder in encoder_folders(root)]


def show(root: Path) -> None:
    """Print a table, one row an encoder."""
    rows, totals = [], [0, 0, 0]
    for encoder in encoders_in(root):
        counts = [len(encoder.files()), sum(map(_count, encoder.files())), sum(map(_size, encoder.files()))]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        latest = max((path.stat().st_mtime for path in encoder.files() if path.exists()), default=None)
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(latest)) if latest else "-"
        rows.append([str(encoder), *encoder.description(), *counts[:2], _readable(counts[2]), used])
    head = ["encoder", "weights", "precision", "runtime", "files", "features", "size", "last used"]
    print(tabulate(rows, head, disable_numparse=True, colalign=["left"] * 4 + ["right"] * 3 + ["left"]))
    print(f"total: {totals[0]:,} files, {totals[1]:,} features, {_readable(totals[2])} in {root}")


def verify(root: Path) -> int:
    """Read every file, so that damaged ones are removed; return the exit code."""
    files = [(path, encoder.folder.name) for encoder in encoders_in(root) for path in encoder.files()]
    bad = [path for path, name in tqdm(files, disable=None, leave=False, unit="file") if read_shard(path, name) is None]
    print(f"{len(files) - len(bad):,} files are sound; {len(bad):,} were damaged and removed")
    if stay := [str(path) for path in bad if path.exists()]:
        raise UserError(f"damaged files that cannot be removed: {', '.join(stay)}")
    return 1 if bad else 0


def remove(root: Path, prefixes: list[str]) -> None:
    """Remove the encoders whose names begin so, or all of them.

    Raises:
        UserError: no encoder's name, or that of several, begins so; nothing has been removed.
    """
    encoders = encoders_in(root)
    chosen = []
    for prefix in prefixes:
        found = [encoder for encoder in encoders if prefix and encoder.folder.name.startswith(prefix.lower())]
        if len(found) != 1:
            what = "several encoders begin" if found else "no encoder begins"
            raise UserError(f'{what} with "{prefix}"; there are {", ".join(e.folder.name for e in found or encoders)}')
        chosen += found
    chosen = list(dict.fromkeys(chosen)) or encoders
    files, freed = (sum(column) for column in zip(*(encoder.remove() for encoder in chosen), strict=True))
    print(f"removed {files:,} files of {', '.join(map(str, chosen))}; {_readable(freed)} are free")


def _count(path: Path) -> int:
    """Return how many features a file holds by its header; none if that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_slice("features").get_shape()[0]
    except (*DAMAGE, IndexError):
        return 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0  # another process may have removed it just now


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.2f} GB"
