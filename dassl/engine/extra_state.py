"""Extra state: the attributes that a method sets on its trainer while it trains, such as averaged weights and counters.

A checkpoint holds the attributes that have changed since training began: numbers, strings, tensors, arrays, containers
of these, parameters and buffers of modules (those of a registered model are in the model's checkpoint), other objects
with a ``state_dict``, and objects whose attributes are of these kinds. It only names attributes that it cannot hold,
such as generators of random numbers, and a resume from it is refused.
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

EXTRA_STATE, UNSAVED_STATE = "trainer", "trainer_lost"  # checkpoint entries: attributes; names of unsaved ones
# Attributes that the engine sets; it saves those that a resume needs by itself.
ENGINE_ATTRIBUTES = {
    *("_models", "_optims", "_scheds", "_writer", "_epoch", "_seeded_epoch", "_splits", "_origin", "_hooks"),
    *("_world_size", "_losses", "_batch_time", "_data_time", "extra_state", "start_epoch", "max_epoch", "batch_idx"),
    *("num_batches", "current_lr", "local_loss_weight", "seed", "scaler", "time_start", "last_saved_epoch"),
    *("best_result", "results", "provenance", "force_resume", "forced", "resumed_with_changes", "earlier_world_sizes"),
    *("cfg", "dm", "device", "output_dir", "evaluator", "feature_extractor", "num_classes", "num_source_domains"),
    *("lab2cname", "train_loader_x", "train_loader_u", "val_loader", "test_loader", "_loggers"),
}
# Objects that hold nothing learned. The order in which a loader or sampler draws follows from (SEED, epoch).
STATELESS_TYPES = (
    *(types.ModuleType, torch.device, torch.dtype, DataLoader, Dataset, Sampler, PurePath, datetime.date, tqdm),
    *(datetime.timedelta, torch.distributions.Distribution, torch.autocast, logging.Logger, logging.Handler),
    *(re.Pattern, Datum, DatasetBase, AverageMeter, MetricMeter),
)
# Objects that change when they are used, in ways that we cannot see or save.
STATEFUL_TYPES = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator, Iterator)
CALLABLES = (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
# Not saved, except PLAIN_TYPES, SEQUENCE_TYPES, lists and dicts: attributes of the others do not show their content.
BUILTIN_TYPES = (list, tuple, set, frozenset, deque, dict, str, bytes, bytearray, int, float, IOBase, Enum)
PLAIN_TYPES = (bool, int, float, str, bytes, type(None))  # saved as they are
SEQUENCE_TYPES = {"tuple": tuple, "set": set, "deque": deque}  # saved as {kind: list}
OPAQUE_PACKAGES = ("vlm", "torch", "yacs")  # attributes of their objects are internal, and not saved one by one
AS_IS = {"as is": True}  # the saved form of an object that stays as the trainer built it
# Elements. A larger tensor is compared by the sums over its rows and columns, which is faster than hashing all bytes.
MAX_EXACT_ELEMENTS = 1 << 16
ROW_ELEMENTS = 4096  # so that a tensor of 16 million elements has about as many rows as columns


class Unsavable:
    """Stands, in a saved form (``to_state``), for ``value``, which no checkpoint can hold; ``kind`` names its type.

    The value counts as changed if its ``identity`` has; an object of STATEFUL_TYPES gets a new one each time.
    """

    def __init__(self, value: Any):
        self.kind = type(value).__name__
        self.identity: int | str | None = id(value)
        if isinstance(value, CALLABLES):
            self.identity = getattr(value, "__qualname__", None)
        elif isinstance(value, STATEFUL_TYPES) and not isinstance(value, IOBase):
            self.identity = f"change {next(change_counter)}"


change_counter = itertools.count()


class ExtraState:
    """Finds, saves and restores one trainer's extra state: the attributes that its method changes in training."""

    def __init__(self):
        self.frozen: list[nn.Module] = []  # modules that never change, so that they need no digests
        self._initial_digests: dict[str, Any] | None = None  # of the attributes as training began
        self._loaded: dict[str, Any] = {}  # saved attributes that are not restored yet
        self._is_resume = True  # whether they are from the run's checkpoint, not from an evaluated model's

    def begin(self, trainer) -> None:
        """On the first call, remember a digest of each attribute of ``trainer``; on every call, ``restore``.

        By the digests, ``state_dict`` finds what has changed. The loop calls this method before each epoch.
        """
        if self._initial_digests is None:
            self._initial_digests = {name: digest_state(value) for name, value in collect_attributes(trainer).items()}
        self.restore(trainer)

    def restore(self, trainer) -> None:
        """Set, only once, the attributes of ``trainer`` that ``load_state_dict`` took from a checkpoint.

        For a saved value that does not fit, a resume raises ``UserError``; an evaluation prints a note.
        """
        loaded, self._loaded = self._loaded, {}
        for name, value in loaded.items():
            is_empty = isinstance(value, dict) and value in (AS_IS, {"module": {}}, {"object": {}})
            if is_empty and not hasattr(trainer, name):
                continue  # the method creates it again
            try:
                setattr(trainer, name, from_state(getattr(trainer, name, None), value, trainer))
            except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
                message = f"the checkpoint's value of the trainer's {name} does not fit ({error_reason(error)})"
                if self._is_resume:
                    raise UserError(f"{message}. Start again in another --output-dir") from error
                print(f"Note: {message}")

    def state_dict(self, trainer) -> dict[str, Any]:
        """Return the attributes that have changed since ``begin`` (before it: {}), as entries of a checkpoint.

        EXTRA_STATE: saved forms by name; UNSAVED_STATE: names that cannot be saved. An empty entry is left out.
        """
        if (initial := self._initial_digests) is None:
            return {}
        state, unsaved = {}, []
        for name, value in collect_attributes(trainer).items():
            if digest_state(value) != initial.get(name):
                value = changed_items(value, initial.get(name))
                if kinds := sorted(find_unsavable(value)):
                    unsaved.append(f"{name} ({', '.join(kinds)})")
                else:
                    state[name] = value
        return {**({EXTRA_STATE: state} if state else {}), **({UNSAVED_STATE: unsaved} if unsaved else {})}

    def load_state_dict(self, checkpoint: Mapping[str, Any], resume: bool = True) -> None:
        """Take the entries of ``state_dict`` from a checkpoint; ``restore`` later sets the attributes.

        ``resume`` is False if the model is only evaluated; after ``begin``, nothing is then taken. Raises
        ``UserError`` if ``resume`` is True and the checkpoint names attributes that it could not hold.
        """
        if not resume and self._initial_digests is not None:
            return  # the best model is loaded after training: as in Dassl, attributes stay as training left them
        if resume and (unsaved := checkpoint.get(UNSAVED_STATE)):
            raise UserError(
                "the run cannot be resumed: its checkpoints cannot hold these attributes of its trainer: "
                f"{', '.join(unsaved)}. Start again in another --output-dir"
            )
        self._loaded, self._is_resume = dict(checkpoint.get(EXTRA_STATE, {})), resume


