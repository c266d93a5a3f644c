"""CLIP-LoRA: low-rank updates of the attention layers of both encoders, trained by few-shot cross-entropy.

Zanella and Ben Ayed, Low-Rank Few-Shot Adaptation of Vision-Language Models, CVPR workshops 2024, section 4. A weight
W of queries, keys or values becomes ``W + gamma * B A``. A (r, inputs) starts as in a linear layer, B (outputs, r) at
0; in ``vlm.clip.lora`` they are ``down`` and ``up``. As in the authors' code, gamma is ``alpha / sqrt(r)``. Each
step encodes the prompts of all classes again. The settings are the same for all data sets and shots.

The authors' code drops inputs of A for each token, uses the first template alone, and ends its schedule at 1e-6. Here,
a step drops the same inputs for all tokens, images and prompts: so the update is one of the weight, prompts are encoded
without padding, and chunks of images have exact gradients. The features of several templates are averaged. The schedule
ends at 0, after N_ITERS * shots steps, rounded up to whole epochs.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, check_at_least, check_availability, count_num_param, load_pretrained_weights
from vlm.clip.lora import PROJECTION_NAMES, LoRAUpdate, add_lora
from vlm.contrastive import encode_in_chunks
from vlm.similarity import compute_logits, normalize

from .backbone import load_backbone
from .finetune import AUTOCAST_DTYPES, CLIPFineTune, FineTunedCLIP
from .prompts import HandwrittenPrompts


@TRAINER_REGISTRY.register()
class CLIPLoRA(TrainerX):
    """Trains low-rank updates of CLIP by the cross-entropy of its logits for hand-written prompts."""

    display_name = "CLIP-LoRA"
    group = "towers"
    training_keys = ("DROPOUT_RATE", "N_ITERS", "CHUNK", "PREC")
    has_cosine_logits = True  # model_inference returns cosines of image and class features, times the logit scale

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.CLIPLORA, the config node of this method, with its defaults to ``cfg``, in place."""
        node = cfg.TRAINER.CLIPLORA = CfgNode()
        node.ENCODER = "both"  # encoder with updates; or vision, text
        node.PARAMS = ("q", "k", "v")  # weights with updates
        node.R = 2  # rank of the updates
        node.ALPHA = 1.0  # updates are scaled by ALPHA / sqrt(R)
        node.DROPOUT_RATE = 0.25  # share of the inputs of A that a step drops
        node.N_ITERS = 500  # training steps a shot; 0: OPTIM.MAX_EPOCH counts
        node.CHUNK = 8  # images encoded at a time, to save memory, with the same result; 0: the batch
        node.PREC = "fp32"  # or amp (float16, CUDA; the authors'), bf16: of the computation, not of the weights

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ``UserError`` for values of TRAINER.CLIPLORA that cannot be used."""
        node, path = cfg.TRAINER.CLIPLORA, "TRAINER.CLIPLORA"
        check_availability(node.ENCODER, ("both", "vision", "text"), f"{path}.ENCODER")
        check_availability(list(node.PARAMS), PROJECTION_NAMES, f"{path}.PARAMS")
        check_availability(node.PREC, AUTOCAST_DTYPES, f"{path}.PREC")
        for key, least in {"R": 1, "N_ITERS": 0, "CHUNK": 0}.items():
            check_at_least(node[key], least, f"{path}.{key}")
        check_at_least(len(node.PARAMS), 1, f"the number of {path}.PARAMS")
        if not 0 <= node.DROPOUT_RATE < 1:
            raise UserError(f"{path}.DROPOUT_RATE is {node.DROPOUT_RATE}; it must be from 0 to below 1")

    @staticmethod
    def count_epochs(cfg: CfgNode, num_batches: int) -> int:
        """Return the epochs of ``num_batches`` that N_ITERS steps a shot take; without shots, OPTIM.MAX_EPOCH."""
        steps = cfg.TRAINER.CLIPLORA.N_ITERS * max(cfg.DATASET.NUM_SHOTS, 0)
        return math.ceil(steps / num_batches) or cfg.OPTIM.MAX_EPOCH

    def build_model(self) -> None:
        """Copy CLIP, add and register the updates; if only the text encoder has some, batches hold image features."""
        cfg, node = self.cfg, self.cfg.TRAINER.CLIPLORA
        self.backbone = load_backbone(self, "fp32")
        clip = copy.deepcopy(self.backbone.clip).requires_grad_(False)  # other trainers share the original
        towers = {"both": clip, "vision": clip.visual}
        towers["text"] = nn.ModuleList(module for name, module in clip.named_children() if name != "visual")
        add_lora(towers[node.ENCODER], node.R, node.ALPHA * math.sqrt(node.R), node.PARAMS)  # divides by R
        self.model = FineTunedCLIP(clip, node.PREC, batch_norm=False, node="TRAINER.CLIPLORA")
        if node.ENCODER == "text":
            self.feature_extractor = self.backbone.build_feature_extractor()
        self.encoder, self.prompts = self.backbone.build_text_encoder(clip), HandwrittenPrompts(self)
        prompts = [self.prompts.of_class(label) for label in range(self.num_classes)]
        texts, truncate = [text for group in prompts for text in group], self.prompts.descriptions is not None
        self.tokens = self.encoder.tokenize(texts, truncate).to(self.device)
        self.num_prompts = [*map(len, prompts)]  # of each class
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        num_batches = len(self.train_loader_x or [None])  # without data, as in prediction, nothing is trained
        self.max_epoch = self.count_epochs(cfg, num_batches)
        optim = build_optimizer([p for p in self.model.parameters() if p.requires_grad], cfg.OPTIM)
        schedule = CfgNode({**cfg.OPTIM, "MAX_EPOCH": self.max_epoch})
        self.register_model("clip", self.model, optim, build_lr_scheduler(optim, schedule, num_batches))
        self.scaler = torch.amp.GradScaler("cuda") if self.model.precision == torch.float16 else None
        frozen = count_num_param(self.model) - self.num_trainable_parameters()
        self.provenance = {**self.backbone.report_parameters(self, frozen), **self.prompts.provenance}

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """Train on a batch by cross-entropy, and step the schedule; return ``loss`` and ``acc`` (%)."""
        images, label, _ = self.parse_batch_train(batch)
        for update in (module for module in self.model.modules() if isinstance(module, LoRAUpdate)):
            update.draw_mask(self.cfg.TRAINER.CLIPLORA.DROPOUT_RATE)
        output = self.model_inference(images)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def class_features(self) -> torch.Tensor:
        """Return unit text features (classes, embed_dim); if fixed, cached until the next ``set_model_mode``."""
        if self.model.text_features is None:
            with self.model.autocast():
                features = normalize(self.encoder.encode(self.tokens).float())
            features = normalize(torch.stack([w.mean(0) for w in features.split(self.num_prompts)]))
            if features.requires_grad:
                return features
            self.model.text_features = features
        return self.model.text_features

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return scaled logits (n, classes) for images; for image features, if batches hold features."""
        features = encode_in_chunks(self.model.encode_images, input, self.cfg.TRAINER.CLIPLORA.CHUNK)
        return compute_logits(features, self.class_features(), self.model.clip.logit_scale)

    linear_head = CLIPFineTune.linear_head
