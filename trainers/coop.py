"""CoOp: the words around a class name are learned, CLIP stays as it is.

Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022, section 3. A prompt is
``[V]_1 ... [V]_M [CLASS]``, where the M context tokens are vectors in the space of word embeddings, shared by all
classes (equation 2) or one set a class. They are trained by cross-entropy over CLIP's scores (equation 3), through
the frozen text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, check_at_least, check_availability, derive_seed
from vlm.class_features import BLOCK, FEW, ClassFeatures
from vlm.class_names import class_names, class_tokens
from vlm.openai import CLIP
from vlm.prompts import readable
from vlm.similarity import Best, linear_head, logits, normalize
from vlm.text_encoder import TextEncoder

from .class_tokens import add_class_tokens, checksum, drop_class_tokens, too_large
from .prompt_trainer import PromptTrainer
from .sampled_softmax import Sample, check_sample
from .together import JointEncoder, shared

MOST = 512  # tokens of a prompt in the text encoder that takes the longest ones, Chinese-CLIP's
POSITIONS = ("end", "middle", "front")  # of the class name among the context tokens


class PromptLearner(nn.Module):
    """The learned context ``ctx`` and the fixed tokens around it.

    ``ctx`` has shape (n_ctx, width), or (classes, n_ctx, width) with class-specific contexts. What ``forward`` returns
    is a table of vectors: the context tokens, then the embeddings of all fixed tokens, each once. ``index`` (classes,
    77) names the row of it that stands at each position of each prompt, ``layout`` what of that is to be computed.
    """

    def __init__(
        self,
        classnames: Sequence[str],
        text_encoder: TextEncoder,
        n_ctx: int,
        ctx_init: str = "",
        csc: bool = False,
        position: str = "end",
    ):
        """
        Args:
            n_ctx: context tokens.
            ctx_init: words to start from; they set ``n_ctx``.
            csc: a context for each class.
            position: of the class name among the context tokens.

        Raises:
            UserError: a name is empty, or a prompt too long; the class is named.
        """
        super().__init__()
        names = class_names(text_encoder, classnames)
        n_ctx = text_encoder.token_count(readable(ctx_init)) if ctx_init else n_ctx
        if n_ctx > MOST:
            raise UserError(f"there are {n_ctx:,} context tokens (N_CTX); no prompt has more than {MOST}")
        # "X" keeps a place for each context token; the class name and what follows it are CLIP's own words.
        tokens = class_tokens(text_encoder, names, " ".join(["X"] * n_ctx + ["{}."]))
        context = initial_context(text_encoder, n_ctx, ctx_init, len(names) if csc else None)
        self.ctx = nn.Parameter(context)
        print(f"Number of context words (tokens): {n_ctx}")

        context_rows = torch.arange(context[..., 0].numel()).view(context.shape[:-1])
        fixed, rows = tokens.unique(return_inverse=True)
        rows += context_rows.numel()
        rows[:, 1 : 1 + n_ctx] = context_rows
        lengths = text_encoder.lengths(tokens)
        # A name that ends in marks may be fewer tokens with the full stop behind it; it never reaches the prompt's end.
        counts = [
            min(text_encoder.token_count(name), length - n_ctx - 2)
            for name, length in zip(names, lengths.tolist(), strict=True)
        ]
        order = [_order(n_ctx, count, position, tokens.shape[1]) for count in counts]
        device = context.device
        self.register_buffer("fixed", text_encoder.embed(fixed.to(device)).detach(), persistent=False)
        self.rows = rows.to(device)  # the class name last, as in ``tokens``
        self.index = rows.gather(1, torch.tensor(order)).to(device)
        self.lengths = lengths.to(device)
        self.layout = text_encoder.layout(self.index, self.lengths)
        self.checksum = checksum(tokens[:, 1 + n_ctx :])
        if too_large(self):
            print("Checkpoints have a checksum of the class tokens in their place: token_prefix, token_suffix")
        self.register_state_dict_post_hook(add_class_tokens)
        self.register_load_state_dict_pre_hook(drop_class_tokens)

    def table(self, ctx: torch.Tensor) -> torch.Tensor:
        """The table of vectors (rows, width) with ``ctx`` for context."""
        return torch.cat([ctx.flatten(0, -2), self.fixed])

    def forward(self) -> torch.Tensor:
        """The table of vectors (rows, width)."""
        return self.table(self.ctx)

    def of(self, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The prompts of some ``classes`` (int64 numbers) alone: a table of vectors (rows, width), the rows of it that
        each prompt is made of (classes, 77), and the tokens of each (classes,)."""
        classes = classes.to(self.index.device)
        index, lengths = self.index[classes], self.lengths[classes]
        if self.ctx.dim() == 2:
            return self.table(self.ctx), index, lengths
        number, n_ctx = self.ctx.shape[:2]
        moved = n_ctx * (torch.arange(len(classes), device=classes.device) - classes)[:, None]
        index = index + torch.where(index < number * n_ctx, moved, n_ctx * (len(classes) - number))
        return self.table(self.ctx[classes]), index, lengths

    # Embeddings of what stands before and behind the context, for all classes (classes, 1 or more, width).
    token_prefix = property(lambda self: self.table(self.ctx)[self.rows[:, :1]].detach())
    token_suffix = property(lambda self: self.table(self.ctx)[self.rows[:, 1 + self.ctx.shape[-2] :]].detach())