def collect_attributes(trainer) -> dict[str, Any]:
    """Return the saved form (``to_state``) of each attribute of ``trainer`` not in ENGINE_ATTRIBUTES, by name."""
    values, memo = {}, dict.fromkeys(registered_ids(trainer), AS_IS)
    for name, value in vars(trainer).items():
        if name not in ENGINE_ATTRIBUTES:
            try:
                values[name] = to_state(value, memo)
            except Exception:  # no attribute of a method may stop training
                values[name] = Unsavable(value)
    return values


def registered_ids(trainer) -> set[int]:
    """Return the ids of the trainer, its models, frozen modules, optimizers, schedules, and of the models' tensors.

    The id of a tensor is that of its memory (``storage_id``).
    """
    models = [*trainer._models.values(), *trainer.extra_state.frozen]
    objects = [trainer, *models, *trainer._optims.values(), *trainer._scheds.values()]
    tensors = (t for model in models for t in (*model.parameters(), *model.buffers()))
    return {*map(id, filter(None, objects)), *map(storage_id, tensors)}


def storage_id(tensor: torch.Tensor) -> int:
    """Return the negative address of the tensor's memory; if it is sparse or empty, ``id(tensor)``.

    Tensors that share memory have the same result, and no object's id is negative.
    """
    is_strided = tensor.layout == torch.strided and tensor.numel()
    return -tensor.untyped_storage().data_ptr() if is_strided else id(tensor)


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of ``module`` and its submodules, by dotted name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def to_state(value: Any, memo: dict[int, Any]) -> Any:
    """Return the saved form of ``value``: a plain value, a list, a tensor, ``{kind: content}``, or ``Unsavable``.

    A checkpoint holds this form; ``from_state`` turns it back. ``memo`` collects the saved forms of earlier objects
    by ``id``; it begins with those of ``registered_ids``, as AS_IS.
    """
    if type(value) in PLAIN_TYPES:
        return value
    if id(value) in memo or (isinstance(value, torch.Tensor) and storage_id(value) in memo):
        return memo.get(id(value), AS_IS)
    is_exhausted = isinstance(value, _BaseDataLoaderIter) and value._num_yielded >= len(value)
    if isinstance(value, STATELESS_TYPES) or is_exhausted:
        return AS_IS
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        tensor = value.detach().resolve_conj().resolve_neg()
        tensor = tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        return tensor if tensor.device.type == "cpu" else {"accelerator": tensor.cpu()}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf" and not np.ma.isMA(value):
        return {"array" if isinstance(value, np.ndarray) else "scalar": torch.from_numpy(np.array(value))}
    memo[id(value)] = AS_IS  # for a container that contains itself
    memo[id(value)] = result = container_to_state(value, memo)
    memo.setdefault(-1, []).append(value)  # keeps it alive, so that no other object gets its id
    return result


