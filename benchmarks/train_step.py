"""Time and peak memory of a training step with ViT-B/16's dimensions: ours, and the plain one of the papers.

    python -m benchmarks.train_step --methods KgCoOp ProGrad --classes 10 100

The plain step computes 77 tokens of every prompt, and all images at once. Prompts alone are trained on image features,
which are ready. Weights are random. Peak memory is that of a new process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from tabulate import tabulate
from torch.nn import functional as F

from benchmarks import measure
from benchmarks.text_encoder import build_encoders, load_names
from dassl.engine import TRAINER_REGISTRY, default_cfg
from dassl.utils import collect_env_info, tune_malloc
from tests import plain_prompts
from tools.random_weights import build_random_clip
from trainers.prompted_clip import PromptedCLIP
from vlm.clip.lora import add_lora
from vlm.contrastive import encode_in_chunks
from vlm.openai import CLIP, build_model, tokenize
from vlm.similarity import compute_logits, normalize
from vlm.text.encoder import TextEncoder

BATCH, CHUNK = 32, 8  # images of a step, as in CoOp; images of a chunk: TRAINER.CLIPLORA.CHUNK


def build_prompt_step(clip: CLIP, names: list[str], plain: bool, losses: int = 1) -> Callable:
    """Return a step of a prompt of 4 tokens: a function that returns the gradients of one loss, or two (ProGrad's)."""
    f, y, p_zs = torch.randn(BATCH, 512), torch.arange(BATCH) % len(names), torch.rand(BATCH, len(names)).softmax(1)
    (learner, encoders), w_clip = build_encoders(clip, names, 4), normalize(torch.randn(len(names), 512))

    def step() -> list[torch.Tensor]:
        """Return the context's gradients."""
        w = normalize(encoders["plain" if plain else "ours"]())
        logits = compute_logits(f, w, clip.logit_scale)
        both = F.cross_entropy(logits, y) + 8 * (1 - (w * w_clip).sum(1).mean()), F.cross_entropy(logits, p_zs)
        return [torch.autograd.grad(loss, learner.ctx, retain_graph=losses > 1)[0] for loss in both[:losses]]

    return step


def build_lora_step(clip: CLIP, names: list[str], plain: bool) -> Callable:
    """Return a step of CLIP-LoRA with updates of rank 2: a function that returns their gradients."""
    device = clip.logit_scale.device
    images, y = torch.randn(BATCH, 3, 224, 224).to(device), torch.arange(BATCH, device=device) % len(names)
    parameters, tokens = add_lora(clip, 2, 1.0, "qkv"), tokenize([f"a photo of a {name}." for name in names]).to(device)
    encode_text = clip.encode_text if plain else TextEncoder(clip).encode

    encode_images = lambda: encode_in_chunks(clip.visual, images, 0 if plain else CHUNK)  # noqa: E731
    logits = lambda: compute_logits(encode_images(), normalize(encode_text(tokens)), clip.logit_scale)  # noqa: E731
    return lambda: [*torch.autograd.grad(F.cross_entropy(logits(), y), parameters)]


def build_deep_prompt_step(clip: CLIP, names: list[str], plain: bool, method: str) -> Callable:
    """Return a step of MaPLe or PromptSRC on 4 images, as in their papers: a function that returns the gradients."""
    encoder, device = TextEncoder(clip), clip.logit_scale.device
    images, y = torch.randn(4, 3, 224, 224).to(device), torch.arange(4, device=device) % len(names)
    learner_class, node = TRAINER_REGISTRY.get(method).learner_class, default_cfg().TRAINER[method.upper()]
    learner = learner_class(names, encoder, clip.visual, node).to(device)
    model, deep = PromptedCLIP(clip, encoder, learner, CHUNK), learner.compound_prompts_text

    def step() -> list[torch.Tensor]:
        """Return the gradients of the prompts, and of MaPLe's coupling functions."""
        if plain:
            f = normalize(plain_prompts.encode_images(clip, images, learner.visual_prompts()))
            g = normalize(plain_prompts.encode_texts(clip, learner()[learner.index], learner.lengths - 1, deep))
        else:
            f, g = model.encode_images(images), model.class_features()
        loss = F.cross_entropy(compute_logits(f, g, clip.logit_scale), y)
        if method == "PromptSRC":
            with torch.no_grad():
                frozen = normalize(clip.visual(images))
            loss = loss + 10 * F.l1_loss(f, frozen) + 25 * g.abs().mean()
        return [*torch.autograd.grad(loss, [*learner.parameters()])]

    return step


# (clip, class names, whether the step is the plain one) -> a step without the optimizer's, which returns gradients
METHODS: dict[str, Callable[..., Callable[[], list[torch.Tensor]]]] = {
    "KgCoOp": build_prompt_step,
    "ProGrad": lambda *arguments: build_prompt_step(*arguments, losses=2),
    "CLIPLoRA": build_lora_step,
    "MaPLe": partial(build_deep_prompt_step, method="MaPLe"),
    "PromptSRC": partial(build_deep_prompt_step, method="PromptSRC"),
}


def build_step(method: str, classes: int, plain: bool, device: str = "cpu") -> Callable[[], list[torch.Tensor]]:
    """Return a step of ``method``, a key of METHODS, over ``classes`` of ImageNet."""
    tune_malloc()
    torch.manual_seed(0)
    clip = build_model(build_random_clip("ViT-B/16", 0)).float().to(device).requires_grad_(False)
    return METHODS[method](clip, load_names(classes), plain)


def run_step(*arguments) -> None:
    """Run a step of ``build_step``, to measure its peak memory."""
    build_step(*arguments)()


def main() -> None:
    """Print a table: time and memory of ours and the plain step, by method and number of classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    print(collect_env_info())
    rows = []
    for method, classes in ((method, classes) for method in args.methods for classes in args.classes):
        steps = {"plain": True, "ours": False}
        calls = {name: (build_step(method, classes, plain), tune_malloc) for name, plain in steps.items()}
        times = measure.measure_in_turns(calls, args.turns)
        row = {"method": method, "classes": classes, **{f"{name}, s": str(times[name]) for name in steps}}
        row["ratio"] = f"{times['plain'].median / times['ours'].median:.1f}"
        for name, plain in steps.items():
            row[f"{name}, peak GB"] = f"{measure.measure_peak_memory(run_step, method, classes, plain):.2f}"
        rows.append(row)
    print(tabulate(rows, headers="keys", tablefmt="github"))


if __name__ == "__main__":
    main()
