"""CLIPFineTune: CLIP learns from images with captions, as it was pretrained (Radford et al. 2021, section 2.3).

The whole model, one of its towers, the projections into the common space alone, or low-rank updates of its attention
layers (LoRA). A caption of each image is drawn in each epoch; the others' captions in the batch are its mismatches.
Captions of more tokens than the text encoder has positions are cut, as in CLIP's training.
On a data set with classes, the caption of an image is its class in DATASET.TEMPLATE (Goyal et al. 2023).
"""

from __future__ import annotations

import copy
import math

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
from vlm.contrastive import distributed_contrastive_loss, encode_in_chunks
from vlm.openai import CLIP
from vlm.similarity import build_linear_head, compute_logits, normalize
from vlm.text.templates import check_template, clean_classname
from vlm.text.zero_shot import build_zero_shot_classifier

from .backbone import load_backbone

PARTS = ("image", "text", "projections", "lora")
PRECISIONS = {"fp32": None, "amp": torch.float16, "bf16": torch.bfloat16}  # of the computation; weights stay fp32
LOGIT_SCALE_NAME = "logit_scale"  # always learned: it is one number, and says how sure a model of other data may be
# Names of the last linear layer of an image encoder (OpenAI's two kinds, other libraries) and of the text encoder.
PROJECTION_PREFIXES = ("visual.proj", "visual.attnpool.c_proj.", "visual.visual_projection.", "visual.head.")
PROJECTION_PREFIXES += ("text_projection",)
BATCH_NORM = nn.modules.batchnorm._BatchNorm


class FineTunedCLIP(nn.Module):
    """A CLIP of which some parameters are trained. Its state is theirs, so a checkpoint holds nothing else.

    ``batch_norm``: its running means learn, too, and are part of the state. Else they stay as they are.
    """

    text_features: torch.Tensor | None = None  # of the classes, while nothing is trained

    def __init__(self, clip: CLIP, batch_norm: bool):
        super().__init__()
        self.clip, self.batch_norm = clip, batch_norm
        self.kept = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        if batch_norm:
            norms = {name for name, module in self.named_modules() if isinstance(module, BATCH_NORM)}
            self.kept |= {name for name, _ in self.named_buffers() if name.rpartition(".")[0] in norms}

    def train(self, mode: bool = True) -> FineTunedCLIP:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, BATCH_NORM) and not self.batch_norm:
                module.eval()
        return self

    def state_dict(self, *args, **kwargs) -> dict[str, torch.Tensor]:
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in self.kept}

    def load_state_dict(self, state_dict: dict[str, torch.Tensor], *args, **kwargs):
        if differing := self.kept ^ set(state_dict):
            raise RuntimeError(f"{min(differing)} is in one of the two alone: TRAINER.FINETUNE must be as in training")
        return super().load_state_dict({**super().state_dict(), **state_dict}, *args, **kwargs)


def set_trainable(clip: CLIP, parts: tuple[str, ...], rank: int, alpha: float) -> None:
    """Let ``parts`` of a frozen CLIP, and its logit scale, learn."""
    for name, parameter in clip.named_parameters():
        tower = "image" if name.startswith("visual.") else "text"
        projection = "projections" in parts and name.startswith(PROJECTION_PREFIXES)
        parameter.requires_grad_(name == LOGIT_SCALE_NAME or tower in parts or projection)
    if "lora" in parts:
        add_lora(clip, rank, alpha)  # its updates learn; the weights that they update do not


def reset_weights(clip: CLIP) -> None:
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


