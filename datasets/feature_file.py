"""Files of CLIP's features in place of images (DATASET.FEATURES): their form, which is read, checked and written here.

An .npz, a .safetensors, or a folder with a file NAME.npy for each array NAME:

    train_features, train_labels      all training images: floats (n, dim) of any length, and integers (n,) from 0
    train16_features, train16_labels  a draw of 16 a class; so for any number. There is train_* or one draw at least
    test_*, val_*                     val_* may be missing
    class_names, text_features        in label order: texts, "class 0", … if missing; (classes, dim), may be missing
    logit_scale, backbone             factor of the cosines, CLIP's 100 if missing; name of the CLIP, for the record

In .safetensors, class_names (a JSON list), logit_scale and backbone are metadata. Other arrays are not read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from dassl.utils import UserError, atomic_write, error_reason, file_digest

ARRAY_NAME = re.compile(r"(train\d*|val|test)_(?:features|labels)|class_names|text_features|logit_scale|backbone")
METADATA: dict[str, Callable[[str], Any]] = {"class_names": json.loads, "logit_scale": float, "backbone": str}
KINDS = {"f": "floats", "iu": "integers", "U": "texts", "fiu": "a number"}  # by the letters of NumPy's dtype.kind
LOGIT_SCALE = 100.0  # that of all of OpenAI's CLIPs, which learned it up to this limit


@dataclass(frozen=True)
class FeatureFile:
    """The checked content of a file or folder; ``splits`` has the features (n, dim), fp32, and labels (n,) by name."""

    path: Path
    sha256: str
    splits: dict[str, tuple[torch.Tensor, torch.Tensor]]
    classnames: list[str]
    text_features: torch.Tensor | None
    logit_scale: float
    backbone: str


def read_feature_file(name: str) -> FeatureFile:
    """Return the content of DATASET.FEATURES; it is read once while it does not change.

    Raises ``UserError`` if there is no such file, it is damaged, or an array is not of the form above.
    """
    path = Path(name).expanduser()
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    if not name or not files or not files[0].is_file():
        kinds = ".npz, .safetensors or folder of .npy"
        raise UserError(f'DATASET.FEATURES is "{name}"; there is no {kinds} there, seen from {Path.cwd()}')
    return _read(path, tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=2)  # files; one may have gigabytes
def _read(path: Path, stamps: tuple[tuple[Path, int, int], ...]) -> FeatureFile:
    """Return the content of the files in ``stamps``, of which ``path`` consists; times and sizes are for the cache."""
    arrays: dict[str, np.ndarray] = {}
    for file, *_ in stamps:
        arrays |= _read_arrays(file)
    digests = "".join(file_digest(file) for file, *_ in stamps)
    return check_arrays(path, arrays, digests if path.is_file() else hashlib.sha256(digests.encode()).hexdigest())


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file by name; nothing is unpickled."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no dict
                metadata = opened.metadata() or {}
            arrays = {key: (t.float() if t.is_floating_point() else t).numpy() for key, t in tensors.items()}
            return arrays | {key: np.array(parse(metadata[key])) for key, parse in METADATA.items() if key in metadata}
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {file.stem: content}
        with content:
            return {name: content[name] for name in filter(ARRAY_NAME.fullmatch, content.files)}
    except Exception as error:  # of NumPy, zipfile, zlib and safetensors, which have many classes for a damaged file
        problem = "it is damaged, or has an array of Python objects; class_names must be an array of str"
        raise UserError(f"cannot read {file} as a file of arrays: {problem} ({error_reason(error)})") from error


def check_arrays(path: Path, arrays: Mapping[str, Any], sha256: str = "") -> FeatureFile:
    """Return the ``arrays`` of the file ``path`` as a ``FeatureFile``; UserError if one is not of its form."""

    def get(name: str, kinds: str, *shape: int | str, default: Any = None) -> np.ndarray:
        """Return an array; UserError if it is not of these ``kinds`` and ``shape``, in which a text is any length."""
        array = np.asarray(arrays.get(name, default))
        lengths = [array.shape[i : i + 1] == (n,) or isinstance(n, str) for i, n in enumerate(shape)]
        if array.dtype.kind not in kinds or array.ndim != len(shape) or not array.size or not all(lengths):
            actual = f"{array.dtype} of the shape {array.shape}" if name in arrays else "missing"
            expected = f"{KINDS[kinds]} of the shape ({', '.join(map(str, shape))})"
            raise UserError(f"{path}, {name}: it is {actual}; it must be {expected}")
        return array

    def get_features(name: str, count: int | str = "n") -> torch.Tensor:
        """Return ``count`` features of the width of test_features; UserError if one has no direction."""
        features = torch.from_numpy(get(name, "f", count, dim).astype(np.float32))
        norms = features.norm(dim=1)
        if not ((norms > 0) & norms.isfinite()).all():
            raise UserError(f"{path}, {name}: each row must be finite, and not all zeros")
        return features

    dim = get("test_features", "f", "n", "dim").shape[1]
    names = {match[1] for match in map(ARRAY_NAME.fullmatch, arrays) if match and match[1]}
    features = {name: get_features(f"{name}_features") for name in sorted(names)}
    labels = {name: get(f"{name}_labels", "iu", len(rows)).astype(np.int64) for name, rows in features.items()}
    if not any(name.startswith("train") for name in names):
        raise UserError(f"{path} has no training features: train_features, or a draw such as train16_features")
    lowest, largest = min(each.min() for each in labels.values()), max(each.max() for each in labels.values())
    classnames = get("class_names", "U", "n", default=[f"class {i}" for i in range(largest + 1)]).tolist()
    if len({*classnames} - {""}) != len(classnames) or len(classnames) < 2:
        raise UserError(f"{path}, class_names: they must be two or more different texts, one a class")
    if lowest < 0 or largest >= len(classnames):
        raise UserError(
            f"{path}: labels go from {lowest} to {largest}; with {len(classnames)} class_names, they are 0, 1, 2, …"
        )
    text = get_features("text_features", len(classnames)) if "text_features" in arrays else None
    scale = get("logit_scale", "fiu", default=LOGIT_SCALE).item()
    if not 0 < scale < np.inf:
        raise UserError(f"{path}, logit_scale: it is {scale}; it must be above 0, the factor of the cosines")
    splits = {name: (features[name], torch.from_numpy(labels[name])) for name in features}
    return FeatureFile(path, sha256, splits, classnames, text, float(scale), str(arrays.get("backbone", "")))


def write_feature_file(path: Path, arrays: Mapping[str, Any]) -> FeatureFile:
    """Write ``arrays`` by name to ``path``, an .npz, once they are checked; return their content."""
    if path.suffix != ".npz":
        raise UserError(f"--output {path} must have the suffix .npz")
    file = check_arrays(path, arrays)
    with atomic_write(path, "wb") as opened:
        np.savez(opened, **arrays)
    return file
