"""Equality with values captured from the original CoOp: splits, schedules and transforms exactly, tensors to 1e-5.

The tolerance is relative to a tensor's largest value. tests/fixtures has excerpts of the captured values. Other tests
that use them: tests/tools/test_parse_test_res.py (logs), tests/datasets/test_original_draws.py (few-shot draws of data
sets with a split file), tests/test_imagenette.py (accuracies from photos).
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from dassl import engine
from dassl.config import get_cfg_default
from dassl.data.transforms import build_transform
from dassl.optim import build_lr_scheduler, build_optimizer
from datasets import class_folders
from datasets.imagenet import ImageNet
from tests.common import REPOSITORY
from tests.fixtures.make_parity import FOLDER, SIZES, checksums, drawing, seeded_clip
from trainers.backbone import load_backbone
from trainers.coop import CoOp
from trainers.zsclip import ZeroshotCLIP
from vlm.clip.load import load_clip
from vlm.images.encoder import build_image_encoder
from vlm.text.encoder import TextEncoder
from vlm.text.tokenizer import count_tokens, tokenize

FACTS = json.loads((FOLDER / "parity.json").read_text(encoding="utf-8"))
CLASSNAMES = FACTS["classnames"]
CONTEXTS = {  # config overrides for the initial context, by the names of the captured values
    "init4": ("TRAINER.COOP.CTX_INIT", "a photo of a"),
    "rand4": ("TRAINER.COOP.N_CTX", 4),
    "rand4_csc": ("TRAINER.COOP.N_CTX", 4, "TRAINER.COOP.CSC", True),
    "rand16": ("TRAINER.COOP.N_CTX", 16),
}
SCHEDULES = {  # config overrides, by the names of the captured values
    "nowarm_const": ("OPTIM.LR_SCHEDULER", "single_step"),
    "nowarm_cosine50": ("OPTIM.LR_SCHEDULER", "cosine"),
    "warm1e-5_cosine50": ("OPTIM.LR_SCHEDULER", "cosine", "OPTIM.WARMUP_EPOCH", 1, "OPTIM.WARMUP_TYPE", "constant"),
}


@pytest.fixture(scope="module")
def captured(tmp_path_factory) -> SimpleNamespace:
    """The captured tensors by name, and a file of the CLIP weights they were captured with."""
    tensors = load_file(FOLDER / "parity.safetensors")
    clip = seeded_clip()
    clip |= {name[5:]: tensor.float() for name, tensor in tensors.items() if name.startswith("clip.")}
    clip["token_embedding.weight"].zero_()[tensors["tokens"]] = tensors["token_embedding"]
    weights = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(clip, weights)
    return SimpleNamespace(tensors=tensors, weights=weights)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Assert that tensors differ by at most ``tolerance`` times the largest value; ``expected`` may be an excerpt."""
    actual = actual.detach()[..., : expected.shape[-2], :: actual.shape[-1] // expected.shape[-1]]
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


class FeatureBatchMixin:
    """Gives a trainer one batch: the captured features of eight images, one of each of the first eight classes."""

    features: torch.Tensor

    def build_data_loader(self):
        self.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=CLASSNAMES))
        self.num_classes, self.lab2cname = len(CLASSNAMES), dict(enumerate(CLASSNAMES))
        batch = {"img": self.features, "label": torch.arange(8), "domain": torch.zeros(8)}
        self.train_loader_x = DataLoader([batch], batch_size=None)
        self.train_loader_u = self.val_loader = self.test_loader = None

    def build_model(self):
        super().build_model()
        self.feature_extractor = None  # the batch holds features already


def seeded_backbone(*args):
    backbone = load_backbone(*args)
    torch.manual_seed(1)  # as when the figures were captured
    return backbone


class RecordedCoOp(CoOp):
    """CoOp that records learning rate, loss, accuracy, gradient and context of each step in ``steps``."""

    def before_train(self):
        super().before_train()
        self.steps = []

    def forward_backward(self, batch):
        rate, context = self.get_current_lr(), self.model.prompt_learner.ctx
        step = {"lr": rate, **super().forward_backward(batch)}
        self.steps.append((step, context.grad.clone(), context.detach().clone()))
        return step


