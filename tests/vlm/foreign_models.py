"""Small models with random weights, built and saved by other libraries."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = 49_408  # tokens of CLIP's vocabulary
SIZE = 32  # pixels, for speed
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CHINESE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "x", ".", *"一张的照片猫狗", "a", "photo", "of", "cat", "dog"]
CHINESE += DIGITS


def open_clip_folder(folder: Path, text: dict | None = None, **config) -> Path:
    """Write an open_clip model (two heads, true GELU) for ``local-dir:`` and return its folder."""
    import open_clip
    from safetensors.torch import save_file

    model_cfg = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 2, **(text or {})},
        **config,
    }
    folder.mkdir()
    content = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def _vision_cfg() -> dict:
    return {**TOWER, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 8}


def _text_cfg(words: int) -> dict:
    return {**TOWER, "num_attention_heads": 4, "vocab_size": words}


def _save(model, folder: Path, squash: bool = False) -> Path:
    """Save a model and its image processor, which crops or squashes images, and return the folder."""
    from transformers import CLIPImageProcessor

    model.save_pretrained(folder)
    edges = {"height": SIZE, "width": SIZE}
    size = {"size": edges if squash else {"shortest_edge": SIZE}, "crop_size": edges, "do_center_crop": not squash}
    CLIPImageProcessor(**size).save_pretrained(folder)
    return folder


def hugging_face_clip(folder: Path, activation: str = "quick_gelu") -> Path:
    """Write a CLIP of transformers for ``hf:`` and return its folder."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text = {**_text_cfg(WORDS), "hidden_act": activation, "eos_token_id": WORDS - 1, "bos_token_id": WORDS - 2}
    config = CLIPConfig(text_config=text, vision_config=_vision_cfg(), projection_dim=24)
    return _save(CLIPModel(config), folder)


def chinese_clip(folder: Path) -> Path:
    """Write a Chinese-CLIP for ``hf:`` and return its folder."""
    from transformers import BertTokenizer, ChineseCLIPConfig, ChineseCLIPModel

    torch.manual_seed(0)
    config = ChineseCLIPConfig(text_config=_text_cfg(len(CHINESE)), vision_config=_vision_cfg(), projection_dim=24)
    _save(ChineseCLIPModel(config), folder, squash=True)
    (folder / "vocab.txt").write_text("\n".join(CHINESE), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