@TRAINER_REGISTRY.register()
class CLIPFineTune(TrainerX):
    """The symmetric cross-entropy over the pairs of a batch, AdamW, and a rate that follows the steps."""

    supports_zero_shot = True

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
        if not cfg.MODEL.BACKBONE.PRETRAINED and not {"image", "text"} <= set(node.PARTS):  # the rest stays random
            raise UserError("MODEL.BACKBONE.PRETRAINED False needs TRAINER.FINETUNE.PARTS image and text")
        if "lora" in node.PARTS and {"image", "text"} & set(node.PARTS):
            raise UserError("TRAINER.FINETUNE.PARTS: lora takes the place of image and text; it goes with projections")
        if not node.MAX_LOGIT_SCALE > 0:
            raise UserError(f"TRAINER.FINETUNE.MAX_LOGIT_SCALE is {node.MAX_LOGIT_SCALE}; it must be above 0")

    def build_data_loader(self) -> None:
        super().build_data_loader()
        evaluator, captions = self.cfg.TEST.EVALUATOR, hasattr(self.dm.dataset, "captions")
        if (evaluator == "Retrieval") != captions and not self.cfg.TEST.NO_TEST:
            has = "captions, which TEST.EVALUATOR Retrieval" if captions else "classes, which another TEST.EVALUATOR"
            raise UserError(f"the data set {self.cfg.DATASET.NAME} has {has} evaluates, not {evaluator}")

    def build_model(self) -> None:
        node, backbone = self.cfg.TRAINER.FINETUNE, self.cfg.MODEL.BACKBONE
        self.backbone = load_backbone(self, "fp32", needs_classes=False)
        clip = copy.deepcopy(self.backbone.clip)  # that one is shared, and stays as it is
        if not backbone.PRETRAINED:
            print("MODEL.BACKBONE.PRETRAINED is False: starting from random weights")
            reset_weights(clip)
        set_trainable(clip, node.PARTS, node.LORA_RANK, node.LORA_ALPHA)
        batch_norm = any(isinstance(module, BATCH_NORM) for module in clip.modules())
        batch_norm = batch_norm and "image" in node.PARTS and not node.FREEZE_BN
        if batch_norm and node.CHUNK:
            raise UserError("TRAINER.FINETUNE.CHUNK does not go with FREEZE_BN False, which is of the whole batch")
        if batch_norm and get_world_size() > 1:
            if self.device.type != "cuda":  # PyTorch has no such layer for CPUs
                raise UserError("on CPUs, several processes need TRAINER.FINETUNE.FREEZE_BN True; or start with python")
            clip = nn.SyncBatchNorm.convert_sync_batchnorm(clip)
        self.model = FineTunedCLIP(clip, batch_norm)
        if set(node.PARTS) == {"text"}:
            self.feature_extractor = (
                self.backbone.feature_extractor()
            )  # the image encoder is frozen: batches hold features
        self.encoder = self.backbone.text_encoder(clip)
        if start := self.cfg.MODEL.INIT_WEIGHTS:
            # Another run's logit scale is among them whatever it trained, so it alone says nothing.
            if not (self.model.kept - {f"clip.{LOGIT_SCALE_NAME}"}) & set(load_checkpoint(start)["state_dict"]):
                raise UserError(f"{start} has nothing of what TRAINER.FINETUNE.PARTS trains")
            load_pretrained_weights(self.model, start)
        self.register_model("clip", self.model, *self._optimizer())
        self.precision = PRECISIONS[node.PREC]
        if node.PREC == "amp" and self.device.type != "cuda":
            print("Note: amp becomes fp32, as half precision is slow and inexact on a CPU")
            self.precision = None
        self.scaler = torch.amp.GradScaler("cuda") if self.precision == torch.float16 else None
        self.provenance = self.backbone.report(self, count_num_param(self.model) - self.trainable_parameters())
        print(f"They are in {', '.join(node.PARTS)}, and the logit scale")

    def _optimizer(self):
        """CLIP's rules: matrices decay; gains, biases and the logit scale do not. The rate changes with every step."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        settings = {"eps": self.cfg.TRAINER.FINETUNE.ADAM_EPS, "fused": True}  # fused: one pass over the token table
        groups = [
            {"params": [p for p in trained if p.ndim > 1], **settings},
            {"params": [p for p in trained if p.ndim < 2], **settings, "weight_decay": 0.0},
        ]
        optim = build_optimizer(self.model, self.cfg.OPTIM, groups)
        steps = len(self.train_loader_x or [None])  # none where there is only a checkpoint
        return optim, build_lr_scheduler(optim, self.cfg.OPTIM, steps)

    # ---- training ----

    def forward_backward(self, batch: dict) -> dict[str, float]:
        images = self.parse_batch_train(batch)[0]
        texts = [self.caption(index) for index in batch["index"].tolist()]
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        of_image = torch.tensor([distinct[text] for text in texts], device=self.device)
        ids = torch.tensor([derive_seed(text) for text in texts], device=self.device)  # the same in all processes
        chunk = self.cfg.TRAINER.FINETUNE.CHUNK
        tokens = self.encoder.tokenize(list(distinct), cut=True).to(self.device)
        image_features = normalize(encode_in_chunks(self.encode_images, images, chunk))
        text_features = normalize(encode_in_chunks(self.encode_tokens, tokens, chunk))
        loss, right = distributed_contrastive_loss(
            image_features, text_features[of_image], ids, self.model.clip.logit_scale
        )
        self.model_backward_and_update(loss)
        self.update_lr()
        with torch.no_grad():
            self.model.clip.logit_scale.clamp_(max=math.log(self.cfg.TRAINER.FINETUNE.MAX_LOGIT_SCALE))
        return {"loss": loss.item(), "acc": 100 * right.float().mean().item()}

    def caption(self, index: int) -> str:
        """The caption of a training image in this epoch, by (seed, epoch, image) alone."""
        item = self.train_loader_x.dataset.data_source[index]
        if not hasattr(item, "captions"):
            return self.cfg.DATASET.TEMPLATE.replace("{}", clean_classname(item.classname))
        return item.captions[derive_seed(self.cfg.SEED, self.epoch, "caption", item.name) % len(item.captions)]

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, height, width), or their features where the encoder is frozen, to features (n, embed_dim)."""
        if self.feature_extractor is not None:
            return images.float()
        with self._autocast():
            return self.model.clip.visual(images).float()

    def encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (n, length) to features (n, embed_dim)."""
        with self._autocast():
            return self.encoder.encode(tokens).float()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)

    # ---- evaluation ----

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        super().set_model_mode(mode, names)
        self.model.text_features = None  # the model may change, or has changed

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
        return compute_logits(self.encode_images(input), self.class_features(), self.model.clip.logit_scale)

    def class_features(self) -> torch.Tensor:
        """Text features (classes, embed_dim) of length 1; computed once, until the mode is set again."""
        if self.model.text_features is None:
            with self._autocast():
                templates, names = [self.cfg.DATASET.TEMPLATE], self.dm.dataset.classnames
                self.model.text_features = build_zero_shot_classifier(self.encoder, names, templates).float()
        return self.model.text_features

    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        return build_linear_head(self.class_features(), self.model.clip.logit_scale)
