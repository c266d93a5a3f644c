"""What a trainer sets on itself while it trains, such as averaged weights and counters: kept in its checkpoints.

A trainer's attributes are looked at as its first epoch begins, and again for each checkpoint. What has changed by then
is saved: numbers, strings, tensors, containers of them, and the state of objects with a ``state_dict`` or plain
attributes. What cannot be saved is saved by name, and a resume from there is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import types
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dassl.utils import UserError

if TYPE_CHECKING:
    from .trainer import TrainerBase

FRAMEWORK = frozenset(  # attributes that the engine sets: they are no state of a method
    (
        *("_models", "_optims", "_scheds", "_writer", "_epoch", "_splits", "own_state", "hooks", "scaler", "evaluator"),
        *("start_epoch", "max_epoch", "batch_idx", "num_batches", "batch_lr", "batch_share", "world_size", "seed"),
        *("losses", "batch_time", "data_time", "time_start", "saved_epoch", "best_result", "results", "provenance"),
        *("force_resume", "forced", "changed_now", "earlier_processes", "cfg", "dm", "device", "output_dir"),
        *("train_loader_x", "train_loader_u", "val_loader", "test_loader", "feature_source", "num_classes"),
        *("num_source_domains", "lab2cname"),
    )
)
KEY, LOST = "trainer", "trainer_lost"  # entries of a checkpoint
PLAIN = (bool, int, float, str, bytes, type(None))
SEQUENCES = (list, tuple, set, frozenset, deque)
# Objects that tell nothing of what was learned. A loader's draws follow from (SEED, epoch).
PASSING = (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.GeneratorType)
PASSING += (torch.device, torch.dtype, DataLoader, Dataset, torch.utils.data.dataloader._BaseDataLoaderIter)
OURS = ("dassl", "vlm", "torch", "yacs", "tqdm")  # packages whose objects have no plain attributes to keep
LARGE = 1 << 20  # elements of a tensor whose digest is a sum over its bits


class NotKept(Exception):
    """A value that a checkpoint cannot hold."""


class OwnState:
    """The state of one trainer."""

    def __init__(self):
        self._before: dict[str, str | None] = {}  # digests by name, as training began; None: it cannot be kept
        self._began = False
        self._loaded: dict[str, Any] = {}

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Take a checkpoint's entries, for :meth:`begin`.

        Raises:
            UserError: a value was lost with the process that saved it.
        """
        if lost := checkpoint.get(LOST):
            raise UserError(
                f"the run cannot go on from its checkpoints: its trainer kept {', '.join(lost)} on itself, which they "
                "cannot hold. Begin anew in another --output-dir"
            )
        self._loaded = dict(checkpoint.get(KEY, {}))

    def begin(self, trainer: TrainerBase) -> None:
        """As an epoch begins: the first time, remember what the trainer has, and give it back what it had."""
        if not self._began:
            self._began = True
            self._before = {name: _digest(value) for name, (value, _) in _attributes(trainer).items()}
            for name, value in self._loaded.items():
                _restore(trainer, name, value)
            self._loaded = {}

    def save(self, trainer: TrainerBase) -> dict[str, Any]:
        """Return the entries of a checkpoint."""
        if not self._began:
            return {}
        kept, lost = {}, []
        for name, (value, what) in _attributes(trainer).items():
            if name in self._before and self._before[name] == _digest(value):
                continue
            if value is None:
                lost.append(f"{name} ({what})")
            else:
                kept[name] = value
        return {**({KEY: kept} if kept else {}), **({LOST: lost} if lost else {})}


def _attributes(trainer: TrainerBase) -> dict[str, tuple[Any, str]]:
    """Return what can be saved of each attribute that is not the framework's (None: nothing), and its type."""
    live = _registered(trainer)
    result = {}
    for name, value in vars(trainer).items():
        if name in FRAMEWORK or _is_passing(value):
            continue
        try:
            saved = {"value": _saved(value, live)}
        except _Alias:
            continue
        except NotKept:
            saved = None
        result[name] = saved, type(value).__name__
    return result


class _Alias(Exception):
    """A value is a registered model's, whose own checkpoint has it."""


def _is_passing(value: Any) -> bool:
    frozen = getattr(getattr(type(value), "__dataclass_params__", None), "frozen", False)
    return frozen or isinstance(value, PASSING)


def _registered(trainer: TrainerBase) -> set[int]:
    """Return the ids of registered models, optimizers and schedules, and the addresses of the models' tensors."""
    parts = [*trainer._models.values(), *trainer._optims.values(), *trainer._scheds.values(), trainer.scaler]
    tensors = (t for model in trainer._models.values() for t in (*model.parameters(), *model.buffers()))
    return {id(trainer), *(id(part) for part in parts if part is not None), *map(_address, tensors)}


