"""CLIPFineTune: contrastive training of CLIP on images with captions, as in Radford et al. 2021, section 2.3.

It trains both encoders, one of them, the projections into the joint embedding space alone, or low-rank updates of the
attention layers (LoRA). In each epoch, one caption of each image is drawn. The captions of the batch's other images are
its negatives. Captions longer than the text encoder's context length are truncated, as in CLIP's training; the log has
their number.
On a data set with classes, the caption of an image is a prompt of its class, DATASET.TEMPLATE with the class name
(Goyal et al. 2023). Of several prompts, each epoch draws one for each class.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

from dassl.data.datasets import Datum
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

from .backbone import load_backbone
from .captions import RetrievalCaptions, describe_truncated, tokenize_captions
from .prompts import HandwrittenPrompts

PARTS = ("image", "text", "projections", "lora")  # values of TRAINER.FINETUNE.PARTS
AUTOCAST_DTYPES = {"fp32": None, "amp": torch.float16, "bf16": torch.bfloat16}  # autocast types; weights stay fp32
LOGIT_SCALE_NAME = "logit_scale"  # always trained: on other data, CLIP's temperature may be wrong
# Names of the last linear layer of an image encoder (OpenAI's two kinds, other libraries) and of the text encoder.
PROJECTION_PREFIXES = ("visual.proj", "visual.attnpool.c_proj.", "visual.visual_projection.", "visual.head.",
                       "text_projection")  # fmt: skip
BATCH_NORM = nn.modules.batchnorm._BatchNorm  # base class of all batch normalisation layers; PyTorch exports none


class FineTunedCLIP(nn.Module):
    """A CLIP whose parameters with ``requires_grad`` are trained. Its state dict holds only the trained tensors.

    It computes with the ``precision`` in AUTOCAST_DTYPES. With ``batch_norm``, the running statistics of batch
    normalisation are trained, too; else they are frozen.
    """

    text_features: torch.Tensor | None = None  # cache of the class features in evaluation

    def __init__(self, clip: CLIP, precision: str, batch_norm: bool, node: str = "TRAINER.FINETUNE"):
        super().__init__()
        self.clip, self.batch_norm, self.node = clip, batch_norm, node  # the last: a name for messages
        self.device_type, self.precision = clip.logit_scale.device.type, AUTOCAST_DTYPES[precision]
        if precision == "amp" and self.device_type != "cuda":
            print("Note: amp becomes fp32, as half precision is slow and inexact on a CPU")
            self.precision = None
        self.trained_names = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        if batch_norm:
            norms = {name for name, module in self.named_modules() if isinstance(module, BATCH_NORM)}
            self.trained_names |= {name for name, _ in self.named_buffers() if name.rpartition(".")[0] in norms}

    def autocast(self) -> torch.autocast:
        """Return a context manager that computes in ``precision``."""
        return torch.autocast(self.device_type, self.precision, enabled=self.precision is not None)

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Return unnormalised fp32 features (n, embed_dim) of images (n, 3, height, width), or of cached features."""
        if images.ndim == 2:
            return images.float()
        with self.autocast():
            return self.clip.visual(images).float()

    def train(self, mode: bool = True) -> FineTunedCLIP:
        """Set the mode, but keep frozen batch normalisation in evaluation mode; clear the cached class features."""
        super().train(mode)
        self.text_features = None  # training changes the text encoder
        for module in self.modules():
            if isinstance(module, BATCH_NORM) and not self.batch_norm:
                module.eval()
        return self

    def state_dict(self, *args, **kwargs) -> dict[str, torch.Tensor]:  # type: ignore[override]  # has overloads
        """Return the trained parameters and running statistics alone, by name."""
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if name in self.trained_names}

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], *args, **kwargs):
        """Load the trained tensors; raise a RuntimeError if ``state_dict`` does not have exactly their names."""
        if differing := self.trained_names ^ set(state_dict):
            problem = f"{min(differing)} is trained in the checkpoint or in this model alone"
            raise RuntimeError(f"{problem}; {self.node} must be as in training")
        return super().load_state_dict({**super().state_dict(), **state_dict}, *args, **kwargs)


