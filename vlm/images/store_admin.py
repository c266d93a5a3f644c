"""Administration of the feature cache (``vlm.images.feature_store``): list, verify and remove its files."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from safetensors import safe_open
from tabulate import tabulate
from tqdm import tqdm

from dassl.utils import UserError

from .extractor import default_cache_dir  # noqa: F401  for tools/features.py
from .feature_store import DESCRIPTION_FILE, READ_ERRORS, list_encoder_folders, list_shards, read_shard

# Characters of a digest in the table: enough to tell encoders apart, few enough for a terminal's width.
PREFIX_CHARACTERS = 12


def print_summary(root: Path) -> None:
    """Print a table of the feature cache ``root``, with a row for each encoder, and the total."""
    rows: list[list] = []
    all_files = []
    for folder in list_encoder_folders(root):
        files = list_shards(folder)
        all_files += files
        features, size = sum(_count_features(path) for path, _ in files), _format_megabytes(files)
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(files[-1][1].st_mtime)) if files else "-"
        rows.append([folder.name[:PREFIX_CHARACTERS], *_read_description(folder), len(files), features, size, used])
    head = ["encoder", "weights", "precision", "runtime", "files", "features", "MB", "last used"]
    print(tabulate(rows, head, disable_numparse=True, colalign=["left"] * 4 + ["right"] * 3 + ["left"]))
    total = f"{len(all_files):,} files, {sum(row[5] for row in rows):,} features, {_format_megabytes(all_files)} MB"
    print(f"total: {total} in {root}")


def verify_files(root: Path) -> int:
    """Verify cache ``root`` and remove damaged files; return 1 if there were any, else 0. UserError if one remains."""
    files = [path for path, _ in list_shards(*list_encoder_folders(root))]
    bar = tqdm(files, disable=None, leave=False, unit="file")
    damaged = [path for path in bar if read_shard(path, path.parent.name) is None]
    print(f"{len(files) - len(damaged):,} files are sound; {len(damaged):,} were damaged and removed")
    if remaining := [str(path) for path in damaged if path.exists()]:
        raise UserError(f"damaged files that cannot be removed: {', '.join(remaining)}")
    return 1 if damaged else 0


def remove_encoders(root: Path, prefixes: list[str]) -> None:
    """Remove the features of the encoders whose folder names begin with one of ``prefixes``; without prefixes, of all.

    Raises:
        UserError: no folder name or several begin with a prefix (nothing is removed), or a file cannot be removed.
    """
    folders, prefixes = list_encoder_folders(root), [prefix.lower() for prefix in prefixes]
    for prefix in prefixes:
        matches = [folder.name for folder in folders if prefix and folder.name.startswith(prefix)]
        if len(matches) != 1:
            problem = "several encoders begin" if matches else "no encoder begins"
            raise UserError(f'{problem} with "{prefix}"; there are {", ".join(matches or (f.name for f in folders))}')
    selected = [folder for folder in folders if folder.name.startswith(tuple(prefixes) or "")]
    files = list_shards(*selected)
    for folder in selected:
        _remove_folder(folder)
    names = ", ".join(folder.name[:PREFIX_CHARACTERS] for folder in selected)
    print(f"removed {len(files):,} files of {names}; {_format_megabytes(files)} MB are free")


def _remove_folder(folder: Path) -> None:
    """Remove the shards, locks and description in an encoder's folder, then the folder itself if nothing is left."""
    try:
        # Names of locks and of a killed run's temporary files begin with a dot.
        for path in (*folder.glob("*.safetensors"), *folder.glob(".*"), folder / DESCRIPTION_FILE):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot remove {error.filename}: {error.strerror}") from error
    try:
        folder.rmdir()
    except OSError:
        print(f"Note: {folder} stays, as it holds other files")


def _read_description(folder: Path) -> list[str]:
    """Return weights, precision and runtime of an encoder's folder for the table; "?" for each that is unknown."""
    try:
        description = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        weights, precision, runtime = (str(description.get(key, "?")) for key in ("weights", "precision", "runtime"))
        return [weights[:PREFIX_CHARACTERS], precision, runtime]
    except (OSError, ValueError, AttributeError):
        return ["?", "?", "?"]


def _count_features(path: Path) -> int:
    """Return the number of features in a file according to its header, or 0 if the header cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_slice("features").get_shape()[0]
    except READ_ERRORS:
        return 0


def _format_megabytes(files: list[tuple[Path, os.stat_result]]) -> str:
    """Return the total size of files, listed with their stat results, in MB with two decimals."""
    return f"{sum(stat.st_size for _, stat in files) / 1e6:,.2f}"