def _address(tensor: torch.Tensor) -> int:
    return -tensor.untyped_storage().data_ptr()  # negative, so that it is no id


def _saved(value: Any, live: set[int]) -> Any:
    """Return a value as a checkpoint holds it."""
    if isinstance(value, PLAIN):
        return value
    if id(value) in live:
        raise _Alias
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor):
        if _address(value) in live and value.numel():
            raise _Alias
        return value.detach()
    if isinstance(value, SEQUENCES):
        items = [_saved(item, live) for item in value]
        return items if isinstance(value, (list, deque)) else tuple(items)
    if isinstance(value, (dict, OrderedDict)) and type(value).__module__.split(".")[0] not in OURS:
        return {key: _saved(item, live) for key, item in value.items() if isinstance(key, PLAIN)}
    if isinstance(value, nn.Module):
        state = value.state_dict(keep_vars=True)
        return {"state_dict": {k: v.detach() for k, v in state.items() if _address(v) not in live}}
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        return {"state_dict": _saved(value.state_dict(), live)}
    if hasattr(value, "__dict__") and type(value).__module__.split(".")[0] not in OURS:
        return {"attributes": _saved_attributes(value, live | {id(value)})}
    raise NotKept


def _saved_attributes(value: Any, live: set[int]) -> dict[str, Any]:
    kept = {}
    for name, item in vars(value).items():
        if not _is_passing(item):
            with contextlib.suppress(_Alias, NotKept):
                kept[name] = _saved(item, live)
    return kept


def _digest(saved: Any) -> str | None:
    """Return a digest of what :func:`_saved` gave."""
    digest = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)} ".encode() + _bits(value))
        elif isinstance(value, dict):
            for key, item in value.items():
                digest.update(f"{key!r}: ".encode())
                add(item)
        elif isinstance(value, (list, tuple)):
            digest.update(f"{len(value)} ".encode())
            for item in value:
                add(item)
        else:
            digest.update(f"{value!r}, ".encode())

    if saved is None:
        return None
    add(saved)
    return digest.hexdigest()


def _bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().flatten()
    if flat.numel() > LARGE and flat.element_size() in (2, 4, 8):
        whole = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
        return str(whole.sum(dtype=torch.int64).item()).encode()
    return flat.cpu().view(torch.uint8).numpy().tobytes()


def _restore(trainer: TrainerBase, name: str, saved: dict[str, Any]) -> None:
    current, value = getattr(trainer, name, None), saved["value"]
    if isinstance(value, dict) and {*value} in ({"state_dict"}, {"attributes"}) and not isinstance(current, dict):
        if current is None:
            raise UserError(
                f"the run cannot go on from its checkpoints: its trainer had {name} on itself, which it makes while it "
                "trains. Begin anew in another --output-dir"
            )
        _load(current, value)
    else:
        setattr(trainer, name, _merged(current, value, trainer.device))


@torch.no_grad()
def _load(current: Any, value: dict[str, Any]) -> None:
    if isinstance(current, nn.Module):
        state = current.state_dict(keep_vars=True)
        for name, tensor in value["state_dict"].items():
            state[name].copy_(tensor)
    elif "state_dict" in value:
        current.load_state_dict(value["state_dict"])
    else:
        for name, item in value["attributes"].items():
            setattr(current, name, _merged(getattr(current, name, None), item, None))


@torch.no_grad()
def _merged(current: Any, value: Any, device: torch.device | None) -> Any:
    """Return a saved value for the current one: in its memory, container and on its device, where there is one."""
    if isinstance(value, torch.Tensor):
        if isinstance(current, torch.Tensor) and current.shape == value.shape and current.dtype == value.dtype:
            return current.copy_(value)
        like = current.device if isinstance(current, torch.Tensor) else device
        return value if like is None else value.to(like)
    if isinstance(value, dict):
        if isinstance(current, dict):
            new = {key: _merged(current.get(key), item, device) for key, item in value.items()}
            current.clear()
            current.update(new)
            return current
        if {*value} in ({"state_dict"}, {"attributes"}) and current is not None:
            _load(current, value)
            return current
        return {key: _merged(None, item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        old = list(current) if isinstance(current, SEQUENCES) else []
        old += [None] * (len(value) - len(old))
        new = [_merged(was, item, device) for was, item in zip(old, value, strict=False)]
        kind = type(current) if isinstance(current, SEQUENCES) and type(current) in SEQUENCES else type(value)
        return deque(new, current.maxlen) if kind is deque else kind(new)
    return value