def set_trainable(clip: CLIP, parts: tuple[str, ...], rank: int, alpha: float) -> None:
    """Make ``parts`` (some of ``PARTS``) and the logit scale trainable, and freeze the rest of ``clip``, in place.

    ``rank`` and ``alpha`` are those of LoRA, which is added if ``parts`` has ``lora``.
    """
    for name, parameter in clip.named_parameters():
        tower = "image" if name.startswith("visual.") else "text"
        projection = "projections" in parts and name.startswith(PROJECTION_PREFIXES)
        parameter.requires_grad_(name == LOGIT_SCALE_NAME or tower in parts or projection)
    if "lora" in parts:
        add_lora(clip, rank, alpha)


def reset_weights(clip: CLIP) -> None:
    """Draw random weights for a CLIP of OpenAI's architecture in place, from the distributions of its constructor."""
    if type(clip) is not CLIP:
        raise UserError("MODEL.BACKBONE.PRETRAINED False works with OpenAI's architectures and tiny alone")
    for module in clip.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset:
            reset()
    clip.initialize_parameters()
    embedder = getattr(clip.visual, "attnpool", clip.visual)  # the module with the image encoder's bare parameters
    width = embedder.positional_embedding.shape[1]
    for name in ("class_embedding", "positional_embedding", "proj"):
        if hasattr(embedder, name):
            nn.init.normal_(getattr(embedder, name), std=width**-0.5)
    nn.init.constant_(clip.logit_scale, math.log(1 / 0.07))  # the paper's initial temperature of 0.07


