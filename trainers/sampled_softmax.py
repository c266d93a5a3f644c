"""Sampled softmax: cross-entropy over a random sample of many classes, whose cost is that of the sampled classes.

Bengio & Senecal, Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language Model, 2008;
Jean et al., On Using Very Large Target Vocabulary for Neural Machine Translation, 2015. A sample holds the classes of
the batch's labels, and negatives drawn uniformly without replacement from all other classes. Each negative is weighted
by the number of other classes per negative, so the softmax's denominator is estimated without bias. The loss and the
gradient depend on its logarithm. Their bias falls with the number of sampled classes, and is zero if all are sampled.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from dassl.distributed import all_gather_objects
from dassl.engine import TrainerX
from dassl.utils import UserError, check_at_least, derive_seed
from vlm.similarity import compute_logits, normalize


class SampledSoftmax:
    """CoOp's loss over ``size`` of ``classes`` classes, drawn anew in each step by ``seed``; None is a seed, too."""

    def __init__(self, size: int, classes: int, seed: int | None):
        self.size, self.classes, self.seed = size, classes, seed

    @classmethod
    def from_trainer(cls, trainer: TrainerX) -> SampledSoftmax | None:
        """Return the loss for TRAINER.COOP.SAMPLED_CLASSES, noted in ``trainer.provenance``; None for 0 or all."""
        size, batch_size = trainer.cfg.TRAINER.COOP.SAMPLED_CLASSES, trainer.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        check_at_least(size, 0, "TRAINER.COOP.SAMPLED_CLASSES")
        if not 0 < size < trainer.num_classes:
            return None
        if size <= batch_size:  # a step might draw no negatives
            limit = f"with DATALOADER.TRAIN_X.BATCH_SIZE {batch_size} it must be more than {batch_size}"
            raise UserError(f"TRAINER.COOP.SAMPLED_CLASSES is {size}; {limit}")
        print(
            f"Sampled softmax: {size:,} of {trainer.num_classes:,} classes a step, an approximation "
            "(TRAINER.COOP.SAMPLED_CLASSES); loss and acc of a step are over these classes"
        )
        trainer.provenance = {**trainer.provenance, "sampled_classes": size}
        return cls(size, trainer.num_classes, trainer.seed)

    def __call__(
        self, model, image_features: torch.Tensor, labels: torch.Tensor, epoch: int, batch: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the loss, the logits (batch, sampled), and labels (batch,) that are positions in the sample.

        Image features are of any length. Seed, ``epoch`` and the number of the ``batch`` determine the sample.
        """
        seed = derive_seed(self.seed, epoch, batch, "classes")
        classes, positions, correction = draw_classes(labels, self.size, self.classes, seed)
        prompts = model.prompt_learner.select_classes(model.prompt_learner.ctx, classes)
        output = compute_logits(image_features, normalize(model.encode(*prompts)), model.logit_scale)
        return F.cross_entropy(output + correction, positions), output, positions


def draw_classes(labels: torch.Tensor, size: int, classes: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Sample ``size`` of ``classes`` classes: those of ``labels`` (batch,), and negatives drawn by ``seed``.

    If several processes share the batch, all get the same classes. ``size`` must exceed the number of images in the
    whole batch.

    Returns:
        The classes (size,), first those of the labels, sorted; the position of each label in them (batch,); and what to
        add to the logits (size,): 0, and for negatives the logarithm of their weight.
    """
    batch_labels = {label for shard in all_gather_objects(labels.tolist()) for label in shard}
    positives = torch.tensor(sorted(batch_labels), device=labels.device)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed)).to(labels.device)
    negatives = order[~torch.isin(order, positives)][: size - len(positives)]
    correction = torch.zeros(len(positives) + len(negatives), device=labels.device)
    if len(negatives):
        correction[len(positives) :] = math.log((classes - len(positives)) / len(negatives))
    return torch.cat([positives, negatives]), torch.searchsorted(positives, labels), correction
