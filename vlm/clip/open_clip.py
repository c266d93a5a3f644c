"""CLIPs of the package open_clip_torch: ``open_clip:<architecture>/<weights>``.

Image encoders are run as they are. Text encoders like CLIP's (causal, with CLIP's vocabulary) are run by
``vlm.text.encoder``; others are refused.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from dassl.utils import UserError, import_optional, suggest_name
from vlm.clip.hub import hub_access
from vlm.clip.third_party import check_clip_text_encoder, describe_architecture
from vlm.clip.weights_file import check_folder

PACKAGE_NAME = "open_clip_torch"
LOCAL_DIR_SCHEMA = "local-dir:"  # the package's prefix for a model in a local folder
WEIGHTS_HINT = "MODEL.BACKBONE.WEIGHTS FILE names a local weights file, open_clip:local-dir:FOLDER a local folder"


class OpenCLIP(nn.Module):
    """A CLIP of open_clip, with the attribute names of OpenAI's."""

    def __init__(self, model: Any, name: str):
        """Wrap open_clip's ``model``, named ``name``; UserError if its loss or its text encoder is not CLIP's."""
        super().__init__()
        text = getattr(model, "text", model)
        if getattr(model, "logit_bias", None) is not None:
            raise UserError(f"{name} was trained with a sigmoid loss (SigLIP): its scores have a bias, and CLIP's none")
        pooling = getattr(text, "pool_type", getattr(text, "text_pool_type", ""))
        has_class_token = getattr(text, "cls_emb", None) is not None
        if pooling != "argmax" or has_class_token or getattr(text, "attn_mask", None) is None:
            raise UserError(f"the text encoder of {name} is not CLIP's: it is not causal, or has a class token")
        check_clip_text_encoder(text.transformer, text.token_embedding, name)
        self.visual = model.visual
        size = self.visual.image_size
        self.visual.input_resolution = size[0] if isinstance(size, (list, tuple)) else size
        preprocess_cfg = self.visual.preprocess_cfg
        self.visual.mean, self.visual.std = tuple(preprocess_cfg["mean"]), tuple(preprocess_cfg["std"])
        self.visual.resize = "squash" if preprocess_cfg.get("resize_mode") == "squash" else "crop"
        self.transformer, self.ln_final = text.transformer, text.ln_final
        self.token_embedding, self.positional_embedding = text.token_embedding, text.positional_embedding
        self.text_projection = _projection_matrix(text.text_projection, self.ln_final.normalized_shape[0])
        self.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(()))
        self.architecture = describe_architecture(model, name, PACKAGE_NAME)

    dtype = property(lambda self: self.logit_scale.dtype)


def load(identifier: str, weights: str) -> OpenCLIP:
    """Return the CLIP ``identifier``: ``<architecture>/<weights>``, ``hf-hub:<name>`` or ``local-dir:<folder>``.

    Args:
        weights: path of a file that replaces the named weights; "" for none.

    Raises:
        UserError: open_clip is missing or does not know the name, the weights fail to load, or the model is no CLIP.
    """
    return OpenCLIP(_create_model(identifier, weights)[0], f"open_clip:{identifier}")


@torch.no_grad()
def save(clip: OpenCLIP, folder: Path, identifier: str, weights: str) -> None:
    """Write ``clip`` to ``folder``, which ``open_clip:local-dir:<folder>`` and open_clip load.

    Args:
        clip: a CLIP from ``load`` with these ``identifier`` and ``weights``, whose parameters and preprocessing
            (``visual.mean``, ``std``, ``resize``) were changed.
    """
    package = import_module("open_clip.push_to_hf_hub")
    model, architecture = _create_model(identifier, weights)
    wrapper = OpenCLIP(model, f"open_clip:{identifier}")
    wrapper.load_state_dict(clip.state_dict())  # changes ``model``, but for parameters that ``__init__`` converts:
    model.logit_scale.copy_(wrapper.logit_scale)
    projection = getattr(model, "text", model).text_projection
    if isinstance(projection, nn.Linear):
        projection.weight.copy_(wrapper.text_projection.t())
    preprocess_cfg = {**model.visual.preprocess_cfg, "mean": [*clip.visual.mean], "std": [*clip.visual.std]}
    if clip.visual.resize != wrapper.visual.resize:
        preprocess_cfg["resize_mode"] = {"squash": "squash", "crop": "shortest"}[clip.visual.resize]
    import_module("open_clip.model").set_model_preprocess_cfg(model, preprocess_cfg)
    folder.mkdir()
    package.save_config_for_hf(model, folder / "open_clip_config.json", package.get_model_config(architecture))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")


def _create_model(identifier: str, weights: str) -> tuple[Any, str]:
    """Return open_clip's model and its name for the architecture; arguments and errors as of ``load``."""
    package = import_optional("open_clip", PACKAGE_NAME, f"the backbone open_clip:{identifier}")
    location = os.path.expanduser(identifier.removeprefix(LOCAL_DIR_SCHEMA))
    if identifier.startswith(LOCAL_DIR_SCHEMA):
        check_folder(Path(location), "open_clip", f"open_clip:{identifier}")
        architecture, tag = f"{LOCAL_DIR_SCHEMA}{location}", ""
    elif identifier.startswith("hf-hub:"):
        architecture, tag = identifier, ""
    else:
        architecture, _, tag = identifier.partition("/")
        if architecture not in package.list_models():
            check_folder(Path(location), "", f"open_clip:{identifier}")
        _check_names(package, architecture, tag, weights)
    if weights and not os.path.isfile(weights):
        raise UserError(f"no weights file {weights} (MODEL.BACKBONE.WEIGHTS; predict.py: --weights)")
    with hub_access(weights or location, WEIGHTS_HINT):
        return package.create_model(
            architecture, pretrained=weights or tag or None, require_pretrained=True
        ), architecture


def _check_names(package: ModuleType, architecture: str, tag: str, weights: str) -> None:
    """Raise UserError if open_clip does not know the architecture, or the ``tag`` of its weights.

    A file ``weights`` replaces the tag, which may then be unknown. The tag "openai" is always refused.
    """
    known = package.list_models()
    if architecture not in known:
        raise UserError(f'open_clip has no architecture "{architecture}"; {suggest_name(architecture, known)}')
    if tag == "openai":
        raise UserError("OpenAI's weights go by OpenAI's names, such as RN50 or ViT-B/32, without open_clip:")
    tags = package.list_pretrained_tags_by_model(architecture)
    if not weights and tag not in tags:
        hint = f"{suggest_name(tag, tags)}. MODEL.BACKBONE.WEIGHTS FILE names your own"
        raise UserError(f'open_clip has no weights "{tag}" (open_clip:{architecture}/<weights>); {hint}')


def _projection_matrix(projection: nn.Parameter | nn.Linear | None, width: int) -> nn.Parameter:
    """Return a text projection as a matrix (width, embed_dim): the identity for None. UserError if it has a bias."""
    if projection is None:
        return nn.Parameter(torch.eye(width))
    if isinstance(projection, nn.Linear):
        if projection.bias is not None:
            raise UserError("the text encoder's projection has a bias, which CLIP's has not")
        return nn.Parameter(projection.weight.detach().t().contiguous())
    return projection
