"""Learned prompts without the config of their run, such as downloaded ones: checkpoint and CLIP determine the rest."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch
import yaml
from torch import nn
from yacs.config import CfgNode

from dassl import engine
from dassl.distributed import get_device
from dassl.utils import UserError, load_checkpoint
from dassl.utils.checkpoint import check_finite, find_checkpoints
from vlm.clip.load import load_cached_clip

PROMPT_MODEL, CONTEXT_KEY = "prompt_learner", "ctx"  # CoOp's registered model, and its key in the state dict
META_NET_PREFIX = "meta_net."  # of the keys of CoCoOp's Meta-Net


def read_prompt(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the state dict of a learned prompt, without ``module.`` before its keys, and the checkpoint's ``origin``.

    The origin is that of ``dassl.engine.checkpoint.get_origin``; {} in checkpoints of the original CoOp. Raises
    ``UserError`` if the checkpoint at ``path`` has no finite context ``ctx`` of 2 or 3 dimensions.
    """
    checkpoint = load_checkpoint(path)
    state_dict = {key.removeprefix("module."): value for key, value in checkpoint["state_dict"].items()}
    context = state_dict.get(CONTEXT_KEY)
    if context is None or context.dim() not in (2, 3):
        keys = ", ".join(state_dict) or "nothing"
        raise UserError(f'{path} has no learned context "{CONTEXT_KEY}"; it has {keys}')
    check_finite({CONTEXT_KEY: context}, path)
    return state_dict, checkpoint.get("origin") or {}


def build_prompt_cfg(source: Path, epoch: int | None, backbone: str, weights: str, cuda: bool) -> CfgNode:
    """Return a config for the learned prompt of CoOp or CoCoOp at ``source`` under the CLIP ``backbone``, not frozen.

    The number of context tokens and CSC follow from the shape of the context, and where the class name stands from the
    checkpoint's origin. Without one, a note on standard error says that it is taken to follow the context. Images are
    prepared as for the CLIP.

    Args:
        source: folder of the prompt learner or of a run, or a checkpoint file (``find_checkpoints``).
        epoch: epoch of the checkpoint; None for the best on validation images, else the newest.
        weights: path of a CLIP weights file that replaces the backbone's weights, or "".
        cuda: True if a GPU may be used.

    Raises:
        UserError: there is no checkpoint, or no learned prompt in it; or the CLIP cannot be loaded, or is not that of
            the checkpoint's origin.
    """
    path = find_checkpoints(source, [PROMPT_MODEL], epoch)[PROMPT_MODEL]
    state_dict, origin = read_prompt(path)
    context = state_dict[CONTEXT_KEY]
    is_conditional = any(key.startswith(META_NET_PREFIX) for key in state_dict)
    cfg = engine.default_cfg()
    cfg.TRAINER.NAME = "CoCoOp" if is_conditional else "CoOp"
    node = cfg.TRAINER[cfg.TRAINER.NAME.upper()]
    node.N_CTX, node.PREC = context.shape[-2], "fp32"
    if not is_conditional:
        node.CSC = context.dim() == 3
        node.CLASS_TOKEN_POSITION = read_position(path, origin, node)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.WEIGHTS = backbone, weights
    # The trainer loads it from memory, under the same random state.
    with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
        clip, sha256 = load_cached_clip(backbone, weights, "fp32", get_device(cuda))
    if origin.get("weights", sha256) != sha256:
        other, this = origin["weights"][:12], f"{weights or backbone} ({sha256[:12]})"
        raise UserError(f"{path} was learned with other weights ({other}) than those of {this}")
    set_preprocessing(cfg, clip.visual)
    cfg.INPUT.WHITE_LEVEL, cfg.INPUT.ORIENTATION = 0, "exif"  # the defaults of predict.py
    return cfg


def read_position(path: Path, origin: dict[str, str], node: CfgNode) -> str:
    """Return where the class name stands by a prompt's ``origin``; without settings in it, print a note: the default.

    ``node`` is TRAINER.COOP, with the default. Raises ``UserError`` if the settings are damaged.
    """
    if "settings" not in origin:
        note = "taken to follow the context, as no config says otherwise (CLASS_TOKEN_POSITION)"
        print(f"Note: {path} is a context of {node.N_CTX} tokens; the class name is {note}", file=sys.stderr)
        return node.CLASS_TOKEN_POSITION
    try:
        return yaml.safe_load(origin["settings"])["TRAINER"]["COOP"]["CLASS_TOKEN_POSITION"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"the settings in {path} are damaged: {error!r}") from error


def set_preprocessing(cfg: CfgNode, visual: nn.Module) -> None:
    """Set the keys of INPUT, in place, to the preprocessing of test images for a CLIP's image encoder ``visual``."""
    cfg.INPUT.SIZE = (visual.input_resolution,) * 2
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.TRANSFORMS = ("normalize",)
    cfg.INPUT.PIXEL_MEAN = list(visual.mean)  # type: ignore[arg-type]  # PyTorch types attributes Tensor | Module
    cfg.INPUT.PIXEL_STD = list(visual.std)  # type: ignore[arg-type]  # as above
    cfg.INPUT.RESIZE = visual.resize
