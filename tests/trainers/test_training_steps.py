"""Five training steps of KgCoOp, ProGrad and CLIP-LoRA, against plain implementations of their papers' formulas.

The plain ones compute all 77 tokens of every prompt, one weight ``W + gamma * B A`` a projection, and all images at
once. Both start from the same weights, and each makes its own five steps.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from datasets.digits import DIGIT_NAMES
from tests.trainers.small_clips import ARCHITECTURES, write_small_clip
from vlm.clip.lora import LoRAUpdate
from vlm.openai import tokenize
from vlm.text.plain import encode_prompts

STEPS, N_CTX = 5, 4
HANDWRITTEN = "a photo of the number {}."
BLOCKS = {"q": 0, "k": 1, "v": 2}  # rows of the three projections in one weight of OpenAI's transformers


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def weights(request, tmp_path_factory):
    """The path of a weights file of each small CLIP."""
    return write_small_clip(tmp_path_factory.mktemp("clip") / "clip.safetensors", request.param)


@pytest.fixture
def small_trainer(digits_trainer, weights):
    """Return a function that builds a trainer of the small CLIP on the digits with 1 shot, from config options."""

    def build(method, *options):
        torch.manual_seed(0)
        return digits_trainer(method, "MODEL.BACKBONE.WEIGHTS", weights, *options)

    return build


def assert_near(actual: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    """Assert that tensors differ by at most ``tolerance`` of the largest value of all."""
    largest = max(tensor.abs().max().item() for tensor in expected)
    assert largest > 0
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * largest)


def batches(trainer):
    """Yield a batch of each of the first epochs, as the loop serves them."""
    trainer.num_batches = len(trainer.train_loader_x)
    for trainer.epoch in range(STEPS):
        trainer.set_model_mode("train")
        trainer.batch_idx = trainer.num_batches - 1  # an epoch's last: the learning rate changes
        yield next(iter(trainer.train_loader_x))


# ---- prompts ----


def encode_plain(clip, ctx: torch.Tensor | None, template: str) -> torch.Tensor:
    """Return the unit features of the digits' prompts, whose first tokens ``ctx`` (N_CTX, width) replaces."""
    tokens = tokenize([template.format(name) for name in DIGIT_NAMES])
    x = clip.token_embedding(tokens)
    if ctx is not None:
        x = torch.cat([x[:, :1], ctx.expand(len(x), -1, -1), x[:, 1 + len(ctx) :]], 1)
    return F.normalize(encode_prompts(clip, x, tokens.argmax(1)), dim=1)


def kgcoop_gradient(clip, ctx, f, y, w, w_clip) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the loss, and its gradient twice. For unit vectors, ||w - w_clip||^2 / 2 is 1 - cos."""
    loss = F.cross_entropy(clip.logit_scale.exp() * f @ w.t(), y) + 8 * ((w - w_clip) ** 2).sum(1).mean() / 2
    return loss, *torch.autograd.grad(loss, ctx) * 2


def prograd_gradient(clip, ctx, f, y, w, w_clip) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the cross-entropy, its projected gradient by equation 4, and its own gradient."""
    scale = clip.logit_scale.exp()
    p, p_zs = (scale * f @ w.t()).softmax(1), (scale * f @ w_clip.t()).softmax(1)
    loss_ce = -p[range(len(y)), y].log().mean()
    loss_kl = -(p_zs * (p.log() - p_zs.log())).sum(1).mean()
    (g_d,), (g_g,) = torch.autograd.grad(loss_ce, ctx, retain_graph=True), torch.autograd.grad(loss_kl, ctx)
    product = (g_d * g_g).sum()
    return loss_ce, g_d - product / (g_g * g_g).sum() * g_g if product < 0 else g_d, g_d


@pytest.mark.parametrize(("method", "gradient"), [("KgCoOp", kgcoop_gradient), ("ProGrad", prograd_gradient)])
def test_five_steps_of_a_prompt_have_the_losses_and_gradients_of_the_paper(small_trainer, method, gradient):
    node = ("TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", N_CTX, "OPTIM.WARMUP_EPOCH", 0, "OPTIM.LR", 0.002)
    trainer = small_trainer(method, *node)
    clip, learner = trainer.backbone.clip, trainer.model.prompt_learner
    ctx = learner.ctx.detach().clone().requires_grad_()
    optim = torch.optim.SGD([ctx], lr=0.002, momentum=0.9, weight_decay=5e-4)
    w_clip, conflicts = encode_plain(clip, None, HANDWRITTEN), set()
    gradients: list[list[torch.Tensor]] = [[], []]
    for batch in batches(trainer):
        f, y = F.normalize(batch["img"], dim=1), batch["label"]
        w = encode_plain(clip, ctx, "X X X X {}.")
        loss, ctx.grad, own_gradient = gradient(clip, ctx, f, y, w, w_clip)
        optim.param_groups[0]["lr"] = trainer.get_current_lr()
        optim.step()
        metrics = trainer.forward_backward(batch)
        assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
        for grads, parameter in zip(gradients, (learner.ctx, ctx), strict=True):
            grads.append(parameter.grad.clone())
        conflicts.add(not torch.equal(ctx.grad, own_gradient))
    assert_near(*gradients)
    assert_near([learner.ctx.detach()], [ctx.detach()])
    assert conflicts == ({False, True} if method == "ProGrad" else {False})


