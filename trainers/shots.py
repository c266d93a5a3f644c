"""Functions for models on frozen image features: shots, validation, class binding; and all methods' training steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from dassl.config.merge import flatten
from dassl.data.data_manager import TrainLoader, build_data_loader
from dassl.data.features import StoredFeatures, build_feature_loader
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, check_at_least, derive_seed, load_pretrained_weights
from vlm.similarity import normalize

from .backbone import Backbone, load_backbone
from .prompts import HandwrittenPrompts

RELIABLE_VAL_SHOTS = 4  # validation images a class; with 1, Tip-Adapter's search chose worse values than its defaults
# Length of the class weights that a trained classifier starts from: about that of CLIP's text features, which the
# authors' code of TaskRes and CLAP does not normalise, so that their learning rates and penalties suit it.
TEXT_NORM = 10.0


def load_zero_shot(trainer: TrainerX) -> tuple[Backbone, torch.Tensor]:
    """Load CLIP and encode the hand-written prompts; return CLIP and unit class features (classes, dim), fp32.

    It sets ``feature_extractor`` and the prompts' ``provenance`` on the trainer.
    """
    trainer.backbone = backbone = load_backbone(trainer)  # type: ignore[attr-defined]  # the prompts read it
    prompts = HandwrittenPrompts(trainer)
    class_features = prompts.encode(backbone).float()
    trainer.feature_extractor = backbone.build_feature_extractor()
    trainer.provenance = prompts.provenance
    return backbone, class_features


def register_feature_model(
    trainer: TrainerX, backbone: Backbone, name: str, model: nn.Module, has_class_weights=True, optimize=True, **options
) -> None:
    """Register ``model`` as ``name`` and set it as the trainer's, after its CLIP is loaded.

    Trainable parameters start from MODEL.INIT_WEIGHTS, if set, and get a schedule and an optimizer with these
    ``options``. Without any, or if not ``optimize``, the model is computed in a single epoch. With
    ``has_class_weights``, its checkpoints fit these classes alone.
    """
    cfg = trainer.cfg
    trainer.model = model.to(trainer.device)
    if has_class_weights:
        bind_classnames(model, trainer.dm.dataset.classnames, trainer.device)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trainable and optimize:
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(model, cfg.MODEL.INIT_WEIGHTS)
        optim = build_optimizer(model, cfg.OPTIM, [{"params": trainable, **options}] if options else None)
        trainer.register_model(name, model, optim, build_lr_scheduler(optim, cfg.OPTIM))
    else:
        trainer.register_model(name, model)
        trainer.max_epoch = 1
    trainer.provenance = {**backbone.report_parameters(trainer), **trainer.provenance}


def register_fitted(trainer: TrainerX, name: str, trained=(), eps=1e-8, **sizes: tuple[int, ...]) -> None:
    """Register a model of zeros of these ``sizes``, for what a method computes from the shots.

    Those whose names are in ``trained`` are parameters, whose optimizer has this ``eps``.
    """
    model = nn.Module()
    for tensor, size in sizes.items():
        zeros = torch.zeros(size)
        setattr(model, tensor, nn.Parameter(zeros) if tensor in trained else nn.Buffer(zeros))
    model.register_load_state_dict_pre_hook(resize_to_checkpoint)
    register_feature_model(trainer, trainer.backbone, name, model, eps=eps)  # type: ignore[attr-defined]


def resize_to_checkpoint(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """Give the matrices of ``module`` as many rows as they have in a checkpoint (load-state-dict pre-hook)."""
    for name, matrix in [*module.named_parameters(), *module.named_buffers()]:
        if matrix.ndim == 2 and len(saved := state_dict.get(prefix + name, matrix)) != len(matrix):
            matrix.data = matrix.new_zeros(len(saved), matrix.shape[1])


def check_shots_cfg(trainer: TrainerX, cfg: CfgNode) -> None:
    """Raise ``UserError`` for MODEL.INIT_WEIGHTS, as the shots give the weights, or too low settings."""
    if cfg.MODEL.INIT_WEIGHTS:
        problem = f"{cfg.TRAINER.NAME} starts from the training images, not from MODEL.INIT_WEIGHTS"
        raise UserError(f"{problem}; to evaluate a finished run, use --eval-only --model-dir")
    for key, value in flatten(cfg.TRAINER):
        if type(value) in (int, float):
            check_at_least(value, 1 if key.endswith(".AUGMENT_EPOCH") else 0, f"TRAINER.{key}")


def collect_features(trainer: TrainerX, loader: Iterable[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the fp32 features (images, embed_dim), not normalised, and labels (images,) of a loader of features."""
    batches = [trainer.parse_batch_train(batch)[:2] for batch in loader]
    features, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    return features.float(), labels


