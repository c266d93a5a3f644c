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
from collections.abc import Mapping
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
TEXT_ARRAYS = ("class_names", "logit_scale", "backbone")  # in .safetensors, metadata
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
    name, arrays = "", {}
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no dict
            arrays = {key: (t.float() if t.is_floating_point() else t).numpy() for key, t in tensors.items()}
            arrays |= {key: np.array(metadata[key]) for key in TEXT_ARRAYS if key in metadata}
            if "class_names" in metadata:
                arrays["class_names"] = np.array([str(text) for text in json.loads(metadata["class_names"])])
        else:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return {file.stem: content}
            with content:
                for name in filter(ARRAY_NAME.fullmatch, content.files):
                    arrays[name] = content[name]
    except (OSError, ValueError, TypeError, KeyError, EOFError, MemoryError) as error:
        if "Object arrays" in str(error):
            hint = "save texts as np.array(names, dtype=str), numbers as floats or integers"
            problem = f"{file}, {name or file.stem}: Python objects are not read, as they may run code"
            raise UserError(f"{problem}; {hint}") from error
        raise UserError(f"{file} is damaged, or is no file of arrays: {error_reason(error)}") from error
    except (BadZipFile, zlib.error, SafetensorError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{file} is damaged, or is no file of arrays: {error_reason(error)}") from error
    return arrays


def check_arrays(path: Path, arrays: Mapping[str, Any], sha256: str = "") -> FeatureFile:
    """Return the ``arrays`` of the file ``path`` as a :class:`FeatureFile`; UserError if one is not of its form."""
    arrays = {name: np.asarray(array) for name, array in arrays.items() if ARRAY_NAME.fullmatch(name)}
    names = dict.fromkeys(name.rpartition("_")[0] for name in arrays if name.endswith(("_features", "_labels")))
    splits = [name for name in names if name != "text"]
    for name in ("test", *splits):
        if missing := [f"{name}_{kind}" for kind in ("features", "labels") if f"{name}_{kind}" not in arrays]:
            raise UserError(f"{path} has no {' and no '.join(missing)}; it has {', '.join(sorted(arrays))}")
    if not any(name.startswith("train") for name in splits):
        raise UserError(f"{path} has no training features: train_* of all images, or a draw such as train16_*")
    dim = arrays["test_features"].shape[-1:]
    features = {name: _to_features(f"{path}, {name}_features", arrays[f"{name}_features"], dim) for name in names}
    number = len(arrays.get("class_names", features.get("text", ()))) or None
    checked = {}
    for name in splits:
        where, labels = f"{path}, {name}_labels", arrays[f"{name}_labels"]
        if labels.dtype.kind not in "iu" or labels.shape != (count := len(features[name]),):
            raise UserError(f"{where}: {_describe(labels)}; it must be {count:,} integers, those of {name}_features")
        if (low := int(labels.min())) < 0 or (number and int(labels.max()) >= number):
            allowed = f"from 0 to {number - 1}, as there are {number} classes" if number else "from 0 on"
            raise UserError(f"{where}: its labels go from {low} to {labels.max()}; they must go {allowed}")
        checked[name] = features[name], torch.from_numpy(labels.astype(np.int64))
    number = number or 1 + max(int(labels.max()) for _, labels in checked.values())
    classnames = _to_texts(path, arrays.get("class_names", np.array([f"class {label}" for label in range(number)])))
    if "text" in features and len(features["text"]) != number:
        rows = len(features["text"])
        raise UserError(f"{path}, text_features: {rows} rows; it must have one for each of {number} classes")
    try:
        scale = float(arrays.get("logit_scale", LOGIT_SCALE))
    except (ValueError, TypeError):
        scale = 0.0
    if not 0 < scale < float("inf"):
        raise UserError(f"{path}, logit_scale: it must be a number above 0, the factor of the cosines such as 100")
    text, backbone = features.get("text"), str(arrays.get("backbone", ""))
    return FeatureFile(path, sha256, checked, classnames, text, scale, backbone)


def _describe(array: np.ndarray) -> str:
    """Return the type and the shape of ``array`` for a message."""
    return f"{array.dtype} of the shape {array.shape}"


def _to_features(where: str, array: np.ndarray, dim: tuple[int, ...]) -> torch.Tensor:
    """Return features as fp32 (n, dim); UserError if they are not finite, or have another shape or type."""
    if array.dtype.kind != "f" or array.ndim != 2 or not array.size or array.shape[1:] != dim:
        expected = f"floats of the shape (n, {dim[0] if dim else 'dim'}), with the width of test_features"
        raise UserError(f"{where}: {_describe(array)}; it must be {expected}")
    features = torch.from_numpy(array.astype(np.float32))
    if not (is_usable := (norms := features.norm(dim=1)).isfinite() & (norms > 0)).all():
        row = int((~is_usable).nonzero()[0])
        raise UserError(f"{where}: row {row} is infinite, NaN or all zeros; each row must be a feature")
    return features


def _to_texts(path: Path, array: np.ndarray) -> list[str]:
    """Return class names; UserError if they are fewer than two, no texts, empty or not all different."""
    names = [str(name) for name in array.ravel()]
    if array.dtype.kind != "U" or array.ndim != 1 or len({*names} - {""}) != len(names) or len(names) < 2:
        raise UserError(f"{path}, class_names: {_describe(array)}; it must be two or more different texts")
    return names


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
