"""Files of CLIP's features in place of images (DATASET.FEATURES): their form, which is read, checked and written here.

An .npz, a .safetensors, or a folder of such files and of .npy files; a file of one array in a folder gives it its name:

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
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dassl.utils import UserError, atomic_write, error_reason, file_digest

SUFFIXES = (".npz", ".safetensors", ".npy")
ARRAY_NAME = re.compile(r"(train\d*|val|test)_(features|labels)|class_names|text_features|logit_scale|backbone")
METADATA: dict[str, Callable[[str], Any]] = {"class_names": json.loads, "logit_scale": float, "backbone": str}
# Exceptions of NumPy, zipfile and safetensors for damaged files; a header may name an array of any size.
READ_ERRORS = (OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, RuntimeError, BadZipFile, zlib.error)
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

    @property
    def pool(self) -> str:
        """The split that shots are drawn from: train, else the largest of the draws."""
        return max((name for name in self.splits if name[:5] == "train"), key=lambda name: float(name[5:] or "inf"))


def read_feature_file(name: str) -> FeatureFile:
    """Return the content of DATASET.FEATURES; it is read once while it does not change.

    Raises :class:`UserError` if there is no such file, it is damaged, or an array is not of the form above.
    """
    path = Path(name).expanduser()
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
    if not name or not files or not all(map(Path.is_file, files)):
        kinds = ".npz, .safetensors or folder of such files"
        raise UserError(f'DATASET.FEATURES is "{name}"; there is no {kinds} there, seen from {Path.cwd()}')
    stats = [(file, file.stat()) for file in files]
    return _read(path, tuple((file, stat.st_mtime_ns, stat.st_size) for file, stat in stats))


@lru_cache(maxsize=2)  # files; one may have gigabytes
def _read(path: Path, stamps: tuple[tuple[Path, int, int], ...]) -> FeatureFile:
    """Return the content of the files in ``stamps``, of which ``path`` consists; times and sizes are for the cache."""
    arrays: dict[str, Any] = {}
    for file, *_ in stamps:
        content = _read_arrays(file)
        arrays |= {file.stem: next(iter(content.values()))} if len(content) == 1 and path.is_dir() else content
    digests = "".join(file_digest(file) for file, *_ in stamps)
    sha256 = digests if path.is_file() else hashlib.sha256(digests.encode()).hexdigest()
    return check_arrays(path, arrays, sha256)


def _read_arrays(file: Path) -> dict[str, Any]:
    """Return the arrays of a file by name; nothing is unpickled."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no dict
                metadata = opened.metadata() or {}
            texts = {key: parse(metadata[key]) for key, parse in METADATA.items() if key in metadata}
            arrays = {key: (t.float() if t.is_floating_point() else t).numpy() for key, t in tensors.items()}
            return arrays | {key: np.array(text) for key, text in texts.items()}
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {file.stem: content}
        with content:
            return {name: content[name] for name in filter(ARRAY_NAME.fullmatch, content.files)}
    except (*READ_ERRORS, SafetensorError) as error:
        problem = f"{file} is damaged, or is no file of arrays: {error_reason(error)}"
        if "Object arrays" in str(error):  # of NumPy
            problem = f"{file} has an array of Python objects, which are not read; save class_names as an array of str"
        raise UserError(problem) from error


def check_arrays(path: Path, arrays: Mapping[str, Any], sha256: str = "") -> FeatureFile:
    """Return the ``arrays`` of the file ``path`` as a :class:`FeatureFile`; UserError if one is not of its form."""
    arrays = {name: np.asarray(array) for name, array in arrays.items() if ARRAY_NAME.fullmatch(name)}

    def require(condition: object, name: str, expected: str) -> None:
        """Raise :class:`UserError` with what the array ``name`` is and what is ``expected``, unless ``condition``."""
        if not condition:
            array = arrays.get(name)
            actual = "missing" if array is None else f"{array.dtype} of the shape {array.shape}"
            raise UserError(f"{path}, {name}: it is {actual}; it must be {expected}")

    splits = ["test", *(name.rpartition("_")[0] for name in arrays if name.endswith(("_features", "_labels")))]
    splits = [name for name in dict.fromkeys(splits) if name != "text"]
    require(any(name.startswith("train") for name in splits), "train_features", "there, or a draw: train16_features")
    features, labels = {}, {}
    for name in [*splits, *(["text"] if "text_features" in arrays else [])]:
        require((key := f"{name}_features") in arrays, key, "there, as each split has features and labels")
        array, width = arrays[key], arrays["test_features"].shape[1:]
        require(array.dtype.kind == "f" and array.ndim == 2 and array.size, key, "floats (n, dim), of any length")
        require(array.shape[1:] == width, key, f"as wide as test_features, {width}")
        features[name] = torch.from_numpy(array.astype(np.float32))
        norms = features[name].norm(dim=1)
        require(((norms > 0) & norms.isfinite()).all(), key, "of finite rows, none of them all zeros")
    for name in splits:
        array, count = arrays.get(key := f"{name}_labels", np.array(None)), len(features[name])
        require(array.dtype.kind in "iu" and array.shape == (count,), key, f"{count} integers, one for each feature")
        labels[name] = torch.from_numpy(array.astype(np.int64))
    lowest, largest = min(int(each.min()) for each in labels.values()), max(int(each.max()) for each in labels.values())
    names = arrays.get("class_names", np.array([f"class {label}" for label in range(largest + 1)]))
    is_list = names.dtype.kind == "U" and names.ndim == 1 and len({*names.tolist()} - {""}) == len(names) > 1
    require(is_list, "class_names", "two or more different texts, one a class")
    if lowest < 0 or largest >= len(names):
        raise UserError(f"{path}: labels go from {lowest} to {largest}; of {len(names)} classes, they are from 0 on")
    text, scale = features.get("text"), arrays.get("logit_scale", np.array(LOGIT_SCALE))
    require(text is None or len(text) == len(names), "text_features", f"a row for each of {len(names)} classes")
    is_factor = scale.dtype.kind in "fiu" and scale.size == 1 and 0 < scale < np.inf
    require(is_factor, "logit_scale", "a number above 0, the factor of the cosines")
    checked = {name: (features[name], labels[name]) for name in splits}
    backbone = str(arrays.get("backbone", ""))
    return FeatureFile(path, sha256, checked, names.tolist(), text, float(scale), backbone)


def write_feature_file(path: Path, arrays: Mapping[str, Any]) -> FeatureFile:
    """Write ``arrays`` by name to ``path``, .npz or .safetensors, once they are checked; return their content."""
    if path.suffix not in (suffixes := SUFFIXES[:2]):
        raise UserError(f"--output {path} has another suffix than {' and '.join(suffixes)}")
    file = check_arrays(path, arrays)
    tensors = {"text_features": file.text_features} if file.text_features is not None else {}
    for name, (features, labels) in file.splits.items():
        tensors |= {f"{name}_features": features, f"{name}_labels": labels}
    texts = {"class_names": file.classnames, "logit_scale": file.logit_scale, "backbone": file.backbone}
    with atomic_write(path, "wb") as opened:
        if path.suffix == ".npz":
            content: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()} | texts
            np.savez(opened, **content)
        else:
            metadata = {name: text if isinstance(text, str) else json.dumps(text) for name, text in texts.items()}
            opened.write(save(tensors, metadata))
    return file
