"""CLIPFineTune: CLIP learns from images with captions, as it was pretrained (Radford et al. 2021, section 2.3).

The whole model, one of its towers, the projections into the common space alone, or low-rank updates of its attention
layers (LoRA). A caption of each image is drawn in each epoch; the others' captions in the batch are its mismatches.
Captions of more tokens than the text encoder has positions are cut, as in CLIP's training.
On a data set with classes, the caption of an image is its class in DATASET.TEMPLATE (Goyal et al. 2023).
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.distributed import get_world_size
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    UserError,
    check_at_least,
    check_availability,
    count_num_param,
    derive_seed,
    load_checkpoint,
    load_pretrained_weights,
)
from vlm.clip.lora import add_lora
from vlm.contrastive import batch_loss, in_chunks
from vlm.openai import CLIP
from vlm.similarity import linear_head, logits, normalize
from vlm.text.templates import check_template, readable
from vlm.text.zeroshot import describe_classes

from .backbone import load_backbone

PARTS = ("image", "text", "projections", "lora")
PRECISIONS = {"fp32": None, "amp": torch.float16, "bf16": torch.bfloat16}  # of the computation; weights stay fp32
SCALE = "logit_scale"  # always learned: it is one number, and says how sure a model of other data may be
# The last linear layer of an image encoder, by its names in OpenAI's two kinds and in other libraries; the text's.
PROJECTIONS = ("visual.proj", "visual.attnpool.c_proj.", "visual.visual_projection.", "visual.head.", "text_projection")
BATCH_NORM = nn.modules.batchnorm._BatchNorm


class FineTunedCLIP(nn.Module):
    """A CLIP of which some parameters are trained. Its state is theirs, so a checkpoint holds nothing else.

    ``batch_norm``: batch normalisation is trained as well, and its running means are part of the state. Else it goes by
    those that it has, in training, too.
    """

    text_features: torch.Tensor | None = None  # of the classes, while nothing is trained

    def __init__(self, clip: CLIP, batch_norm: bool):
        super().__init__()
        self.clip, self.batch_norm = clip, batch_norm
        self.kept = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        if batch_norm:
            self.kept |= {
                f"{name}.{buffer}"
                for name, module in self.named_modules()
                if isinstance(module, BATCH_NORM)
                for buffer, _ in module.named_buffers()
            }

    def train(self, mode: bool = True) -> FineTunedCLIP:
        super().train(mode)
        if not self.batch_norm:
            for module in self.modules():
                if isinstance(module, BATCH_NORM):
                    module.eval()
        return self

    def state_dict(self, *args, **kwargs) -> dict[str, torch.Tensor]:
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in self.kept}

    def load_state_dict(self, state_dict: dict[str, torch.Tensor], *args, **kwargs):
        differing = sorted(self.kept ^ set(state_dict))
        if differing:
            raise RuntimeError(
                f"the parts do not agree\n{len(differing)} tensors, such as {differing[0]}, are in one of the two "
                "alone: TRAINER.FINETUNE must be as it was in training"
            )
        return super().load_state_dict({**super().state_dict(), **state_dict}, *args, **kwargs)


def choose_parts(clip: CLIP, parts: tuple[str, ...], rank: int, alpha: float) -> None:
    """Let ``parts`` of a frozen CLIP, and its logit scale, learn."""
    for name, parameter in clip.named_parameters():
        tower = "image" if name.startswith("visual.") else "text"
        projection = "projections" in parts and name.startswith(PROJECTIONS)
        parameter.requires_grad_(name == SCALE or tower in parts or projection)
    if "lora" in parts:
        for parameter in add_lora(clip, rank, alpha):
            parameter.requires_grad_(True)


def forget(clip: CLIP) -> None:
    """Give a CLIP of OpenAI's kind random weights, distributed as its constructor draws them."""
    if type(clip) is not CLIP:
        raise UserError("MODEL.BACKBONE.PRETRAINED False goes with OpenAI's architectures and tiny alone")
    for module in clip.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset:
            reset()
    clip.initialize_parameters()
    last = getattr(clip.visual, "attnpool", clip.visual)
    width = last.positional_embedding.shape[1]
    for name in ("class_embedding", "positional_embedding", "proj"):
        if hasattr(last, name):
            nn.init.normal_(getattr(last, name), std=width**-0.5)
    nn.init.constant_(clip.logit_scale, math.log(1 / 0.07))


