"""What is in the feature store (:mod:`vlm.images.feature_store`), whether it is sound, and removing it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from safetensors import safe_open
from tabulate import tabulate
from tqdm import tqdm

from dassl.utils import UserError

from .extractor import default_cache_dir  # noqa: F401  for tools/features.py
from .feature_store import DESCRIPTION_FILE, READ_ERRORS, list_encoder_folders, list_feature_files, read_shard

MAX_SHOWN = 12  # characters of names and checksums


def print_summary(root: Path) -> None:
    """Print a table, one row an encoder."""
    rows, everything = [], []
    for folder in list_encoder_folders(root):
        files = list_feature_files(folder)
        everything += files
        features, size = sum(_count_features(path) for path, _ in files), _format_megabytes(files)
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(files[-1][1].st_mtime)) if files else "-"
        rows.append([folder.name[:MAX_SHOWN], *_read_description(folder), len(files), features, size, used])
    head = ["encoder", "weights", "precision", "runtime", "files", "features", "MB", "last used"]
    print(tabulate(rows, head, disable_numparse=True, colalign=["left"] * 4 + ["right"] * 3 + ["left"]))
    total = f"{len(everything):,} files, {sum(row[5] for row in rows):,} features, {_format_megabytes(everything)} MB"
    print(f"total: {total} in {root}")


def verify_files(root: Path) -> int:
    """Read every file, so that damaged ones are removed; return the exit code."""
    files = [path for path, _ in list_feature_files(*list_encoder_folders(root))]
    bar = tqdm(files, disable=None, leave=False, unit="file")
    bad = [path for path in bar if read_shard(path, path.parent.name) is None]
    print(f"{len(files) - len(bad):,} files are sound; {len(bad):,} were damaged and removed")
    if stay := [str(path) for path in bad if path.exists()]:
        raise UserError(f"damaged files that cannot be removed: {', '.join(stay)}")
    return 1 if bad else 0


def remove_encoders(root: Path, prefixes: list[str]) -> None:
    """Remove the features of the encoders whose folders' names begin so, or of all of them.

    Raises:
        UserError: no encoder's name, or that of several, begins so; nothing has been removed.
    """
    folders, prefixes = list_encoder_folders(root), [prefix.lower() for prefix in prefixes]
    for prefix in prefixes:
        found = [folder.name for folder in folders if prefix and folder.name.startswith(prefix)]
        if len(found) != 1:
            what = "several encoders begin" if found else "no encoder begins"
            raise UserError(f'{what} with "{prefix}"; there are {", ".join(found or (f.name for f in folders))}')
    chosen = [folder for folder in folders if folder.name.startswith(tuple(prefixes) or "")]
    files = list_feature_files(*chosen)
    for folder in chosen:
        _remove_folder(folder)
    names = ", ".join(folder.name[:MAX_SHOWN] for folder in chosen)
    print(f"removed {len(files):,} files of {names}; {_format_megabytes(files)} MB are free")


def _remove_folder(folder: Path) -> None:
    """Remove what runs have written, and the folder if that was all."""
    try:
        # With a dot begin locks, and what a run that was killed has left of a file.
        for path in (*folder.glob("*.safetensors"), *folder.glob(".*"), folder / DESCRIPTION_FILE):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot remove {error.filename}: {error.strerror}") from error
    try:
        folder.rmdir()
    except OSError:
        print(f"Note: {folder} stays, as it holds something else")


def _read_description(folder: Path) -> list[str]:
    """Return weights, precision and runtime, as far as the folder tells them."""
    try:
        known = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        weights, *rest = (str(known.get(key, "?")) for key in ("weights", "precision", "runtime"))
        return [weights[:MAX_SHOWN], *rest]
    except (OSError, ValueError, AttributeError):
        return ["?", "?", "?"]


def _count_features(path: Path) -> int:
    """Return how many features a file holds by its header; none if that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_slice("features").get_shape()[0]
    except READ_ERRORS:
        return 0


def _format_megabytes(files: list[tuple[Path, object]]) -> str:
    return f"{sum(stat.st_size for _, stat in files) / 1e6:,.2f}"
