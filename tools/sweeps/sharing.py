"""What runs of a sweep have in common, made once and read by the processes of a machine from one piece of memory: the
parameters of a CLIP, and the image features of a test split.

``share_weights`` and ``share_features`` make it, as NumPy arrays that any object store can hold. ``take`` lets the runs
of a process find it in place of files. They give what they would have given without; where a run asks for something
else, or nothing can be shared (a GPU, a CLIP of another library), it loads as ever.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

import train
from dassl.data.features import FeatureDataset
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from tools.sweeps.grid import Cell
from vlm import feature_store
from vlm.feature_store import keys_digest
from vlm.load import Loaded, adopt, latest, load_shared
from vlm.openai import CLIP

Dense = tuple[np.ndarray, tuple, tuple]  # a tensor: its numbers as they lie in memory, its size, its strides
DRAWN = ("NUM_SHOTS",)  # of DATASET, what does not change the images that are tested


@dataclass(frozen=True)
class SharedWeights:
    """A CLIP: ``loaded`` without its model, the model pickled without its tensors, and these."""

    loaded: Loaded
    skeleton: bytes
    tensors: dict[str, Dense]


@dataclass(frozen=True)
class SharedFeatures:
    """The features (n, embed_dim) of images by an encoder, and the digest of their keys."""

    encoder: str
    keys: bytes
    features: np.ndarray


@dataclass(frozen=True)
class Wish:
    """What a run needs that others may need too, and the seed that it sets."""

    weights: str
    features: str
    seed: int


def wish_of(cell: Cell) -> Wish | None:
    """What to share with a run; None where its settings are wrong, which it will say itself."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(Exception, SystemExit):
        cfg = _cfg_of(cell)
        dataset = {key: value for key, value in cfg.DATASET.items() if key not in DRAWN}
        weights = f"{cfg.MODEL.BACKBONE} {cfg.USE_CUDA}"
        return Wish(weights, f"{weights} {dataset} {cfg.INPUT} {cfg.FEATURES} {cfg.TEST}", cfg.SEED)
    return None


def _cfg_of(cell: Cell) -> CfgNode:
    return train.setup_cfg(train.parse_args(list(cell.arguments)))


def share_weights(cell: Cell, seeds: Sequence[int], threads: int) -> SharedWeights | None:
    """The CLIP of a run, with PyTorch's random state after it was loaded with each of the seeds; None if it cannot be
    shared."""
    with _quiet(threads):
        cfg = _cfg_of(cell)
        backbone, device = cfg.MODEL.BACKBONE, "cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu"
        if device != "cpu":
            return None
        for seed in seeds:
            set_random_seed(seed)
            load_shared(backbone.NAME, backbone.WEIGHTS, "fp32", device)
        loaded = latest()
        if type(loaded.model) is not CLIP:
            return None
        adopt(None)  # this process, too, will find it in the store
        skeleton, tensors = _taken_apart(loaded.model)
        return SharedWeights(replace(loaded, model=None), skeleton, tensors)
    return None


def share_features(cell: Cell, weights: SharedWeights | None, threads: int) -> SharedFeatures | None:
    """The features of the images that a run is tested on, which the cache on disk has from then on, too; None if they
    cannot be shared."""
    with _quiet(threads):
        take(weights)
        trainer = build_trainer(_cfg_of(cell))
        loader = trainer.test_loader
        if (
            trainer.cfg.TEST.NO_TEST
            or trainer.cfg.TEST.SPLIT != "test"
            or not isinstance(loader.dataset, FeatureDataset)
        ):
            return None
        seen = loader.dataset.source = _Recorder(loader.dataset.source)
        next(iter(loader))
        keys, store = [key for key, _ in seen.requests], getattr(seen.source, "store", None)
        if store and keys and len(keys) == len(seen.features):  # else some cannot be read, which every run must say
            return SharedFeatures(store.encoder, keys_digest(keys), seen.features.numpy())
    return None


class _Recorder:
    """Passes requests for features on, and keeps the latest with its answer."""

    def __init__(self, source):
        self.source, self.requests, self.features = source, [], None
        self.encode = source.encode

    def __call__(self, requests, threads, name) -> torch.Tensor:
        self.requests, self.features = requests, self.source(requests, threads, name)
        return self.features


@contextlib.contextmanager
def _quiet(threads: int) -> Iterator[None]:
    """Nothing is printed; an error ends the body, as the runs will say it themselves."""
    torch.set_num_threads(threads)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(Exception, SystemExit),
    ):
        yield


def take(*shared: SharedWeights | SharedFeatures | None) -> None:
    """Let the runs of this process find what is shared; what they were given before, they no longer do."""
    for part in shared:
        if isinstance(part, SharedWeights):
            known = latest()
            if known is None or known.source != part.loaded.source:
                adopt(replace(part.loaded, model=_put_together(part.skeleton, part.tensors)))
            else:
                known.states.update(part.loaded.states)
        elif isinstance(part, SharedFeatures):
            feature_store.IN_MEMORY.clear()
            feature_store.IN_MEMORY[part.encoder, part.keys] = _tensor(part.features)


def _taken_apart(model: nn.Module) -> tuple[bytes, dict[str, Dense]]:
    """A model, pickled without the numbers of its state dict, and these."""
    tensors, holes = {}, {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        hole = torch.empty_like(tensor, device="meta")
        holes[id(tensor)] = nn.Parameter(hole, requires_grad=False) if isinstance(tensor, nn.Parameter) else hole
        dense = tensor.detach()
        flat = dense.as_strided((dense.numel(),), (1,))  # parameters have no gaps, but channels may come last
        tensors[name] = (flat.numpy(), tuple(dense.shape), dense.stride())
    return pickle.dumps(copy.deepcopy(model, holes)), tensors


def _put_together(skeleton: bytes, tensors: dict[str, Dense]) -> nn.Module:
    model = pickle.loads(skeleton)
    state_dict = {name: _tensor(flat).as_strided(size, stride) for name, (flat, size, stride) in tensors.items()}
    model.load_state_dict(state_dict, assign=True)
    return model


def _tensor(array: np.ndarray) -> torch.Tensor:
    """The array's memory as a tensor; of a store, it is read-only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nobody must write to it
        return torch.from_numpy(array)
