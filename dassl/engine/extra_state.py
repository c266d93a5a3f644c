"""What a method sets on its trainer while it trains, such as averaged weights and counters: kept in its checkpoints.

The trainer's attributes are looked at as training begins, and again for each checkpoint, which holds what has
changed by then: numbers, strings, tensors, containers of these, objects with a ``state_dict`` (less what belongs to a
registered model, whose own checkpoint has it), and objects whose attributes are of these kinds. A checkpoint names what
it cannot hold, and a resume from it is refused.
"""

from __future__ import annotations

import hashlib
import types
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from dassl.utils import UserError

if TYPE_CHECKING:
    from .trainer import TrainerBase

STATE, LOST = "trainer", "trainer_lost"  # entries of a checkpoint
ENGINE = frozenset(  # attributes that the engine sets
    (
        *("_models", "_optims", "_scheds", "_writer", "_epoch", "_splits", "extra_state", "hooks", "scaler", "cfg"),
        *("start_epoch", "max_epoch", "batch_idx", "num_batches", "batch_lr", "batch_share", "world_size", "seed"),
        *("losses", "batch_time", "data_time", "time_start", "saved_epoch", "best_result", "results", "provenance"),
        *("force_resume", "forced", "changed_now", "earlier_processes", "dm", "device", "output_dir", "evaluator"),
        *("train_loader_x", "train_loader_u", "val_loader", "test_loader", "feature_source", "num_classes"),
        *("num_source_domains", "lab2cname"),
    )
)
# Types that hold nothing of what was learned; the draws of a loader follow from (SEED, epoch).
STATELESS = (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType, torch.device)
STATELESS += (torch.dtype, DataLoader, Dataset, _BaseDataLoaderIter)
PACKAGES = ("dassl", "vlm", "torch", "yacs", "tqdm")  # whose objects are not looked into
KEYS = (bool, int, float, str, tuple, type(None))  # of dicts
PARTS = ({"state_dict"}, {"attributes"})  # the keys of what is saved of an object
LARGE = 1 << 20  # elements of a tensor that is compared by a sum over its bits, not by all of them


class NotSaved(Exception):
    """A checkpoint cannot hold a value."""


class Registered(Exception):
    """A value belongs to a registered model, whose own checkpoint holds it."""