def build_trainer_on_features(trainer: type, captured, *values, out=""):
    """Return ``trainer`` on the captured features, with config overrides ``values``."""
    torch.manual_seed(0)  # load_cached_clip caches a CLIP by the random state before loading
    cfg = get_cfg_default()
    CoOp.extend_cfg(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.WEIGHTS", str(captured.weights), "INPUT.SIZE", (64, 64)])
    cfg.merge_from_list(["TRAINER.COOP.PREC", "fp32", "OPTIM.NAME", "sgd", "OPTIM.LR", 0.002, "OPTIM.MAX_EPOCH", 50])
    cfg.merge_from_list([*values, "OUTPUT_DIR", str(out), "TEST.NO_TEST", True])
    with patch("trainers.coop.load_backbone", seeded_backbone):
        return type("Small", (FeatureBatchMixin, trainer), {"features": captured.tensors["image_features"]})(cfg)


def drop_padding(tokens: torch.Tensor) -> list[list[int]]:
    return [row[row > 0].tolist() for row in tokens]


def test_zero_shot_clip_equals_the_original(captured):
    assert drop_padding(tokenize([f"a photo of a {name}." for name in CLASSNAMES])) == FACTS["zero_shot"]["tokens"]
    trainer = build_trainer_on_features(ZeroshotCLIP, captured)
    assert_close(trainer.class_features, captured.tensors["zs.text_features_normalised"])
    logits = trainer.model_inference(captured.tensors["image_features"])
    assert_close(logits, captured.tensors["zs.logits"])
    assert logits.argmax(1).tolist() == FACTS["zero_shot"]["predictions"]


@pytest.mark.parametrize("name", FACTS["prompts"])
def test_prompts_features_and_logits_equal_the_original(captured, name):
    """With CTX_INIT, the original ignores CSC; the contexts of all classes start equal here, so features are equal."""
    context, csc, position = name.split("_")
    values = *CONTEXTS[context], "TRAINER.COOP.CSC", csc == "cscTrue", "TRAINER.COOP.CLASS_TOKEN_POSITION", position
    model = build_trainer_on_features(CoOp, captured, *values).model
    learner, tensors = model.prompt_learner, captured.tensors
    assert_close(learner()[learner.index], tensors[f"{name}.prompts"])
    assert_close(model.text_encoder(learner(), learner.layout), tensors[f"{name}.text_features_raw"])
    assert_close(model(tensors["image_features"]), tensors[f"{name}.logits"])
    expected = FACTS["prompts"][name]
    shapes = {key: list(value.shape) for key, value in learner.state_dict().items()}
    copies = {"ctx": [10, 4, 64]} if (context, csc) == ("init4", "cscTrue") else {}
    assert shapes == expected["state_dict_keys"] | copies
    words = {"init4": "a photo of a", "rand4": "X X X X", "rand16": " ".join("X" * 16)}[context]
    tokens = tokenize([f"{words} {name}." for name in CLASSNAMES])
    assert [count_tokens(name) for name in CLASSNAMES] == expected["name_lens"]
    assert (TextEncoder.lengths(tokens) - 1).tolist() == expected["eot"]
    if position == "end" and csc == "cscFalse":
        assert drop_padding(tokens) == expected["tokens"]


@pytest.mark.parametrize("context", ["init4", "rand4", "rand4_csc"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_five_training_steps_equal_the_original(captured, tmp_path, schedule, context):
    """Five epochs of one batch, in the engine's loop, under a schedule over fifty epochs."""
    trainer = build_trainer_on_features(RecordedCoOp, captured, *SCHEDULES[schedule], *CONTEXTS[context], out=tmp_path)
    trainer.max_epoch = 5
    trainer.train()
    expected, tensors = FACTS["steps"][f"{schedule}.{context}"], captured.tensors
    largest = max(step["loss"] for step in expected)
    for number, ((step, gradient, ctx), reference) in enumerate(zip(trainer.steps, expected, strict=True), start=1):
        assert step["lr"] == pytest.approx(reference["lr"], rel=1e-12)
        assert step["loss"] == pytest.approx(reference["loss"], abs=1e-5 * largest)
        assert step["acc"] == reference["acc"]
        if number == 1:
            assert_close(gradient, tensors[f"train.{schedule}.{context}.grad0"])
        # The original's fifth context differs by up to 1.5e-5 from the one in double precision.
        assert_close(ctx, tensors[f"train.{schedule}.{context}.ctx{number}"], 2e-5 if number == 5 else 1e-5)
    assert trainer.optim.param_groups[0].items() >= FACTS["optimizer"].items()


@pytest.mark.parametrize("n_ctx", [4, 16])
def test_a_run_with_seed_1_starts_from_the_initial_context_of_the_original(captured, run, monkeypatch, n_ctx):
    built, build_trainer = [], engine.build_trainer
    monkeypatch.setattr(engine, "build_trainer", lambda cfg: built.append(build_trainer(cfg)) or built[0])
    values = "MODEL.BACKBONE.WEIGHTS", captured.weights, "INPUT.SIZE", "(64,64)", "TRAINER.COOP.N_CTX", n_ctx
    result = run("--no-train", *values)
    assert result.code == 0
    assert not (result.folder / "result.json").exists()
    assert_close(built[0].model.prompt_learner.ctx, captured.tensors[f"fullpath_seed1_ctx{n_ctx}"])


@pytest.mark.parametrize("resume_at", [0, 3])
@pytest.mark.parametrize("name", FACTS["schedules"])
def test_learning_rates_equal_the_original(name, resume_at):
    """Also in a run that is resumed after three epochs, in which the original keeps one rate for ever."""
    expected, optim = FACTS["schedules"][name], get_cfg_default().OPTIM
    optim.merge_from_list(["NAME", "sgd", "LR", 0.002, "LR_SCHEDULER", "cosine", "MAX_EPOCH", len(expected)])
    if "linearwarm3" in name:
        optim.merge_from_list(["WARMUP_EPOCH", 3])
    elif "constwarm1" in name:
        optim.merge_from_list(["WARMUP_EPOCH", 1, "WARMUP_TYPE", "constant", "WARMUP_RECOUNT", "norecount" not in name])

    def build():
        optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], optim)
        return optimizer, build_lr_scheduler(optimizer, optim)

    objects, rates = build(), []
    for epoch in range(len(expected)):
        if resume_at and epoch == resume_at:
            states, objects = [item.state_dict() for item in objects], build()
            for item, state in zip(objects, states, strict=True):
                item.load_state_dict(state)
        rates.append(objects[0].param_groups[0]["lr"])
        for item in objects:
            item.step()
    assert rates == pytest.approx(expected, rel=1e-12, abs=1e-17)


@pytest.fixture
def imagenette(tmp_path, monkeypatch):
    """Return a function that builds ImageNette's data set from its numbers of images per class, without images.

    Few-shot sampling depends only on positions in the sorted list of images. The images' names are these positions.
    """
    for label in range(len(CLASSNAMES)):
        for split in ("train", "val"):
            (tmp_path / f"imagenet/images/{split}/n{label}").mkdir(parents=True)
    lines = [f"n{label} {name}\n" for label, name in enumerate(CLASSNAMES)]
    (tmp_path / "imagenet/classnames.txt").write_text("".join(lines), encoding="utf-8")

    def scan(folder: Path) -> dict[str, bool]:
        counts = FACTS["splits"]["train_counts" if folder.parent.name == "train" else "test_counts"]
        label = int(folder.name[1:])
        return {f"{sum(counts[:label]) + number}.JPEG".zfill(10): False for number in range(counts[label])}

    def build(seed: int, *values) -> tuple[ImageNet, list[int]]:
        """Return the data set, and the positions of its training images."""
        cfg = get_cfg_default()
        cfg.merge_from_list(["DATASET.ROOT", str(tmp_path), "SEED", seed, *values])
        dataset = ImageNet(cfg)
        return dataset, [int(Path(item.impath).stem) for item in dataset.train_x]

    monkeypatch.setattr(class_folders, "scan_folder", scan)
    return build


@pytest.mark.parametrize("key", FACTS["splits"]["few_shots"])
def test_few_shot_draws_equal_the_original(imagenette, key):
    shots, seed = map(int, re.findall(r"\d+", key))
    _, drawn = imagenette(seed, "DATASET.NUM_SHOTS", shots)
    assert drawn == FACTS["splits"]["few_shots"][key]


@pytest.mark.parametrize("half", ["base", "new"])
def test_base_and_new_classes_equal_the_original(imagenette, half):
    expected = FACTS["splits"]["subsamples"][half]
    dataset, drawn = imagenette(1, "DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", half)
    assert drawn == expected["one_shot"]
    assert dataset.classnames == expected["classnames"]
    labels = [item.label for item in dataset.test]
    assert [labels.count(label) for label in range(5)] == expected["test_counts"]


def build_transforms(*values):
    """Return the transforms of testing and of training under CoOp's config."""
    cfg = get_cfg_default()
    CoOp.extend_cfg(cfg)
    cfg.merge_from_file(REPOSITORY / "configs/trainers/CoOp/rn50.yaml")
    cfg.merge_from_list(list(values))
    return build_transform(cfg, is_train=False), build_transform(cfg, is_train=True)


def test_transforms_equal_the_original():
    """On drawings; the expected checksums come from transforms that reproduce the captured checksums of photos."""
    drawings = {size: drawing(size) for size in FACTS["transforms"]}
    assert checksums(drawings, *build_transforms()) == FACTS["transforms"]


def test_image_features_equal_the_original(captured):
    """On drawings; the expected features come from an image encoder that reproduces the captured ones of photos."""
    clip, (transform, _) = load_clip("tiny", str(captured.weights))[0], build_transforms("INPUT.SIZE", (64, 64))
    features = build_image_encoder(clip.visual, "").encode(transform(drawing(size)) for size in SIZES)
    assert_close(torch.stack(list(features)), captured.tensors["drawing_features"])