def sync_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with batch normalisation over the batch of all processes.

    Raises:
        UserError: the device is a CPU, for which PyTorch has no such layer.
    """
    if get_world_size() == 1 or not any(isinstance(m, BATCH_NORM) for m in model.modules()):
        return model
    if device.type != "cuda":
        raise UserError(
            "batch normalisation cannot learn from the batch of several processes on CPUs: start the run with python, "
            "or keep its running means (FREEZE_BN True)"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


@TRAINER_REGISTRY.register()
class CLIPFineTune(TrainerX):
    """The symmetric cross-entropy over the pairs of a batch, AdamW, and a rate that follows the steps."""

    usable_untrained = True

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        cfg.TRAINER.FINETUNE = CfgNode()
        cfg.TRAINER.FINETUNE.PARTS = ("image", "text")  # what learns: also projections, lora
        cfg.TRAINER.FINETUNE.LORA_RANK = 4
        cfg.TRAINER.FINETUNE.LORA_ALPHA = 8.0  # updates are scaled by LORA_ALPHA / LORA_RANK
        cfg.TRAINER.FINETUNE.CHUNK = 0  # pairs in memory at a time, with the same result; 0: the batch
        cfg.TRAINER.FINETUNE.FREEZE_BN = True  # of ResNets: batch normalisation goes by the means it has
        cfg.TRAINER.FINETUNE.MAX_LOGIT_SCALE = 100.0
        cfg.TRAINER.FINETUNE.ADAM_EPS = 1e-8  # CLIP's: 1e-6 for ViTs, 1e-8 for ResNets
        cfg.TRAINER.FINETUNE.PREC = "fp32"  # or amp (float16, CUDA), bf16: of the computation, not of the weights

    def check_cfg(self, cfg: CfgNode) -> None:
        node = cfg.TRAINER.FINETUNE
        check_availability(list(node.PARTS), PARTS, "TRAINER.FINETUNE.PARTS")
        check_availability(node.PREC, PRECISIONS, "TRAINER.FINETUNE.PREC")
        check_at_least(node.LORA_RANK, 1, "TRAINER.FINETUNE.LORA_RANK")
        check_at_least(node.CHUNK, 0, "TRAINER.FINETUNE.CHUNK")
        check_template(cfg.DATASET.TEMPLATE, "DATASET.TEMPLATE")
        if not node.PARTS:
            raise UserError(f"TRAINER.FINETUNE.PARTS is empty; it names some of {', '.join(PARTS)}")
        if not cfg.MODEL.BACKBONE.PRETRAINED and not {"image", "text"} <= set(node.PARTS):
            raise UserError(
                "MODEL.BACKBONE.PRETRAINED False needs TRAINER.FINETUNE.PARTS image and text: a checkpoint does not "
                "hold what stays random"
            )
        if "lora" in node.PARTS and {"image", "text"} & set(node.PARTS):
            raise UserError("TRAINER.FINETUNE.PARTS: lora takes the place of image and text; it goes with projections")
        if not node.MAX_LOGIT_SCALE > 0:
            raise UserError(f"TRAINER.FINETUNE.MAX_LOGIT_SCALE is {node.MAX_LOGIT_SCALE}; it must be above 0")

    def build_model(self) -> None:
        node, backbone = self.cfg.TRAINER.FINETUNE, self.cfg.MODEL.BACKBONE
        self.backbone = load_backbone(self, "fp32", needs_classes=False)
        clip = copy.deepcopy(self.backbone.clip)  # that one is shared, and stays as it is
        if not backbone.PRETRAINED:
            print("MODEL.BACKBONE.PRETRAINED is False: starting from random weights")
            forget(clip)
        choose_parts(clip, node.PARTS, node.LORA_RANK, node.LORA_ALPHA)
        batch_norm = "image" in node.PARTS and not node.FREEZE_BN
        self.model = FineTunedCLIP(sync_batch_norm(clip, self.device) if batch_norm else clip, batch_norm)
        if node.CHUNK and self.model.batch_norm and any(isinstance(m, BATCH_NORM) for m in clip.modules()):
            raise UserError(
                "TRAINER.FINETUNE.CHUNK does not go with FREEZE_BN False: batch normalisation would see chunks, not "
                "the batch, and the loss would be another one"
            )
        if set(node.PARTS) == {"text"}:
            self.feature_source = self.backbone.image_features()  # the image encoder is frozen: batches hold features
        self.encoder = self.backbone.text_encoder(clip)
        if self.cfg.MODEL.INIT_WEIGHTS:
            self._start_from(self.cfg.MODEL.INIT_WEIGHTS)
        self.register_model("clip", self.model, *self._optimizer())
        precision = PRECISIONS[node.PREC]
        if node.PREC == "amp" and self.device.type != "cuda":
            print("Note: amp becomes fp32, as half precision is slow and inexact on a CPU")
            precision = None
        self.precision = precision
        self.scaler = torch.amp.GradScaler("cuda") if precision == torch.float16 else None
        self.provenance = self.backbone.report(self, count_num_param(self.model) - self.trainable_parameters())
        print(f"They are in {', '.join(node.PARTS)}, and the logit scale")

    def _start_from(self, path: str) -> None:
        """Load another run's weights. Its logit scale is among them whatever it trained, so it alone says nothing."""
        if not (self.model.kept - {f"clip.{SCALE}"}) & set(load_checkpoint(path)["state_dict"]):
            parts = list(self.cfg.TRAINER.FINETUNE.PARTS)
            raise UserError(f"{path} has nothing of what TRAINER.FINETUNE.PARTS {parts} trains")
        load_pretrained_weights(self.model, path)

    def _optimizer(self):
        """CLIP's rules: matrices decay; gains, biases and the logit scale do not. The rate changes with every step."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        settings = {"eps": self.cfg.TRAINER.FINETUNE.ADAM_EPS, "fused": True}  # fused: one pass over the token table
        groups = [
            {"params": [p for p in trained if p.ndim > 1], **settings},
            {"params": [p for p in trained if p.ndim < 2], **settings, "weight_decay": 0.0},
        ]
        optim = build_optimizer(self.model, self.cfg.OPTIM, groups)
        steps = len(self.train_loader_x) if self.train_loader_x is not None else 1
        return optim, build_lr_scheduler(optim, self.cfg.OPTIM, max(steps, 1))

    # ---- training ----

    def before_train(self) -> None:
        if not self.cfg.TEST.NO_TEST:
            self._check_evaluator()
        super().before_train()

    def forward_backward(self, batch: dict) -> dict[str, float]:
        images = self.parse_batch_train(batch)[0]
        texts = [self.caption(index) for index in batch["index"].tolist()]
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        of_image = torch.tensor([distinct[text] for text in texts], device=self.device)
        ids = torch.tensor([derive_seed(text) for text in texts], device=self.device)  # the same in all processes
        chunk = self.cfg.TRAINER.FINETUNE.CHUNK
        tokens = self.encoder.tokenize(list(distinct), cut=True).to(self.device)
        image_features = normalize(in_chunks(self.encode_images, images, chunk))
        text_features = normalize(in_chunks(self.encode_tokens, tokens, chunk))
        loss, right = batch_loss(image_features, text_features[of_image], ids, self.model.clip.logit_scale)
        self.model_backward_and_update(loss)
        self.update_lr()
        with torch.no_grad():
            self.model.clip.logit_scale.clamp_(max=math.log(self.cfg.TRAINER.FINETUNE.MAX_LOGIT_SCALE))
        return {"loss": loss.item(), "acc": 100 * right.float().mean().item()}

    def caption(self, index: int) -> str:
        """The caption of a training image in this epoch, by (seed, epoch, image) alone."""
        item = self.train_loader_x.dataset.data_source[index]
        if not hasattr(item, "captions"):
            return self.cfg.DATASET.TEMPLATE.replace("{}", readable(item.classname))
        return item.captions[derive_seed(self.cfg.SEED, self.epoch, "caption", item.name) % len(item.captions)]

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, height, width), or their features where the encoder is frozen, to features (n, embed_dim)."""
        if self.feature_source is not None:
            return images.float()
        with self._precision():
            return self.model.clip.visual(images).float()

    def encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (n, length) to features (n, embed_dim)."""
        with self._precision():
            return self.encoder.encode(tokens).float()

    def _precision(self):
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)

    # ---- evaluation ----

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        super().set_model_mode(mode, names)
        self.model.text_features = None  # the model may change, or has changed

    def test(self, split: str | None = None, is_final: bool = False) -> float:
        """As the evaluator asks: Retrieval over the captions of a split, or classification, zero-shot."""
        self._check_evaluator()
        return super().test(split)

    def _check_evaluator(self) -> None:
        retrieval, captions = self.cfg.TEST.EVALUATOR == "Retrieval", hasattr(self.dm.dataset, "captions")
        if retrieval != captions:
            has = "captions, which TEST.EVALUATOR Retrieval" if captions else "classes, which another TEST.EVALUATOR"
            raise UserError(f"the data set {self.cfg.DATASET.NAME} has {has} evaluates, not {self.cfg.TEST.EVALUATOR}")

    def parse_batch_test(self, batch: dict) -> tuple:
        """Images and labels; for retrieval, images with the tokens of their captions, and the labels of both."""
        images, labels = super().parse_batch_test(batch)
        if self.cfg.TEST.EVALUATOR != "Retrieval":
            return images, labels
        captions = [self.dm.dataset.captions[label] for label in labels.tolist()]
        tokens = self.encoder.tokenize([text for own in captions for text in own], cut=True).to(self.device)
        owners = labels.repeat_interleave(torch.tensor([len(own) for own in captions], device=self.device))
        return (images, tokens), (labels, owners)

    def model_inference(self, input: torch.Tensor | tuple) -> torch.Tensor | tuple:
        """Logits (n, classes) of images; features of length 1 of both for a pair of images and tokens."""
        if isinstance(input, tuple):
            images, tokens = input
            return normalize(self.encode_images(images)), normalize(self.encode_tokens(tokens))
        return logits(self.encode_images(input), self.class_features(), self.model.clip.logit_scale)

    def class_features(self) -> torch.Tensor:
        """Text features (classes, embed_dim) of length 1; computed once, until the mode is set again."""
        if self.model.text_features is None:
            templates = [self.cfg.DATASET.TEMPLATE]
            with self._precision():
                self.model.text_features = describe_classes(self.encoder, self.dm.dataset.classnames, templates).float()
        return self.model.text_features

    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        return linear_head(self.class_features(), self.model.clip.logit_scale)