@TRAINER_REGISTRY.register()
class CLIPFineTune(TrainerX):
    """Fine-tunes CLIP by the symmetric cross-entropy over a batch's pairs; the learning rate changes in each step."""

    group = "towers"
    supports_zero_shot = True
    training_keys = ("CHUNK", "FREEZE_BN", "MAX_LOGIT_SCALE", "ADAM_EPS", "PREC")
    has_cosine_logits = True  # model_inference returns cosines of image and class features, times the logit scale

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.FINETUNE, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.FINETUNE = CfgNode()
        cfg.TRAINER.FINETUNE.PARTS = ("image", "text")  # trained parts; or projections, lora
        cfg.TRAINER.FINETUNE.LORA_RANK = 4
        cfg.TRAINER.FINETUNE.LORA_ALPHA = 8.0  # updates are scaled by LORA_ALPHA / LORA_RANK
        cfg.TRAINER.FINETUNE.CHUNK = 0  # pairs encoded at a time, to save memory, with the same result; 0: the batch
        cfg.TRAINER.FINETUNE.FREEZE_BN = True  # freeze the running statistics of batch normalisation (ResNets)
        cfg.TRAINER.FINETUNE.MAX_LOGIT_SCALE = 100.0  # CLIP's: above, training becomes unstable
        cfg.TRAINER.FINETUNE.ADAM_EPS = 1e-8  # CLIP's: 1e-6 for ViTs, 1e-8 for ResNets
        cfg.TRAINER.FINETUNE.PREC = "fp32"  # or amp (float16, CUDA), bf16: of the computation, not of the weights

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ``UserError`` for values and combinations of TRAINER.FINETUNE that cannot be used."""
        node = cfg.TRAINER.FINETUNE
        check_availability(list(node.PARTS), PARTS, "TRAINER.FINETUNE.PARTS")
        check_availability(node.PREC, AUTOCAST_DTYPES, "TRAINER.FINETUNE.PREC")
        check_at_least(node.LORA_RANK, 1, "TRAINER.FINETUNE.LORA_RANK")
        check_at_least(node.CHUNK, 0, "TRAINER.FINETUNE.CHUNK")
        if not node.PARTS:
            raise UserError(f"TRAINER.FINETUNE.PARTS is empty; it names some of {', '.join(PARTS)}")
        if not cfg.MODEL.BACKBONE.PRETRAINED and not {"image", "text"} <= set(node.PARTS):  # frozen weights stay random
            raise UserError("MODEL.BACKBONE.PRETRAINED False needs TRAINER.FINETUNE.PARTS image and text")
        if "lora" in node.PARTS and {"image", "text"} & set(node.PARTS):
            raise UserError("TRAINER.FINETUNE.PARTS: lora takes the place of image and text; it goes with projections")
        if not node.MAX_LOGIT_SCALE > 0:
            raise UserError(f"TRAINER.FINETUNE.MAX_LOGIT_SCALE is {node.MAX_LOGIT_SCALE}; it must be above 0")

    def build_data_loader(self) -> None:
        """Build the loaders; raise ``UserError`` if TEST.EVALUATOR does not fit captions or classes."""
        super().build_data_loader()
        evaluator, captions = self.cfg.TEST.EVALUATOR, hasattr(self.dm.dataset, "captions")
        if (evaluator == "Retrieval") != captions and not self.cfg.TEST.NO_TEST:
            has = "captions, which TEST.EVALUATOR Retrieval" if captions else "classes, which another TEST.EVALUATOR"
            raise UserError(f"the data set {self.cfg.DATASET.NAME} has {has} evaluates, not {evaluator}")

    def build_model(self) -> None:
        """Copy CLIP, make its parts trainable and register it; if only the text is trained, batches hold features."""
        node, backbone = self.cfg.TRAINER.FINETUNE, self.cfg.MODEL.BACKBONE
        self.backbone = load_backbone(self, "fp32", needs_classes=False)
        clip = copy.deepcopy(self.backbone.clip)  # other trainers of this process share the original
        if not backbone.PRETRAINED:
            print("MODEL.BACKBONE.PRETRAINED is False: starting from random weights")
            reset_weights(clip)
        set_trainable(clip, node.PARTS, node.LORA_RANK, node.LORA_ALPHA)
        batch_norm = any(isinstance(module, BATCH_NORM) for module in clip.modules())
        batch_norm = batch_norm and "image" in node.PARTS and not node.FREEZE_BN
        if batch_norm and node.CHUNK:
            raise UserError("TRAINER.FINETUNE.CHUNK does not go with FREEZE_BN False, which needs the whole batch")
        if batch_norm and get_world_size() > 1:
            if self.device.type != "cuda":  # PyTorch has no such layer for CPUs
                raise UserError("on CPUs, several processes need TRAINER.FINETUNE.FREEZE_BN True; or start with python")
            clip = nn.SyncBatchNorm.convert_sync_batchnorm(clip)
        self.model = FineTunedCLIP(clip, node.PREC, batch_norm)
        if set(node.PARTS) == {"text"}:
            self.feature_extractor = self.backbone.build_feature_extractor()  # batches hold features, as in CoOp
        self.encoder = self.backbone.build_text_encoder(clip)
        self.prompts = HandwrittenPrompts(self) if self.dm.dataset.classnames else None
        shared_captions: dict[str, int] = {}
        if hasattr(self.dm.dataset, "captions"):
            print(describe_truncated(self.dm.dataset, self.encoder))
            splits = {"val": self.dm.dataset.val or (), "test": self.dm.dataset.test}
            self.captions = RetrievalCaptions(self.encoder, splits)
            shared_captions = self.captions.shared
        if weights := self.cfg.MODEL.INIT_WEIGHTS:
            # Every run trains the logit scale, so that name does not show that the parts match.
            expected = self.model.trained_names - {f"clip.{LOGIT_SCALE_NAME}"}
            if not expected & set(load_checkpoint(weights)["state_dict"]):
                raise UserError(f"{weights} has no weights of the parts in TRAINER.FINETUNE.PARTS")
            load_pretrained_weights(self.model, weights)
        self.register_model("clip", self.model, *self._build_optimizer())
        self.scaler = torch.amp.GradScaler("cuda") if self.model.precision == torch.float16 else None
        frozen = count_num_param(self.model) - self.num_trainable_parameters()
        self.provenance = {
            **self.backbone.report_parameters(self, frozen),
            **(self.prompts.provenance if self.prompts else {}),
            **({"shared_captions": shared_captions} if shared_captions else {}),
        }
        print(f"They are in {', '.join(node.PARTS)}, and the logit scale")

    def _build_optimizer(self) -> tuple[Optimizer, LRScheduler]:
        """Return the optimizer, with weight decay for matrices alone as in CLIP, and a schedule over training steps."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        options = {"eps": self.cfg.TRAINER.FINETUNE.ADAM_EPS, "fused": True}  # fused: faster for the token embedding
        groups = [
            {"params": [p for p in trained if p.ndim > 1], **options},
            {"params": [p for p in trained if p.ndim < 2], **options, "weight_decay": 0.0},
        ]
        optim = build_optimizer(self.model, self.cfg.OPTIM, groups)
        steps = len(self.train_loader_x or [None])  # without data, as in prediction, the schedule is not used
        return optim, build_lr_scheduler(optim, self.cfg.OPTIM, steps)

    # ---- training ----

    def before_train(self) -> None:
        """Prepare training; raise ``UserError`` if no batch can have a negative, so that the loss is constant."""
        images = self.train_loader_x.dataset.data_source
        batch_size, problem = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE, ""
        captions = (ids for item in images for ids in tokenize_captions(self.encoder, self.captions_of(item))[1])
        first = next(captions)
        if min(batch_size, len(images)) < 2:
            problem = f"batches have one pair (DATALOADER.TRAIN_X.BATCH_SIZE {batch_size}, {len(images):,} images)"
        elif all(caption == first for caption in captions):
            problem = f"all captions of the {len(images):,} training images are equal to the text encoder"
        if problem:
            raise UserError(f"the contrastive loss needs two captions in a batch, but {problem}")
        super().before_train()

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """Train on a batch by the contrastive loss; return ``loss`` and image-to-text ``acc`` (%)."""
        images = self.parse_batch_train(batch)[0]
        captions = [self.caption(index) for index in batch["index"].tolist()]
        all_tokens, token_ids = tokenize_captions(self.encoder, captions)
        unique = {ids: number for number, ids in enumerate(dict.fromkeys(token_ids))}
        text_index = torch.tensor([unique[ids] for ids in token_ids], device=self.device)
        # Equal captions have equal ids in all processes.
        caption_ids = torch.tensor([derive_seed(*ids) for ids in token_ids], device=self.device)
        chunk, logit_scale = self.cfg.TRAINER.FINETUNE.CHUNK, self.model.clip.logit_scale
        tokens = all_tokens[[token_ids.index(ids) for ids in unique]].to(self.device)
        image_features = normalize(encode_in_chunks(self.model.encode_images, images, chunk))
        text_features = normalize(encode_in_chunks(self.encode_tokens, tokens, chunk))[text_index]
        loss, correct = distributed_contrastive_loss(image_features, text_features, caption_ids, logit_scale)
        self.model_backward_and_update(loss)
        self.update_lr()
        with torch.no_grad():
            logit_scale.clamp_(max=math.log(self.cfg.TRAINER.FINETUNE.MAX_LOGIT_SCALE))
        return {"loss": loss.item(), "acc": 100 * correct.float().mean().item()}

    def captions_of(self, item: Datum) -> Sequence[str]:
        """Return the captions of an image: its own, or on a data set with classes, the prompts of its class."""
        return self.prompts.of_class(item.label) if self.prompts else item.captions  # type: ignore[attr-defined]

    def caption(self, index: int) -> str:
        """Return the caption of the training image ``index`` in this epoch, determined by seed, epoch and image.

        The prompt of a class is determined by seed, epoch and class.
        """
        item = self.train_loader_x.dataset.data_source[index]
        captions, name = self.captions_of(item), item.classname if self.prompts else item.name
        return captions[derive_seed(self.cfg.SEED, self.epoch, "caption", name) % len(captions)]

    def encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return unnormalised fp32 features (n, embed_dim) of token ids (n, length)."""
        with self.model.autocast():
            return self.encoder.encode(tokens).float()

    # ---- evaluation ----

    def parse_batch_test(self, batch: dict) -> tuple:
        """Return images and labels; for retrieval, the arguments of ``model_inference`` and the evaluator's ``gt``."""
        images, labels = super().parse_batch_test(batch)
        if self.cfg.TEST.EVALUATOR != "Retrieval":
            return images, labels
        captions, numbers, pairs = self.captions.of_batch(labels.tolist())
        tokens = self.encoder.tokenize(captions, truncate=True).to(self.device) if captions else None
        return (images, tokens), (labels, numbers, pairs)

    def model_inference(self, input: torch.Tensor | tuple) -> torch.Tensor | tuple:  # type: ignore[override]  # pairs
        """Return scaled logits (n, classes) for images; for a pair of images and tokens, the unit features of both.

        Without tokens (None), the features of texts are (0, embed_dim).
        """
        if isinstance(input, tuple):
            image_features = normalize(self.model.encode_images(input[0]))
            text_features = image_features[:0] if input[1] is None else normalize(self.encode_tokens(input[1]))
            return image_features, text_features
        return compute_logits(self.model.encode_images(input), self.class_features(), self.model.clip.logit_scale)

    def class_features(self) -> torch.Tensor:
        """Return unit text features (classes, embed_dim); they are cached until the next ``set_model_mode``."""
        if self.model.text_features is None:
            assert self.prompts is not None  # images with captions are evaluated in pairs
            with self.model.autocast():
                self.model.text_features = self.prompts.build_classifier(self.encoder).float()
        return self.model.text_features

    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight (classes, embed_dim) and bias (classes,) that give the logits of unit image features."""
        return build_linear_head(self.class_features(), self.model.clip.logit_scale)
