"""What is in the feature store (:mod:`vlm.images.feature_store`), whether it is sound, and removing it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from safetensors import safe_open
from tabulate import tabulate
from tqdm import tqdm

from dassl.utils import UserError

from .feature_store import DAMAGE, DESCRIPTION, encoder_folders, feature_files, read_shard
from .features import cache_folder  # noqa: F401  for tools/features.py

SHOWN = 12  # characters of names and checksums


def show(root: Path) -> None:
    """Print a table, one row an encoder."""
    rows, everything = [], []
    for folder in encoder_folders(root):
        files = feature_files(folder)
        everything += files
        features, size = sum(_count(path) for path, _ in files), _megabytes(files)
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(files[-1][1].st_mtime)) if files else "-"
        rows.append([folder.name[:SHOWN], *_description(folder), len(files), features, size, used])
    head = ["encoder", "weights", "precision", "runtime", "files", "features", "MB", "last used"]
    print(tabulate(rows, head, disable_numparse=True, colalign=["left"] * 4 + ["right"] * 3 + ["left"]))
    total = f"{len(everything):,} files, {sum(row[5] for row in rows):,} features, {_megabytes(everything)} MB"
    print(f"total: {total} in {root}")


def verify(root: Path) -> int:
    """Read every file, so that damaged ones are removed; return the exit code."""
    files = [path for path, _ in feature_files(*encoder_folders(root))]
    bar = tqdm(files, disable=None, leave=False, unit="file")
    bad = [path for path in bar if read_shard(path, path.parent.name) is None]
    print(f"{len(files) - len(bad):,} files are sound; {len(bad):,} were damaged and removed")
    if stay := [str(path) for path in bad if path.exists()]:
        raise UserError(f"damaged files that cannot be removed: {', '.join(stay)}")
    return 1 if bad else 0


def remove(root: Path, prefixes: list[str]) -> None:
    """Remove the features of the encoders whose folders' names begin so, or of all of them.

    Raises:
        UserError: no encoder's name, or that of several, begins so; nothing has been removed.
    """
    folders, prefixes = encoder_folders(root), [prefix.lower() for prefix in prefixes]
    for prefix in prefixes:
        found = [folder.name for folder in folders if prefix and folder.name.startswith(prefix)]
        if len(found) != 1:
            what = "several encoders begin" if found else "no encoder begins"
            raise UserError(f'{what} with "{prefix}"; there are {", ".join(found or (f.name for f in folders))}')
    chosen = [folder for folder in folders if folder.name.startswith(tuple(prefixes) or "")]
    files = feature_files(*chosen)
    for folder in chosen:
        _remove(folder)
    names = ", ".join(folder.name[:SHOWN] for folder in chosen)
    print(f"removed {len(files):,} files of {names}; {_megabytes(files)} MB are free")


def _remove(folder: Path) -> None:
    """Remove what runs have written, and the folder if that was all."""
    try:
        # With a dot begin locks, and what a run that was killed has left of a file.
        for path in (*folder.glob("*.safetensors"), *folder.glob(".*"), folder / DESCRIPTION):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot remove {error.filename}: {error.strerror}") from error
    try:
        folder.rmdir()
    except OSError:
        print(f"Note: {folder} stays, as it holds something else")


def _description(folder: Path) -> list[str]:
    """Return weights, precision and runtime, as far as the folder tells them."""
    try:
        known = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        weights, *rest = (str(known.get(key, "?")) for key in ("weights", "precision", "runtime"))
        return [weights[:SHOWN], *rest]
    except (OSError, ValueError, AttributeError):
        return ["?", "?", "?"]


def _count(path: Path) -> int:
    """Return how many features a file holds by its header; none if that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_slice("features").get_shape()[0]
    except DAMAGE:
        return 0


def _megabytes(files: list[tuple[Path, object]]) -> str:
    return f"{sum(stat.st_size for _, stat in files) / 1e6:,.2f}"
