"""Tiny models of transformers with random weights, each saved to a folder. Their predictions mean nothing."""

from __future__ import annotations

import string
from pathlib import Path

import torch

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")
WORDS = ("an", "two", "cat", "cats", "dog", "red", "what", "is", "of", "photo", "question", "answer", ":", "?")
LETTERS = string.ascii_lowercase
VOCABULARY = (*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS))
EDGE, PATCH, FRAMES, QUERIES = 32, 16, 4, 2
SIZE = {"height": EDGE, "width": EDGE}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": EDGE, "patch_size": PATCH}


def clipseg(folder: Path) -> Path:
    """Save a CLIPSeg to ``folder`` and return it."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor, ViTImageProcessor

    tokenizer = clip_tokenizer()
    decoder = {"extract_layers": [0, 1], "reduce_dim": 16}
    decoder |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 32}
    config = CLIPSegConfig(text_config=clip_text(tokenizer), vision_config=VISION, projection_dim=16, **decoder)
    return save(folder, CLIPSegForImageSegmentation, config, CLIPSegProcessor(ViTImageProcessor(size=SIZE), tokenizer))


def xclip(folder: Path) -> Path:
    """Save an X-CLIP to ``folder`` and return it."""
    from transformers import VideoMAEImageProcessor, XCLIPConfig, XCLIPModel, XCLIPProcessor

    tokenizer = clip_tokenizer()
    mit = {"mit_hidden_size": 16, "mit_intermediate_size": 32, "mit_num_hidden_layers": 1, "mit_num_attention_heads": 2}
    prompt = {"prompt_num_attention_heads": 2, "prompt_alpha": 0.1}
    vision = {**VISION, **mit, "num_frames": FRAMES}
    config = XCLIPConfig(text_config=clip_text(tokenizer), vision_config=vision, projection_dim=16, **prompt)
    processor = XCLIPProcessor(VideoMAEImageProcessor(size={"shortest_edge": EDGE}, crop_size=SIZE), tokenizer)
    return save(folder, XCLIPModel, config, processor)


def blip(folder: Path, model_class: str) -> Path:
    """Save a BLIP of that class of transformers to ``folder`` and return it."""
    import transformers
    from transformers import BlipConfig, BlipImageProcessor, BlipProcessor

    tokenizer = bert_tokenizer()
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": 0}
    text |= {"bos_token_id": VOCABULARY.index("[DEC]"), "eos_token_id": VOCABULARY.index("[SEP]")}
    text |= {"sep_token_id": VOCABULARY.index("[SEP]")}
    config = BlipConfig(text_config=text, vision_config=VISION, projection_dim=16, image_text_hidden_size=16)
    processor = BlipProcessor(BlipImageProcessor(size=SIZE), tokenizer)
    return save(folder, getattr(transformers, model_class), config, processor)


def blip2(folder: Path, model_class: str) -> Path:
    """Save a BLIP-2 of that class of transformers to ``folder`` and return it."""
    import transformers
    from transformers import Blip2Config, Blip2Processor, BlipImageProcessor

    uses_qformer_text = model_class == "Blip2ForImageTextRetrieval"  # this class has no language model
    tokenizer = bert_tokenizer()
    processor = Blip2Processor(BlipImageProcessor(size=SIZE), tokenizer)
    vocabulary = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    text = {**vocabulary, "model_type": "opt", "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "word_embed_proj_dim": 16}
    text |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = Blip2Config(
        text_config=text,
        vision_config=VISION,
        qformer_config={**TOWER, **vocabulary, "use_qformer_text_input": uses_qformer_text},
        num_query_tokens=QUERIES,
        image_text_hidden_size=16,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return save(folder, getattr(transformers, model_class), config, processor)


def save(folder: Path, model_class: type, config, processor) -> Path:
    """Save a model with random weights and its processor to ``folder`` and return it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:  # with transformers' small initial weights, all inputs give the same output
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def bert_tokenizer():
    """Return BLIP's kind of tokenizer, with ``VOCABULARY``."""
    from transformers import BertTokenizer

    vocabulary = {word: number for number, word in enumerate(VOCABULARY)}
    return BertTokenizer(vocab=vocabulary, bos_token="[DEC]", additional_special_tokens=["[ENC]"])


def clip_tokenizer():
    """Return a CLIP tokenizer without merges: each letter is a token."""
    from transformers import CLIPTokenizer

    letters = [letter + end for letter in LETTERS for end in ("", "</w>")]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])


def clip_text(tokenizer) -> dict:
    """Return the configuration of a CLIP text encoder for ``tokenizer``, with 40 positions."""
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return {**TOWER, **special, "vocab_size": len(tokenizer), "max_position_embeddings": 40}


def write_image(path: Path, seed: int, size: tuple[int, int] = (72, 48)) -> str:
    """Write an image of random coloured squares, of ``size`` (width, height), and return its path."""
    import numpy as np
    from PIL import Image

    squares = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(squares).resize(size, Image.Resampling.NEAREST).save(path)
    return str(path)
