"""CLIPs of the package transformers: ``hf:<name on the Hub, or local folder>``.

Image encoders are run as they are. CLIP's text encoder is run by ``vlm.text.encoder``; Chinese-CLIP's, a BERT, by
``vlm.text.bert``.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dassl.utils import UserError, import_optional
from vlm.clip.hub import DOWNLOAD_HINT, hub_access, load_complete_model
from vlm.clip.third_party import check_clip_text_encoder, describe_architecture
from vlm.clip.weights_file import check_folder
from vlm.openai import QuickGELU, Transformer
from vlm.text.bert import BertEncoder
from vlm.text.encoder import TextEncoder

PACKAGE_NAME = "transformers"
ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU}  # the two that vlm.text.layers computes
PROJECTIONS = ("q_proj", "k_proj", "v_proj")  # of transformers' attention; OpenAI's in_proj is these in this order
HFObject = Any  # the package is optional, so its types may be missing


class HuggingFaceImageEncoder(nn.Module):
    """The image encoder of a CLIP of transformers, with preprocessing: ``mean``, ``std``, ``resize`` (crop, squash)."""

    def __init__(self, model: HFObject, processor: HFObject):
        """Take the image encoder of transformers' ``model``, and the preprocessing of its image ``processor``."""
        super().__init__()
        self.vision_model, self.visual_projection = model.vision_model, model.visual_projection
        self.input_resolution = model.config.vision_config.image_size
        self.mean, self.std = tuple(processor.image_mean), tuple(processor.image_std)
        self.resize = "crop" if processor.do_center_crop else "squash"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features (n, embed_dim), not normalised, of preprocessed images (n, 3, height, width)."""
        return self.visual_projection(self.vision_model(pixel_values=images).pooler_output)


class HuggingFaceCLIP(nn.Module):
    """A CLIP of transformers, with the attribute names of OpenAI's."""

    def __init__(self, model: HFObject, processor: HFObject, name: str):
        """Wrap ``model`` with its image ``processor``; ``name`` (``hf:…``) becomes part of the fingerprint."""
        super().__init__()
        self.visual = HuggingFaceImageEncoder(model, processor)
        self.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(()))
        self.architecture = describe_architecture(model, name, PACKAGE_NAME) + model.config.to_json_string()

    dtype = property(lambda self: self.logit_scale.dtype)

    def copy_to(self, model: HFObject) -> None:
        """Copy the weights that ``__init__`` converted, which the modules of ``model`` do not share, to it."""
        model.logit_scale.copy_(self.logit_scale)


class CausalCLIP(HuggingFaceCLIP):
    """A CLIP of transformers with CLIP's own text encoder, converted to OpenAI's modules."""

    text_encoder = TextEncoder

    def __init__(self, model: HFObject, processor: HFObject, tokenizer: None, name: str):
        """Wrap ``model``, its text encoder converted; UserError if that is not CLIP's. ``tokenizer`` is not used."""
        super().__init__(model, processor, name)
        text, config = model.text_model, model.config.text_config
        self.token_embedding = text.embeddings.token_embedding
        self.positional_embedding = text.embeddings.position_embedding.weight
        self.transformer = _convert_transformer(text.encoder.layers, config)
        self.ln_final = text.final_layer_norm
        self.text_projection = nn.Parameter(model.text_projection.weight.detach().t().contiguous())
        check_clip_text_encoder(self.transformer, self.token_embedding, name)

    def copy_to(self, model: HFObject) -> None:
        """Copy also the text projection, and queries, keys and values, to ``model``."""
        super().copy_to(model)
        model.text_projection.weight.copy_(self.text_projection.t())
        for block, layer in zip(self.transformer.resblocks, model.text_model.encoder.layers, strict=True):
            weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
            for name, weight, bias in zip(PROJECTIONS, weights, biases, strict=True):
                getattr(layer.self_attn, name).weight.copy_(weight)
                getattr(layer.self_attn, name).bias.copy_(bias)


class ChineseCLIP(HuggingFaceCLIP):
    """Chinese-CLIP (Yang et al. 2022): its text encoder is a RoBERTa with a Chinese vocabulary."""

    text_encoder = BertEncoder

    def __init__(self, model: HFObject, processor: HFObject, tokenizer: HFObject, name: str):
        """Wrap ``model`` with its ``tokenizer``."""
        super().__init__(model, processor, name)
        self.text_model, self.text_projection, self.tokenizer = model.text_model, model.text_projection, tokenizer


# By transformers' model_type.
CLIP_CLASSES: dict[str, type[CausalCLIP | ChineseCLIP]] = {"clip": CausalCLIP, "chinese_clip": ChineseCLIP}