def container_to_state(value: Any, memo: dict[int, Any]) -> Any:
    """Return the saved form (``to_state``, also for ``memo``) of a container, a module or another object."""
    kind = next((kind for kind, sequence in SEQUENCE_TYPES.items() if type(value) is sequence), None)
    if type(value) is list:
        return [to_state(item, memo) for item in value]
    if kind or isinstance(value, torch.Size):
        return {kind or "tuple": [to_state(item, memo) for item in value]}
    is_transparent = type(value).__module__.split(".")[0] not in OPAQUE_PACKAGES
    if isinstance(value, dict) and is_transparent:
        return {"dict": [[to_state(key, memo), to_state(item, memo)] for key, item in value.items()]}
    if isinstance(value, (*CALLABLES, *STATEFUL_TYPES, *BUILTIN_TYPES)):
        return Unsavable(value)
    if isinstance(value, nn.Module):
        tensors = named_tensors(value).items()
        return {"module": {name: to_state(t, memo) for name, t in tensors if storage_id(t) not in memo}}
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        return {"state_dict": to_state(value.state_dict(), memo)}
    if hasattr(value, "__dict__") and is_transparent:
        return {"object": {name: to_state(item, memo) for name, item in vars(value).items()}}
    return Unsavable(value)


def find_unsavable(state: Any) -> set[str]:
    """Return the names of the types that ``Unsavable`` objects stand for in ``state``, from ``to_state``."""
    if isinstance(state, Unsavable):
        return {state.kind}
    items = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return set().union(*map(find_unsavable, items))