def build_shots_loader(trainer: TrainerX, augmented: bool) -> DataLoader:
    """Return a loader of the features of all training images, in their order.

    If ``augmented``, each pass has new random views by the training transforms; else the test transforms apply.
    """
    cfg, images = trainer.cfg, trainer.train_loader_x.dataset.dataset
    threads, batch_size = trainer.train_loader_x.dataset.threads, cfg.DATALOADER.TEST.BATCH_SIZE
    loader: DataLoader
    if augmented:
        loader = TrainLoader(images, batch_size=batch_size, num_workers=threads)
    else:
        source, transform = trainer.dm.dataset.train_x, trainer.test_loader.dataset.transform
        loader = build_data_loader(cfg, data_source=source, batch_size=batch_size, tfm=transform, is_train=False)
    assert trainer.feature_extractor is not None  # build_model of these methods sets it
    return build_feature_loader(loader, trainer.feature_extractor, "train")


@torch.no_grad()
def collect_shots(trainer: TrainerX, views=0, average=True, every_class=True) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit features (shots, dim) of all training images, fp32, in their order, and their labels (shots,).

    Each is the normalised mean over ``views`` random views by the training transforms; 0: the view of a test image.
    If not ``average``, each view has a row. A line of the log has the numbers of shots and views. If ``every_class``,
    each must have an image (``check_shots``).
    """
    loader = build_shots_loader(trainer, augmented=views > 0)
    is_random = getattr(getattr(loader.dataset, "transform", None), "is_random", True)  # if not, all views are equal
    is_random = is_random and not isinstance(trainer.feature_extractor, StoredFeatures)
    count = views if views and is_random else 1
    features, labels = zip(*(collect_features(trainer, loader) for _ in range(count)), strict=True)
    shots, dim = features[0].shape
    print(f"Shots: {shots:,} features of {dim:,} numbers, {count} view{'s' * (count > 1)} each")
    if every_class:
        check_shots(trainer, labels[0])
    if average:
        return normalize(torch.stack(features).mean(0)), labels[0]
    return normalize(torch.cat(features)), torch.cat(labels)


def check_shots(trainer: TrainerX, labels: torch.Tensor) -> None:
    """Raise ``UserError`` for a class without a training image among ``labels`` (shots,)."""
    present = set(labels.tolist())
    if missing := [name for label, name in trainer.lab2cname.items() if label not in present]:
        problem = f"{trainer.cfg.TRAINER.NAME} needs a training image of each class; without: {', '.join(missing)}"
        raise UserError(f"{problem}. --trainer TipAdapter or TaskRes does without")


def collect_validation_features(trainer: TrainerX) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the features (images, embed_dim), not normalised, and labels (images,) of the validation images.

    With PROTOCOL none, without such images, or if some are test images (DATASET.VAL_IS_TEST), it prints a note and
    returns None.
    """
    if trainer.cfg.PROTOCOL == "none":
        print("Nothing is chosen (PROTOCOL none)")
        return None
    if trainer.val_loader is None:
        print("There are no validation images to choose on")
        return None
    test = {item.impath for item in trainer.dm.dataset.test}
    if any(item.impath in test for item in trainer.dm.dataset.val):
        print("Nothing is chosen on the validation images: they are test images (DATASET.VAL_IS_TEST)")
        return None
    features, labels = collect_features(trainer, trainer.val_loader)
    fewest = int(labels.bincount(minlength=trainer.num_classes).min())
    if fewest < RELIABLE_VAL_SHOTS:
        few = f"{fewest} validation image{'s' * (fewest != 1)} of a class"
        print(f"Note: the choice rests on {few}, and may be worse than the papers' values (PROTOCOL none)")
    return features, labels


