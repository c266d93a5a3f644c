"""What a method sets on its trainer while it trains, such as averaged weights and counters: kept in its checkpoints.

The trainer's attributes are looked at as training begins, and again for each checkpoint, which holds what has changed
by then: numbers, strings, tensors, arrays, containers of these, parameters and buffers of modules (less what belongs to
a registered model, whose own checkpoint has it), other objects with a ``state_dict``, and objects whose attributes are
of these kinds. A checkpoint names what it cannot hold, such as generators of random numbers, and a resume from it is
refused.
"""

from __future__ import annotations

import copy
import datetime
import hashlib
import itertools
import logging
import random
import re
import types
from collections import deque
from collections.abc import Iterator, Mapping
from enum import Enum
from io import IOBase
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter
from tqdm import tqdm

from dassl.data.datasets import DatasetBase, Datum
from dassl.utils import AverageMeter, MetricMeter, UserError, error_reason

EXTRA_STATE, UNSAVED_STATE = "trainer", "trainer_lost"  # entries of a checkpoint
ENGINE_ATTRIBUTES = frozenset(  # attributes that the engine sets
    (
        *("_models", "_optims", "_scheds", "_writer", "_epoch", "_seeded_epoch", "_splits", "_origin", "_hooks"),
        *("_world_size", "_losses", "_batch_time", "_data_time", "extra_state", "start_epoch", "max_epoch"),
        *("batch_idx", "num_batches", "current_lr", "loss_weight", "seed", "scaler", "time_start", "last_saved_epoch"),
        *(
            "best_result",
            "results",
            "provenance",
            "force_resume",
            "forced",
            "resumed_with_changes",
            "earlier_world_sizes",
        ),
        *("cfg", "dm", "device", "output_dir", "evaluator", "feature_extractor", "num_classes", "num_source_domains"),
        *("lab2cname", "train_loader_x", "train_loader_u", "val_loader", "test_loader"),
    )
)
# Objects that hold nothing of what was learned; the draws of a loader follow from (SEED, epoch).
STATELESS_TYPES = (
    types.ModuleType,
    torch.device,
    torch.dtype,
    DataLoader,
    Dataset,
    Sampler,
    PurePath,
    datetime.date,
    tqdm,
)
STATELESS_TYPES += (
    datetime.timedelta,
    torch.distributions.Distribution,
    torch.autocast,
    logging.Logger,
    logging.Handler,
)
STATELESS_TYPES += (re.Pattern, Datum, DatasetBase, AverageMeter, MetricMeter)
MUTABLE_TYPES = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator, Iterator)
CALLABLES = (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
BUILTIN_TYPES = (list, tuple, set, frozenset, deque, dict, str, bytes, bytearray, int, float, IOBase, Enum)
PLAIN_TYPES = (bool, int, float, str, bytes, type(None))
SEQUENCE_TYPES = {"tuple": tuple, "set": set, "deque": deque}
OPAQUE_PACKAGES = ("vlm", "torch", "yacs")  # whose objects are not looked into
AS_IS = {"as is": True}  # of what a checkpoint need not hold
MAX_EXACT_ELEMENTS, ROW_ELEMENTS = 1 << 16, 4096  # elements: of a tensor that is compared by sums, and of its rows


class Unsavable:
    """Stands for a value that a checkpoint cannot hold. It has changed if it is another object, or a CHANGING one."""

    def __init__(self, value: Any):
        self.kind, self.identity = type(value).__name__, id(value)
        if isinstance(value, CALLABLES):
            self.identity = getattr(value, "__qualname__", None)
        elif isinstance(value, MUTABLE_TYPES) and not isinstance(value, IOBase):
            self.identity = f"change {next(change_counter)}"


change_counter = itertools.count()


class ExtraState:
    """The state of one trainer beside its registered models."""

    def __init__(self):
        self.frozen: list[nn.Module] = []  # modules that never change, which need not be looked at
        self._before: dict[str, Any] | None = None  # digests of the attributes as training began
        self._loaded: dict[str, Any] = {}
        self._resumes = True

    def begin(self, trainer) -> None:
        """Remember the attributes, the first time; in a resumed run, put those of the checkpoint in their place."""
        if self._before is None:
            self._before = {name: digest_state(value) for name, value in collect_attributes(trainer).items()}
        self.restore(trainer)

    def restore(self, trainer) -> None:
        """Put what was loaded in place of the attributes, once.

        Raises:
            UserError: a resumed run has an attribute that does not take what the checkpoint holds; it is named.
        """
        loaded, self._loaded = self._loaded, {}
        for name, value in loaded.items():
            if (
                not hasattr(trainer, name)
                and isinstance(value, dict)
                and value in (AS_IS, {"module": {}}, {"object": {}})
            ):
                continue  # it holds nothing, and is made anew
            try:
                setattr(trainer, name, from_state(getattr(trainer, name, None), value, trainer))
            except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
                message = f"what the run's trainer kept as {name} cannot be put back ({error_reason(error)})"
                if self._resumes:
                    raise UserError(f"{message}. Begin anew in another --output-dir") from error
                print(f"Note: {message}")

    def state_dict(self, trainer) -> dict[str, Any]:
        """Return the entries of a checkpoint."""
        kept, lost = {}, []
        for name, value in collect_attributes(trainer).items() if self._before is not None else ():
            if digest_state(value) != self._before.get(name):
                value = changed_parts(value, self._before.get(name))
                if kinds := sorted(find_unsavable(value)):
                    lost.append(f"{name} ({', '.join(kinds)})")
                else:
                    kept[name] = value
        return {**({EXTRA_STATE: kept} if kept else {}), **({UNSAVED_STATE: lost} if lost else {})}

    def load_state_dict(self, checkpoint: Mapping[str, Any], resume: bool = True) -> None:
        """Take the entries of a checkpoint, for :meth:`restore`: to ``resume``, or to evaluate without training.

        Raises:
            UserError: for a ``resume``, there are values that it could not hold; it names them.
        """
        if not resume and self._before is not None:
            return  # the best model is loaded after training: as in Dassl, the trainer stays as it is
        if resume and (lost := checkpoint.get(UNSAVED_STATE)):
            raise UserError(
                f"the run cannot go on from its checkpoints: its trainer kept {', '.join(lost)} on itself, which they "
                "cannot hold. Begin anew in another --output-dir"
            )
        self._loaded, self._resumes = dict(checkpoint.get(EXTRA_STATE, {})), resume


def collect_attributes(trainer) -> dict[str, Any]:
    """Return what a checkpoint would hold of each attribute that a method may have set."""
    values, memo = {}, dict.fromkeys(registered_ids(trainer), AS_IS)
    for name, value in vars(trainer).items():
        if name not in ENGINE_ATTRIBUTES:
            try:
                values[name] = to_state(value, memo)
            except Exception:  # whatever a method keeps, it does not stop training
                values[name] = Unsavable(value)
    return values


def registered_ids(trainer) -> set[int]:
    """Return the ids of what is registered or frozen, and the addresses of its tensors."""
    models = [*trainer._models.values(), *trainer.extra_state.frozen]
    parts = [trainer, *models, *trainer._optims.values(), *trainer._scheds.values()]
    tensors = (t for model in models for t in (*model.parameters(), *model.buffers()))
    return {*map(id, filter(None, parts)), *map(storage_id, tensors)}


def storage_id(tensor: torch.Tensor) -> int:
    strided = tensor.layout == torch.strided and tensor.numel()
    return -tensor.untyped_storage().data_ptr() if strided else id(tensor)  # negative: an id of an object is not


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def to_state(value: Any, memo: dict[int, Any]) -> Any:
    """Return a value as a checkpoint holds it: plain, a list, a tensor, or ``{kind: content}``.

    Args:
        memo: what was returned for objects, by id; for registered tensors, by address.
    """
    if type(value) in PLAIN_TYPES:
        return value
    if id(value) in memo or (isinstance(value, torch.Tensor) and storage_id(value) in memo):
        return memo.get(id(value), AS_IS)
    if isinstance(value, STATELESS_TYPES) or (
        isinstance(value, _BaseDataLoaderIter) and value._num_yielded >= len(value)
    ):
        return AS_IS
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        tensor = value.detach().resolve_conj().resolve_neg()
        tensor = tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        return tensor if tensor.device.type == "cpu" else {"accelerator": tensor.cpu()}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf" and not np.ma.isMA(value):
        return {"array" if isinstance(value, np.ndarray) else "scalar": torch.from_numpy(np.array(value))}
    memo[id(value)] = AS_IS  # within itself
    memo[id(value)] = result = container_to_state(value, memo)
    memo.setdefault(-1, []).append(value)  # alive, so that no other object has its id
    return result


def container_to_state(value: Any, memo: dict[int, Any]) -> Any:
    kind = next((kind for kind, sequence in SEQUENCE_TYPES.items() if type(value) is sequence), None)
    if type(value) is list:
        return [to_state(item, memo) for item in value]
    if kind or isinstance(value, torch.Size):
        return {kind or "tuple": [to_state(item, memo) for item in value]}
    is_foreign = type(value).__module__.split(".")[0] not in OPAQUE_PACKAGES
    if isinstance(value, dict) and is_foreign:
        return {"dict": [[to_state(key, memo), to_state(item, memo)] for key, item in value.items()]}
    if isinstance(value, (*CALLABLES, *MUTABLE_TYPES, *BUILTIN_TYPES)):
        return Unsavable(value)
    if isinstance(value, nn.Module):
        return {
            "module": {name: to_state(t, memo) for name, t in named_tensors(value).items() if storage_id(t) not in memo}
        }
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        return {"state_dict": to_state(value.state_dict(), memo)}
    if hasattr(value, "__dict__") and is_foreign:
        return {"object": {name: to_state(item, memo) for name, item in vars(value).items()}}
    return Unsavable(value)


def find_unsavable(value: Any) -> set[str]:
    """Return the types of what a checkpoint cannot hold of a value."""
    if isinstance(value, Unsavable):
        return {value.kind}
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(find_unsavable, parts))