# ---- low-rank updates ----


def plain_weights(clip, updates: dict, gamma: float, masks: dict) -> dict[str, torch.Tensor]:
    """Return the weights ``W + gamma * B (A * mask)`` by name, where ``updates`` has (B, A) by name and projection."""
    state, weights = dict(clip.named_parameters()), {}
    for (name, projection), (B, A) in updates.items():
        delta = gamma * B @ (A * masks[name, projection])
        if name.endswith("in_proj_weight"):
            rows = [torch.zeros_like(delta)] * 3
            rows[BLOCKS[projection]] = delta
            delta = torch.cat(rows)
        weights[name] = weights.get(name, state[name].detach()) + delta
    return weights


def list_updates(clip) -> dict[tuple[str, str], tuple[LoRAUpdate, int]]:
    """Return each update of q, k, v weights with its number in a module, by the weight's name and projection."""
    updates = {}
    for name, module in clip.named_modules():
        if isinstance(module, LoRAUpdate):
            weight = name.replace("parametrizations.", "").removesuffix(".0")
            names = "qkv" if weight.endswith("in_proj_weight") else weight.split(".")[-2][0]
            updates |= {(weight, projection): (module, i) for i, projection in enumerate(names)}
    return updates


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_five_steps_of_clip_lora_have_the_losses_and_gradients_of_the_paper(small_trainer, weights, dropout):
    options = ("TRAINER.CLIPLORA.DROPOUT_RATE", dropout, "TRAINER.CLIPLORA.CHUNK", 3, "OPTIM.LR", 1e-3)
    trainer = small_trainer("CLIPLoRA", *options, "TRAINER.CLIPLORA.N_ITERS", 8)
    tuned, clip = trainer.model.clip, copy.deepcopy(trainer.backbone.clip).eval()
    modules = list_updates(tuned)
    assert len(modules) == 3 * (2 + (2 if hasattr(clip.visual, "transformer") else 1))  # with two text layers
    plain = {}
    for key, (module, i) in modules.items():
        torch.nn.init.normal_(module.up.data[i], std=0.05)  # at 0, A would have no gradient
        plain[key] = tuple(tensor[i].detach().clone().requires_grad_() for tensor in (module.up, module.down))
    parameters = [tensor for pair in plain.values() for tensor in pair]
    optim = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    tokens = tokenize([HANDWRITTEN.format(name) for name in DIGIT_NAMES])
    for step, batch in enumerate(batches(trainer)):
        rate = trainer.get_current_lr()
        assert rate == pytest.approx(1e-3 * (1 + torch.cos(torch.tensor(torch.pi * step / 8)).item()) / 2)
        metrics = trainer.forward_backward(batch)
        masks = {key: module.mask[i] for key, (module, i) in modules.items()}
        dropped = torch.cat([mask.flatten() == 0 for mask in masks.values()]).double().mean()
        assert abs(dropped - dropout) < 0.1
        changed = plain_weights(clip, plain, 2**-0.5, masks)  # alpha 1, r 2
        loss = F.cross_entropy(functional_call(clip, changed, (batch["img"], tokens))[0], batch["label"])
        optim.zero_grad()
        loss.backward()
        assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
        gradients = [weight.grad[i] for module, i in modules.values() for weight in (module.up, module.down)]
        assert_near(gradients, [tensor.grad for tensor in parameters])
        optim.param_groups[0]["lr"] = rate
        optim.step()
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} == set(trainer.model.state_dict())


def test_chunks_of_images_give_the_gradients_of_the_whole_batch(small_trainer):
    gradients = []
    for chunk in (0, 1, 4):
        trainer = small_trainer("CLIPLoRA", "TRAINER.CLIPLORA.CHUNK", chunk)
        for module, _ in list_updates(trainer.model.clip).values():
            torch.nn.init.constant_(module.up, 0.05)
        trainer.forward_backward(next(batches(trainer)))
        gradients.append([p.grad for p in trainer.model.parameters() if p.requires_grad])
    for actual in gradients[1:]:
        assert_near(actual, gradients[0], 5e-6)  # the largest is 0.02, so this is below 1e-7
