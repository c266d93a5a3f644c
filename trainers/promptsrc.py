"""PromptSRC: deep prompts in both towers of a frozen CLIP, regularized by what CLIP computes without them.

Khattak et al., Self-regulating Prompts: Foundational Model Adaptation without Forgetting, ICCV 2023, section 3.2. The
first layers of both encoders have learned tokens, independent of each other. The loss is L_CE + L_SCL: cross-entropy,
lambda_1 and lambda_2 times the L1 distances of the prompted unit features of images and texts from frozen CLIP's, and
the Kullback-Leibler divergence of the prompted scores from frozen CLIP's (3.2.1). The trained prompts are the mean of
those after each epoch, with Gaussian weights (3.2.2). Frozen text features are means over templates (3.2.3).

As in the authors' code, the distances are means over all elements; the templates are the first 60 of CLIP's 80 on every
data set, and their features are averaged before they are normalised. Their amp fails; here it has all losses. Words and
ResNets are as in ``trainers.maple``. With TEST.FINAL_MODEL best_val, only the last epoch is validated with the mean.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from vlm.similarity import normalize
from vlm.text.classnames import tokenize_class_prompts
from vlm.text.templates import IMAGENET_TEMPLATES, clean_classname

from .prompted_clip import DeepPromptLearner, DeepPromptTrainer
from .shots import end_step


class VLPromptLearner(DeepPromptLearner):
    """Prompts of the text encoder, and independent ones of the image encoder, layer by layer."""

    def add_visual_prompts(self, node: CfgNode, width: int, layers: int) -> None:
        """Draw the prompts of the image encoder, for at most ``layers`` layers."""
        layers = min(node.PROMPT_DEPTH_VISION, layers)
        self.compound_prompts_vision = self.draw_prompts(layers, node.N_CTX_VISION, width)

    def visual_prompts(self) -> list[torch.Tensor]:
        """Return the prompts, each (N_CTX_VISION, width), of the image encoder's layers."""
        return [*self.compound_prompts_vision]


@TRAINER_REGISTRY.register()
class PromptSRC(DeepPromptTrainer):
    """Trains deep prompts in both towers by cross-entropy and self-regularization; ends with their weighted mean."""

    display_name, group, learner_class = "PromptSRC", "towers", VLPromptLearner
    training_keys = ("PREC", "CHUNK", "TEXT_LOSS_WEIGHT", "IMAGE_LOSS_WEIGHT", "GPA_MEAN", "GPA_STD")

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.PROMPTSRC, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.PROMPTSRC = CfgNode()
        cfg.TRAINER.PROMPTSRC.N_CTX_VISION = 4  # number of prompts of a layer of the image encoder
        cfg.TRAINER.PROMPTSRC.N_CTX_TEXT = 4
        cfg.TRAINER.PROMPTSRC.CTX_INIT = "a photo of a"  # words; the first N_CTX_TEXT tokens are learned; "": random
        cfg.TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION = 9  # layers with prompts
        cfg.TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT = 9
        cfg.TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT = 25.0  # lambda_2 in the paper
        cfg.TRAINER.PROMPTSRC.IMAGE_LOSS_WEIGHT = 10.0  # lambda_1
        cfg.TRAINER.PROMPTSRC.GPA_MEAN = 15.0  # mu of the weights of the epochs, which count from 1
        cfg.TRAINER.PROMPTSRC.GPA_STD = 1.0  # sigma, in epochs
        cfg.TRAINER.PROMPTSRC.CHUNK = 8  # images encoded at a time in training, with the same result; 0: the batch
        cfg.TRAINER.PROMPTSRC.PREC = "fp16"  # or fp32, amp, bf16

    @torch.no_grad()
    def before_train(self) -> None:
        """Encode the classes by frozen CLIP, and begin the weighted sum of the prompts, which checkpoints hold."""
        names, encoder = [clean_classname(name) for name in self.dm.dataset.classnames], self.model.text_encoder
        templates = IMAGENET_TEMPLATES[:60]  # the authors' list, N = 60 in the paper
        tokens = (tokenize_class_prompts(encoder, names, template).to(self.device) for template in templates)
        self.g = normalize(torch.stack([encoder.encode(each) for each in tokens]).mean(0))
        self.gpa = {name: torch.zeros_like(p).float() for name, p in self.model.prompt_learner.named_parameters()}
        super().before_train()

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """Train on a batch by L_CE + L_SCL; return ``loss`` and ``acc`` (%)."""
        image, label, _ = self.parse_batch_train(batch)
        node, clip, scale = self.cfg.TRAINER.PROMPTSRC, self.backbone.clip, self.model.logit_scale.exp()
        with torch.autocast(self.device.type, torch.float16, enabled=self.scaler is not None):
            f_p, g_p = self.model.encode_images(image), self.model.class_features()  # f: images, g: texts, p: prompted
            with torch.no_grad():
                f, g = normalize(clip.visual(image.to(clip.dtype))), self.g
                log_q = (scale * f @ g.t()).log_softmax(1)
            logits = scale * f_p @ g_p.t()
            L_SCL_text, L_SCL_image = F.l1_loss(g_p, g), F.l1_loss(f_p, f)
            L_SCL_logits = F.kl_div(logits.log_softmax(1), log_q, reduction="sum", log_target=True) / logits.numel()
            L_SCL = node.TEXT_LOSS_WEIGHT * L_SCL_text + node.IMAGE_LOSS_WEIGHT * L_SCL_image + L_SCL_logits
            loss = F.cross_entropy(logits, label) + L_SCL
        self.model_backward_and_update(loss)
        return end_step(self, logits, label, loss=loss)

    @torch.no_grad()
    def after_epoch(self) -> None:
        """Add the epoch's prompts to their weighted sum, which replaces them after the last epoch; then save."""
        mu, sigma = self.cfg.TRAINER.PROMPTSRC.GPA_MEAN, self.cfg.TRAINER.PROMPTSRC.GPA_STD
        w = torch.softmax(-0.5 * ((torch.arange(1, self.max_epoch + 1) - mu) / sigma) ** 2, 0)  # Gaussian, of sum 1
        for name, parameter in self.model.prompt_learner.named_parameters():
            self.gpa[name].add_(parameter, alpha=w[self.epoch].item())
            if self.epoch + 1 == self.max_epoch:
                parameter.copy_(self.gpa[name])
        super().after_epoch()