@torch.no_grad()
def from_state(current: Any, value: Any, trainer) -> Any:
    """Return a saved value for the ``current`` one, of its type; a module or an object takes it in."""
    if isinstance(value, torch.Tensor):
        # An optimizer of the method's own may have the parameter; whatever else has the memory keeps it.
        leaf = isinstance(current, torch.Tensor) and current.is_leaf and current.requires_grad
        own = leaf and storage_id(current) not in registered_ids(trainer)
        return current.copy_(value) if own and current.shape == value.shape else value.clone()
    if not isinstance(value, (list, dict)):
        return value
    kind, content = next(iter(value.items())) if isinstance(value, dict) else ("list", value)
    if kind == "as is" and current is not None:
        return current
    if kind == "accelerator":
        return from_state(current, content.to(trainer.device), trainer)
    if kind in ("array", "scalar"):
        return content.numpy().copy() if kind == "array" else content.numpy()[()]
    if kind in ("list", *SEQUENCE_TYPES):
        olds = [*current] if isinstance(current, (list, tuple, deque)) else []
        items = [from_state(olds[i] if i < len(olds) else None, item, trainer) for i, item in enumerate(content)]
        return (
            deque(items, getattr(current, "maxlen", None)) if kind == "deque" else SEQUENCE_TYPES.get(kind, list)(items)
        )
    if kind == "dict":
        keys = [from_state(None, key, trainer) for key, _ in content]
        olds = current if isinstance(current, dict) else {}
        items = {k: from_state(olds.get(k), item, trainer) for k, (_, item) in zip(keys, content, strict=True)}
        new = copy.copy(olds)  # of its type, with its default factory
        new.clear()
        new.update(items)
        return new
    if current is None and content:
        raise ValueError(f"it is the state of a {kind} that is made in training")
    if kind == "module":
        tensors = named_tensors(current) if content else {}
        for name, tensor in content.items():
            tensors[name].copy_(from_state(None, tensor, trainer))
    elif kind == "state_dict":
        current.load_state_dict(from_state(current.state_dict(), content, trainer))
    else:
        for name, item in content.items():
            object.__setattr__(current, name, from_state(getattr(current, name, None), item, trainer))
    return current


