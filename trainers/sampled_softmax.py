"""Cross-entropy over some of many classes: an approximation, for a step that costs as much as those few.

Bengio & Senecal, Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language Model, 2008;
Jean et al., On Using Very Large Target Vocabulary for Neural Machine Translation, 2015. The classes of a batch's labels
are always in; the others are drawn uniformly without replacement, and each stands for as many as there are to a drawn
one. So the sum below the fraction of the softmax is estimated without bias. Its logarithm, the loss and the gradient
are not: they have a bias that falls with the number of classes drawn, and is none when all are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from dassl.distributed import all_gather_objects
from dassl.engine import TrainerX
from dassl.utils import UserError, check_at_least, derive_seed
from vlm.similarity import compute_logits, normalize


class SampledSoftmax:
    """CoOp's loss over TRAINER.COOP.SAMPLED_CLASSES of the classes."""

    def __init__(self, size: int, classes: int, seed: int | None):
        self.size, self.classes, self.seed = size, classes, seed

    @classmethod
    def of(cls, trainer: TrainerX) -> SampledSoftmax | None:
        """Return the loss that a trainer's settings ask for; None where it is over all classes."""
        size, batch = trainer.cfg.TRAINER.COOP.SAMPLED_CLASSES, trainer.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        check_at_least(size, 0, "TRAINER.COOP.SAMPLED_CLASSES")
        if not 0 < size < trainer.num_classes:
            return None
        if size <= batch:  # the classes of a batch's own labels are always in, and others are drawn beside them
            need = f"with DATALOADER.TRAIN_X.BATCH_SIZE {batch} it must be more than {batch}"
            raise UserError(f"TRAINER.COOP.SAMPLED_CLASSES is {size}; {need}")
        print(
            f"Sampled softmax: {size:,} of {trainer.num_classes:,} classes a step, an approximation "
            "(TRAINER.COOP.SAMPLED_CLASSES); loss and acc of a step are over these classes"
        )
        trainer.provenance = {**trainer.provenance, "sampled_classes": size}
        return cls(size, trainer.num_classes, trainer.seed)

    def __call__(self, model, image_features: torch.Tensor, labels: torch.Tensor, epoch: int, batch: int) -> tuple:
        """Return the loss, the logits (batch, sampled) and the labels (batch,) among the sampled classes."""
        sample = ClassSample.draw(labels, self.size, self.classes, derive_seed(self.seed, epoch, batch, "classes"))
        output = class_logits(model, image_features, sample.classes)
        return sample.loss(output), output, sample.labels


def class_logits(model, image_features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return CoOp's logits (batch, classes) for some ``classes`` (int64 numbers) alone."""
    prompts = model.prompt_learner.select_classes(model.prompt_learner.ctx, classes)
    return compute_logits(image_features, normalize(model.encode(*prompts)), model.logit_scale)


@dataclass(frozen=True)
class ClassSample:
    """The classes of one step."""

    classes: torch.Tensor  # (sampled,): those of the labels, then those drawn
    labels: torch.Tensor  # (batch,): where the class of each image comes among them
    correction: torch.Tensor  # (sampled,): what is added to logits

    @classmethod
    def draw(cls, labels: torch.Tensor, size: int, classes: int, seed: int) -> ClassSample:
        """``size`` of ``classes`` for ``labels`` (batch,). ``seed`` tells the draw. Of several processes, each of which
        has a part of the batch, all get the same classes; there must be more of them than images of the batch."""
        of_batch = {label for part in all_gather_objects(labels.tolist()) for label in part}
        own = torch.tensor(sorted(of_batch), device=labels.device)
        order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed)).to(labels.device)
        drawn = order[~torch.isin(order, own)][: size - len(own)]
        correction = torch.zeros(len(own) + len(drawn), device=labels.device)
        if len(drawn):
            correction[len(own) :] = math.log((classes - len(own)) / len(drawn))
        return cls(torch.cat([own, drawn]), torch.searchsorted(own, labels), correction)

    def loss(self, logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits + self.correction, self.labels)