def load(identifier: str, weights: str) -> HuggingFaceCLIP:
    """Return the CLIP ``identifier``, a name on the Hub or a local folder, in fp32; ``weights`` must be "".

    Raises:
        UserError: transformers is missing, the name is a file, the model cannot be loaded or is of another kind, or
            ``weights`` is not "".
    """
    if weights:
        raise UserError(f"MODEL.BACKBONE.WEIGHTS does not go with hf:{identifier}; hf:FOLDER names a local folder")
    clip_class = find_class(identifier)
    return clip_class(*_load_parts(identifier), f"hf:{identifier}")


@torch.no_grad()
def save(clip: HuggingFaceCLIP, folder: Path, identifier: str, weights: str) -> None:
    """Write ``clip`` to ``folder``, which ``hf:<folder>`` and transformers load.

    Args:
        clip: a CLIP from ``load`` with these ``identifier`` and ``weights``, whose parameters and preprocessing
            (``visual.mean``, ``std``, ``resize``) were changed.
    """
    model, processor, tokenizer = _load_parts(identifier)
    wrapper = find_class(identifier)(model, processor, tokenizer, f"hf:{identifier}")
    wrapper.load_state_dict(clip.state_dict())  # changes ``model``, too
    wrapper.copy_to(model)
    processor.image_mean, processor.image_std = [*clip.visual.mean], [*clip.visual.std]
    if clip.visual.resize != wrapper.visual.resize:
        edge, processor.do_center_crop = clip.visual.input_resolution, clip.visual.resize == "crop"
        square = {"height": edge, "width": edge}
        processor.size, processor.crop_size = {"shortest_edge": edge} if processor.do_center_crop else square, square
    for part in filter(None, (model, processor, tokenizer)):
        part.save_pretrained(folder)


@cache
def find_class(identifier: str) -> type[CausalCLIP | ChineseCLIP]:
    """Return the class of the CLIP ``identifier``, by its config; raise as ``load``."""
    name, identifier = f"hf:{identifier}", os.path.expanduser(identifier)
    package = import_optional("transformers", PACKAGE_NAME, f"the backbone {name}")
    if os.path.isfile(identifier):
        raise UserError(f"{name} is a file; hf: takes its folder, hf:{os.path.dirname(identifier) or '.'}")
    check_folder(Path(identifier), "transformers", name)
    with hub_access(identifier, DOWNLOAD_HINT.format(identifier, "hf:")):
        model_type = package.AutoConfig.from_pretrained(identifier).model_type
    if model_type not in CLIP_CLASSES:
        sigmoid = " (its sigmoid loss and bias are not CLIP's)" if "siglip" in model_type else ""
        raise UserError(f'{name} is of the kind "{model_type}"{sigmoid}; known: {", ".join(CLIP_CLASSES)}')
    return CLIP_CLASSES[model_type]


def _load_parts(identifier: str) -> tuple[HFObject, HFObject, HFObject | None]:
    """Return the model, in fp32, the image processor and the tokenizer of ``identifier``; None in place of CLIP's own.

    Raises ``UserError`` if one of them cannot be loaded, or the model's weights are incomplete.
    """
    package, path = import_module("transformers"), os.path.expanduser(identifier)
    with hub_access(path, DOWNLOAD_HINT.format(path, "hf:")):
        model = load_complete_model(package.AutoModel, path, f"the backbone hf:{identifier} is incomplete").eval()
        processor = package.AutoImageProcessor.from_pretrained(path)
        tokenizer = None if model.config.model_type == "clip" else package.AutoTokenizer.from_pretrained(path)
    return model, processor, tokenizer


def _convert_transformer(layers: HFObject, config: HFObject) -> Transformer:
    """Return text ``layers`` of transformers, of this ``config``, as OpenAI's; UserError for an unknown activation."""
    if config.hidden_act not in ACTIVATIONS:
        raise UserError(f'the text encoder has the activation "{config.hidden_act}"; known: {", ".join(ACTIVATIONS)}')
    transformer = Transformer(config.hidden_size, len(layers), config.num_attention_heads)
    for block, layer in zip(transformer.resblocks, layers, strict=True):
        block.ln_1, block.ln_2 = layer.layer_norm1, layer.layer_norm2
        block.mlp.c_fc, block.mlp.c_proj = layer.mlp.fc1, layer.mlp.fc2
        block.mlp.gelu = ACTIVATIONS[config.hidden_act]()
        projections = [getattr(layer.self_attn, name) for name in PROJECTIONS]
        block.attn.in_proj_weight = nn.Parameter(torch.cat([linear.weight.detach() for linear in projections]))
        block.attn.in_proj_bias = nn.Parameter(torch.cat([linear.bias.detach() for linear in projections]))
        block.attn.out_proj.weight = layer.self_attn.out_proj.weight
        block.attn.out_proj.bias = layer.self_attn.out_proj.bias
    return transformer