def digest_state(value: Any) -> Any:
    """Return a digest of what :func:`to_state` gave; of a module or an object, one of each part."""
    if isinstance(value, dict) and {*value} <= {"module", "object"}:
        return {kind: {name: digest_state(item) for name, item in parts.items()} for kind, parts in value.items()}
    result = hashlib.blake2b(digest_size=16)

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            result.update(f"{part.dtype} {tuple(part.shape)} ".encode() + tensor_bytes(part))
        elif isinstance(part, list) and all(type(item) in PLAIN_TYPES for item in part):
            result.update(f"{part!r} ".encode())
        elif isinstance(part, (dict, list)):
            result.update(f"{len(part)} {list(part) if isinstance(part, dict) else ''} ".encode())
            for item in part.values() if isinstance(part, dict) else part:
                add(item)
        else:
            result.update(f"{part.identity if isinstance(part, Unsavable) else part!r}, ".encode())

    add(value)
    return result.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor; of a large one, of the sums over its rows and columns of ROW elements."""
    flat = tensor.detach().contiguous().flatten()
    if flat.numel() <= MAX_EXACT_ELEMENTS or flat.element_size() not in (2, 4, 8):
        return flat.view(torch.uint8).numpy().tobytes()
    whole = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    table, rest = (
        whole[: len(whole) // ROW_ELEMENTS * ROW_ELEMENTS].view(-1, ROW_ELEMENTS),
        whole[len(whole) // ROW_ELEMENTS * ROW_ELEMENTS :],
    )
    sums = torch.cat([table.sum(0, dtype=torch.int64), table.sum(1, dtype=torch.int64), rest.long()])
    return sums.numpy().tobytes()


def changed_parts(value: Any, before: Any) -> Any:
    """Return a value; of a module or an object, the parts that are not as they were ``before`` (their digests)."""
    if not isinstance(value, dict) or not isinstance(before, dict) or before.keys() != value.keys():
        return value
    ((kind, parts),) = value.items()
    return {
        kind: {
            name: changed_parts(item, before[kind].get(name))
            for name, item in parts.items()
            if digest_state(item) != before[kind].get(name)
        }
    }