@torch.no_grad()
def search_settings(
    trainer: TrainerX, initial: dict[str, float], grids: Sequence[Sequence[float]], logits: Callable[..., torch.Tensor]
) -> tuple[float, ...]:
    """Return the values of the settings with the best score on validation images; print them.

    Args:
        initial: names and initial values. They win a tie, and stay if there is nothing to choose on.
        grids: the values of each setting, all of whose combinations are tried.
        logits: returns what the method adds to the zero-shot logits of unit features (images, dim): for n values
            (n, 1, 1) of the first setting and one of each other (n, images, classes).
    """
    best = tuple(initial.values())
    if validation := collect_validation_features(trainer):
        features, labels = normalize(validation[0]), validation[1]
        zero_shot = trainer.backbone.logits(features, trainer.class_features)  # type: ignore[attr-defined]
        scored: list[tuple[tuple[float, float], tuple[float, ...]]] = []
        for values, others in [(best[:1], best[1:]), *((grids[0], others) for others in product(*grids[1:]))]:
            added = logits(features, features.new_tensor(values)[:, None, None], *others)
            scored += zip(score_candidates(zero_shot + added, labels), [(v, *others) for v in values], strict=True)
        (accuracy, _), best = max(scored, key=lambda candidate: candidate[0])
        print(f"Searched on {len(labels):,} validation images: {accuracy:.2f}% of them")
    print(", ".join(f"{name} {value:.4g}" for name, value in zip(initial, best, strict=True)))
    return best


def cross_entropy_step(trainer: TrainerX, batch: dict) -> dict[str, float]:
    """Train on ``batch`` by the cross-entropy of ``model_inference``; return ``loss`` and ``acc`` (%).

    A trainer sets it as its ``forward_backward``.
    """
    input, label, _ = trainer.parse_batch_train(batch)
    with torch.autocast(trainer.device.type, torch.float16, enabled=trainer.scaler is not None):
        output = trainer.model_inference(input)
        loss = F.cross_entropy(output, label)
    trainer.model_backward_and_update(loss)
    return end_step(trainer, output, label, loss=loss)


def end_step(trainer: TrainerX, output: torch.Tensor, label: torch.Tensor, **losses: torch.Tensor) -> dict[str, float]:
    """Step the schedules after an epoch's last batch; return ``losses`` and ``acc`` (%) of logits ``output``."""
    if trainer.batch_idx + 1 == trainer.num_batches:
        trainer.update_lr()
    return {**{name: loss.item() for name, loss in losses.items()}, "acc": compute_accuracy(output, label)[0].item()}


def bind_classnames(model: nn.Module, classnames: Sequence[str], device: torch.device) -> None:
    """Add checksums of the class names to ``model``, which then refuses checkpoints of other names or another order."""
    model.register_buffer("classes", torch.tensor([derive_seed(name) for name in classnames], device=device))
    model.register_load_state_dict_pre_hook(_check_classnames)


def _check_classnames(model: nn.Module, state_dict: dict, prefix: str, *hook_args) -> None:
    """Add a load error if the class checksums in ``state_dict`` differ from ``model``'s (load-state-dict pre-hook)."""
    expected = model.get_buffer("classes")
    if not torch.equal(state_dict.setdefault(f"{prefix}classes", expected).to(expected), expected):
        error_messages = hook_args[-1]
        error_messages.append(
            "it learned other classes than these, or these in another order, and has weights for those alone"
        )
        state_dict |= {prefix + key: value for key, value in model.state_dict().items()}  # no errors of shapes as well


def score_candidates(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[float, float]]:
    """Return the score of each candidate model: accuracy (%), then the negative cross-entropy, which breaks ties.

    Ties are common: a few validation images give many candidates the same accuracy.

    Args:
        logits: (candidates, images, classes).
        labels: (images,).
    """
    accuracy = 100 * (logits.argmax(-1) == labels).double().mean(-1)
    loss = F.cross_entropy(logits.transpose(1, 2), labels.expand(len(logits), -1), reduction="none").mean(-1)
    return list(zip(accuracy.tolist(), (-loss).tolist(), strict=True))