@torch.no_grad()
def from_state(current: Any, state: Any, trainer) -> Any:
    """Return the value whose saved form (``to_state``) is ``state``.

    ``current`` is the attribute's present value, or None. A module, an object or a trained tensor of the same shape is
    changed in place and returned. Raises ``ValueError`` if ``state`` is that of a module or an object, and ``current``
    is None.
    """
    if isinstance(state, torch.Tensor):
        # A trained tensor is changed in place, as the method's optimizer may hold it; registered memory is not changed.
        is_trained = isinstance(current, torch.Tensor) and current.is_leaf and current.requires_grad
        in_place = is_trained and storage_id(current) not in registered_ids(trainer)
        return current.copy_(state) if in_place and current.shape == state.shape else state.clone()
    if not isinstance(state, (list, dict)):
        return state
    wrapped: dict[str, Any] = {"list": state} if isinstance(state, list) else state
    kind, content = next(iter(wrapped.items()))
    if kind == "as is" and current is not None:
        return current
    if kind == "accelerator":
        return from_state(current, content.to(trainer.device), trainer)
    if kind in ("array", "scalar"):
        return content.numpy().copy() if kind == "array" else content.numpy()[()]
    if kind in ("list", *SEQUENCE_TYPES):
        olds = [*current] if isinstance(current, (list, tuple, deque)) else []
        items = [from_state(olds[i] if i < len(olds) else None, item, trainer) for i, item in enumerate(content)]
        sequence = SEQUENCE_TYPES.get(kind, list)
        return deque(items, getattr(current, "maxlen", None)) if sequence is deque else sequence(items)
    if kind == "dict":
        old = current if isinstance(current, dict) else {}
        keys = [from_state(None, key, trainer) for key, _ in content]
        new = copy.copy(old)  # to keep its type and default factory
        new.clear()
        new.update({k: from_state(old.get(k), item, trainer) for k, (_, item) in zip(keys, content, strict=True)})
        return new
    if current is None and content:
        raise ValueError(f"it is the state of a {kind} that only training creates")
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


def digest_state(state: Any) -> Any:
    """Return a digest of ``state``, a saved form (``to_state``), as hexadecimal text.

    For a module or an object, returns ``{kind: {name: digest}}`` with nested digests.
    """
    if isinstance(state, dict) and {*state} <= {"module", "object"}:
        return {kind: {name: digest_state(item) for name, item in items.items()} for kind, items in state.items()}
    result = hashlib.blake2b(digest_size=16)

    def add(item: Any) -> None:
        """Add ``item``, ``state`` or a part of it, to the digest, with all that it contains."""
        if isinstance(item, torch.Tensor):
            result.update(f"{item.dtype} {tuple(item.shape)} ".encode() + tensor_bytes(item))
        elif isinstance(item, list) and all(type(element) in PLAIN_TYPES for element in item):
            result.update(f"{item!r} ".encode())
        elif isinstance(item, (dict, list)):
            result.update(f"{len(item)} {list(item) if isinstance(item, dict) else ''} ".encode())
            for element in item.values() if isinstance(item, dict) else item:
                add(element)
        else:
            result.update(f"{item.identity if isinstance(item, Unsavable) else item!r}, ".encode())

    add(state)
    return result.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return bytes by which to notice a change of a CPU tensor: all bytes; above MAX_EXACT_ELEMENTS, those of sums.

    The sums are over the rows and columns of the tensor, flattened and cut into rows of ROW_ELEMENTS.
    """
    flat = tensor.detach().contiguous().flatten()
    if flat.numel() <= MAX_EXACT_ELEMENTS or flat.element_size() not in (2, 4, 8):
        return flat.view(torch.uint8).numpy().tobytes()
    integers = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    end = len(integers) // ROW_ELEMENTS * ROW_ELEMENTS
    rows, remainder = integers[:end].view(-1, ROW_ELEMENTS), integers[end:]
    sums = torch.cat([rows.sum(0, dtype=torch.int64), rows.sum(1, dtype=torch.int64), remainder.long()])
    return sums.numpy().tobytes()


def changed_items(state: Any, initial: Any) -> Any:
    """Return the saved form ``state``; for a module or an object, only the items that have changed.

    ``initial`` is the digest (``digest_state``) of the value as training began, or None if there was none.
    """
    if not isinstance(state, dict) or not isinstance(initial, dict) or initial.keys() != state.keys():
        return state
    ((kind, items),) = state.items()
    digests = initial[kind]
    return {
        kind: {
            name: changed_items(item, digests.get(name))
            for name, item in items.items()
            if digest_state(item) != digests.get(name)
        }
    }