def initial_context(text_encoder: TextEncoder, n_ctx: int, words: str, classes: int | None) -> torch.Tensor:
    """The embeddings of ``words``, or Gaussian noise (standard deviation 0.02): (n_ctx, width), or as much for each of
    ``classes``."""
    table, dtype = text_encoder.token_embedding.weight, text_encoder.dtype
    dtype = torch.float32 if dtype == torch.bfloat16 else dtype  # of whose 8 bits, a small step would change none
    if words:
        words = readable(words)
        tokens = text_encoder.tokenize([words]).to(table.device)
        context = text_encoder.embed(tokens)[0, 1 : 1 + text_encoder.token_count(words)].to(dtype)
        context = context if classes is None else context.expand(classes, -1, -1)
    else:
        print("Initializing a generic context" if classes is None else "Initializing class-specific contexts")
        words = " ".join(["X"] * n_ctx)
        shape = (n_ctx, table.shape[1]) if classes is None else (classes, n_ctx, table.shape[1])
        # Drawn on the CPU, so that a seed means the same context everywhere.
        context = torch.empty(shape, dtype=dtype).normal_(std=0.02).to(table.device)
    print(f'Initial context: "{words}"')
    return context.clone()


def _order(n_ctx: int, n_name: int, position: str, length: int) -> list[int]:
    """Which position of ``[start, context, name, rest]`` comes at each place of the prompt."""
    start, context = [0], list(range(1, 1 + n_ctx))
    name = list(range(1 + n_ctx, 1 + n_ctx + n_name))
    rest = list(range(1 + n_ctx + n_name, length))
    half = n_ctx // 2
    return {
        "end": start + context + name + rest,
        "middle": start + context[:half] + name + context[half:] + rest,
        "front": start + name + context + rest,
    }[position]