class ExtraState:
    """The state of one trainer beside its registered models."""

    def __init__(self):
        self._initial: dict[str, str] | None = None  # digests of the attributes as training began
        self._loaded: dict[str, Any] = {}

    def begin(self, trainer: TrainerBase) -> None:
        """As training begins, remember the attributes; in a resumed run, put those of the checkpoint in their place.

        The engine's loop calls it after ``before_train``, and each loop as it sets the first epoch.
        """
        if self._initial is None:
            self._initial = {name: digest(value) for name, value in attributes(trainer).items()}
            for name, value in self._loaded.items():
                setattr(trainer, name, restored(getattr(trainer, name, None), value, trainer.device))

    def state_dict(self, trainer: TrainerBase) -> dict[str, Any]:
        """Return the entries of a checkpoint."""
        found = attributes(trainer) if self._initial is not None else {}
        changed = {name: value for name, value in found.items() if digest(value) != self._initial.get(name)}
        lost = [f"{name} ({type(getattr(trainer, name)).__name__})" for name, v in changed.items() if v is NotSaved]
        kept = {name: value for name, value in changed.items() if value is not NotSaved}
        return {**({STATE: kept} if kept else {}), **({LOST: lost} if lost else {})}

    def load_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the entries of a checkpoint, for :meth:`begin`.

        Raises:
            UserError: it names values that it could not hold.
        """
        if lost := checkpoint.get(LOST):
            raise UserError(
                f"the run cannot go on from its checkpoints: its trainer kept {', '.join(lost)} on itself, which they "
                "cannot hold. Begin anew in another --output-dir"
            )
        self._loaded = dict(checkpoint.get(STATE, {}))


def attributes(trainer: TrainerBase) -> dict[str, Any]:
    """Return what a checkpoint would hold of each attribute that a method may have set; NotSaved where it cannot."""
    parts = [*trainer._models.values(), *trainer._optims.values(), *trainer._scheds.values()]
    tensors = (t for model in trainer._models.values() for t in (*model.parameters(), *model.buffers()))
    registered = {id(trainer), *map(id, filter(None, parts)), *map(address, tensors)}
    values: dict[str, Any] = {}
    for name, value in vars(trainer).items():
        if name not in ENGINE and not is_stateless(value):
            try:
                values[name] = saved(value, registered)
            except NotSaved:
                values[name] = NotSaved
            except Registered:
                continue
    return values


def is_stateless(value: Any) -> bool:
    frozen = getattr(getattr(type(value), "__dataclass_params__", None), "frozen", False)
    return frozen or isinstance(value, STATELESS)


def address(tensor: torch.Tensor) -> int:
    return -tensor.untyped_storage().data_ptr()  # negative: an id of an object is not


def saved(value: Any, registered: set[int]) -> Any:
    """Return a value as a checkpoint holds it.

    Raises:
        NotSaved: it cannot. Registered: it need not.
    """
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if id(value) in registered or (isinstance(value, torch.Tensor) and address(value) in registered):
        raise Registered
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple, set, deque)):
        kind = next(kind for kind in (tuple, set, list) if isinstance(value, kind) or kind is list)
        return kind(saved(item, registered) for item in value)
    is_foreign = type(value).__module__.split(".")[0] not in PACKAGES
    if isinstance(value, dict) and is_foreign and all(isinstance(key, KEYS) for key in value):
        return {key: saved(item, registered) for key, item in value.items()}
    if isinstance(value, nn.Module):
        state = {name: t for name, t in value.state_dict(keep_vars=True).items() if address(t) not in registered}
        return {"state_dict": {name: tensor.detach() for name, tensor in state.items()}}
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        return {"state_dict": saved(value.state_dict(), registered)}
    if hasattr(value, "__dict__") and is_foreign:
        inner, kept = registered | {id(value)}, {}
        for name, item in vars(value).items():
            if not is_stateless(item):
                try:
                    kept[name] = saved(item, inner)
                except (NotSaved, Registered):
                    continue
        return {"attributes": kept}
    raise NotSaved


@torch.no_grad()
def restored(current: Any, value: Any, device: torch.device) -> Any:
    """Return a saved value for the current one: in its memory, of its type and on its device, where it has one."""
    if isinstance(value, torch.Tensor):
        if isinstance(current, torch.Tensor) and (current.shape, current.dtype) == (value.shape, value.dtype):
            return current.copy_(value)
        return value.to(current.device if isinstance(current, torch.Tensor) else device)
    if isinstance(value, (list, tuple)):
        olds = [*current] if isinstance(current, (list, tuple, deque)) else []
        items = [restored(olds[i] if i < len(olds) else None, item, device) for i, item in enumerate(value)]
        return deque(items, current.maxlen) if isinstance(current, deque) else type(value)(items)
    if not isinstance(value, dict):
        return value
    if isinstance(current, dict):
        items = {key: restored(current.get(key), item, device) for key, item in value.items()}
        current.clear()
        current.update(items)
        return current
    if {*value} not in PARTS:
        return {key: restored(None, item, device) for key, item in value.items()}
    if current is None:
        raise UserError(
            "the run cannot go on from its checkpoints: its trainer has no object for the state of one that it made "
            "while it trained. Begin anew in another --output-dir"
        )
    if isinstance(current, nn.Module):
        state = current.state_dict(keep_vars=True)
        for name, tensor in value["state_dict"].items():
            state[name].copy_(tensor)
    elif "state_dict" in value:
        current.load_state_dict(value["state_dict"])
    else:
        for name, item in value["attributes"].items():
            setattr(current, name, restored(getattr(current, name, None), item, device))
    return current


def digest(value: Any) -> str:
    """Return a digest of what :func:`saved` gave."""
    result = hashlib.blake2b(digest_size=16)

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            result.update(f"{part.dtype} {tuple(part.shape)} ".encode() + bits(part))
        elif isinstance(part, dict):
            for key, item in part.items():
                result.update(f"{key!r}: ".encode())
                add(item)
        elif isinstance(part, (list, tuple)):
            result.update(f"{len(part)} ".encode())
            for item in part:
                add(item)
        else:
            result.update(f"{part!r}, ".encode())

    add(value)
    return result.hexdigest()


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().flatten()
    if flat.numel() > LARGE and flat.element_size() in (2, 4, 8):
        whole = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
        return str(whole.sum(dtype=torch.int64).item()).encode()
    return flat.cpu().view(torch.uint8).numpy().tobytes()