class CustomCLIP(nn.Module):
    """CLIP with a prompt learner in front of its text encoder."""

    def __init__(self, classnames: Sequence[str], clip: CLIP, node: CfgNode, text_encoder: TextEncoder | None = None):
        super().__init__()
        self.text_encoder = text_encoder or TextEncoder(clip)
        self.logit_scale = clip.logit_scale
        values = node.N_CTX, node.CTX_INIT, node.CSC, node.CLASS_TOKEN_POSITION
        self.prompt_learner = PromptLearner(classnames, self.text_encoder, *values)

    def class_features(self, kept: ClassFeatures | None = None) -> torch.Tensor:
        """Text features (classes, embed_dim) of length 1. Of many, and without gradients, those that are ``kept`` are
        taken from there."""
        learner = self.prompt_learner
        count = len(learner.lengths)
        if torch.is_grad_enabled() or count <= BLOCK:
            return normalize(self.text_encoder(learner(), learner.layout))
        return normalize((kept or ClassFeatures())(count, learner.of, self._encode))

    def _encode(self, table: torch.Tensor, index: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.text_encoder(table, self.text_encoder.layout(index, lengths))

    def of_classes(self, image_features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) for some ``classes`` (int64 numbers) alone."""
        class_features = normalize(self._encode(*self.prompt_learner.of(classes)))
        return logits(image_features, class_features, self.logit_scale)

    def forward(self, image_features: torch.Tensor, class_features: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (batch, classes) of image features (batch, embed_dim)."""
        class_features = self.class_features() if class_features is None else class_features
        return logits(image_features, class_features, self.logit_scale)


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """Context optimization."""

    node = "COOP"
    class_features = None  # of the prompts as they are, while nothing is trained

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        cfg.TRAINER.COOP = CfgNode()
        cfg.TRAINER.COOP.N_CTX = 16  # context tokens
        cfg.TRAINER.COOP.CTX_INIT = ""  # words to start from, such as "a photo of a"; they set N_CTX
        cfg.TRAINER.COOP.CSC = False  # class-specific contexts
        cfg.TRAINER.COOP.CLASS_TOKEN_POSITION = "end"
        cfg.TRAINER.COOP.SAMPLED_CLASSES = 0  # of a training step, an approximation; 0: all of them
        cfg.TRAINER.COOP.PREC = "fp16"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        position = cfg.TRAINER.COOP.CLASS_TOKEN_POSITION
        check_availability(position, POSITIONS, "TRAINER.COOP.CLASS_TOKEN_POSITION")
        check_at_least(cfg.TRAINER.COOP.SAMPLED_CLASSES, 0, "TRAINER.COOP.SAMPLED_CLASSES")

    def custom_clip(self, clip: CLIP) -> CustomCLIP:
        encoder = shared(self.text_encoder(clip), clip)
        return CustomCLIP(self.dm.dataset.classnames, clip, self.cfg.TRAINER.COOP, encoder)

    def model_backward(self, loss: torch.Tensor) -> None:
        super().model_backward(loss)
        if isinstance(self.model.text_encoder, JointEncoder):
            self.model.text_encoder.backward()

    def describe(self) -> dict:
        sampled = {"sampled_classes": self.cfg.TRAINER.COOP.SAMPLED_CLASSES} if self.samples_classes else {}
        return {**super().describe(), **sampled}

    def before_train(self) -> None:
        if self.samples_classes:
            node = self.cfg.TRAINER.COOP
            check_sample(node.SAMPLED_CLASSES, self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE)
            print(
                f"Sampled softmax: {node.SAMPLED_CLASSES:,} of {self.num_classes:,} classes a step, an approximation "
                "(TRAINER.COOP.SAMPLED_CLASSES); loss and acc of a step are over these classes"
            )
        super().before_train()

    @property
    def samples_classes(self) -> bool:
        return 0 < self.cfg.TRAINER.COOP.SAMPLED_CLASSES < self.num_classes

    def training_loss(self, image_features: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not self.samples_classes:
            return super().training_loss(image_features, label)
        seed = derive_seed(self.seed, self.epoch, self.batch_idx, "classes")
        sample = Sample.draw(label, self.cfg.TRAINER.COOP.SAMPLED_CLASSES, self.num_classes, seed)
        output = self.model.of_classes(image_features, sample.classes)
        return sample.loss(output), output, sample.labels

    def varying_step(self) -> str:
        together = isinstance(self.model.text_encoder, JointEncoder) and "--together"
        return super().varying_step() or together or (self.samples_classes and "SAMPLED_CLASSES") or ""

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        super().set_model_mode(mode, names)
        self.class_features = None

    def model_inference(self, input: torch.Tensor) -> torch.Tensor | Best:
        if torch.is_grad_enabled():
            return self.model(input)
        if self.class_features is None:  # once: the prompts stay as they are until the mode is set again
            # Those of the epochs' ends on the way are of no use to another run.
            keep = len(self.dm.dataset.classnames) > FEW and not self.stage.startswith("in epoch")
            store = self.class_feature_store(self.model.text_encoder) if keep else None
            self.class_features = self.model.class_features(ClassFeatures(store))
        return self.logits_or_best(input, self.class_features)

    @torch.no_grad()
    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        return linear_head(self.model.class_features(), self.model.logit_scale)
