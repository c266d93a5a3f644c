"""The original CoOp's figures: splits, schedules and transforms exactly, tensors to 1e-5 of their largest value.

tests/fixtures has excerpts of them. Logs: tests/tools/test_parse_test_res.py; the few shots of data sets with a split
file: tests/datasets/test_original_draws.py; from photos to accuracies: tests/test_imagenette.py.
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

FACTS = json.loads((FOLDER / "parity.json").read_text())
CLASSNAMES = FACTS["classnames"]
CONTEXTS = {  # what a prompt learner begins with, by the names in the figures
    "init4": ("TRAINER.COOP.CTX_INIT", "a photo of a"),
    "rand4": ("TRAINER.COOP.N_CTX", 4),
    "rand4_csc": ("TRAINER.COOP.N_CTX", 4, "TRAINER.COOP.CSC", True),
    "rand16": ("TRAINER.COOP.N_CTX", 16),
}
SCHEDULES = {
    "nowarm_const": ("OPTIM.LR_SCHEDULER", "single_step"),
    "nowarm_cosine50": ("OPTIM.LR_SCHEDULER", "cosine"),
    "warm1e-5_cosine50": ("OPTIM.LR_SCHEDULER", "cosine", "OPTIM.WARMUP_EPOCH", 1, "OPTIM.WARMUP_TYPE", "constant"),
}


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> SimpleNamespace:
    """The captured tensors by name, and a file of the weights they were captured with."""
    tensors = load_file(FOLDER / "parity.safetensors")
    clip = seeded_clip()
    clip |= {name[5:]: tensor.float() for name, tensor in tensors.items() if name.startswith("clip.")}
    clip["token_embedding.weight"].zero_()[tensors["tokens"]] = tensors["token_embedding"]
    weights = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(clip, weights)
    return SimpleNamespace(tensors=tensors, weights=weights)


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """They differ by no more than ``tolerance`` times the largest value. ``expected`` may be an excerpt."""
    found = found.detach()[..., : expected.shape[-2], :: found.shape[-1] // expected.shape[-1]]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


class OnFeatures:
    """A trainer on the captured features of eight images, one of each of the first classes, in one batch."""

    features: torch.Tensor

    def build_data_loader(self):
        self.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=CLASSNAMES))
        self.num_classes, self.lab2cname = len(CLASSNAMES), dict(enumerate(CLASSNAMES))
        batch = {"img": self.features, "label": torch.arange(8), "domain": torch.zeros(8)}
        self.train_loader_x = DataLoader([batch], batch_size=None)
        self.train_loader_u = self.val_loader = self.test_loader = None

    def build_model(self):
        super().build_model()
        self.feature_extractor = None  # what the batch holds is not to be encoded


def seeded_backbone(*args):
    backbone = load_backbone(*args)
    torch.manual_seed(1)  # as when the figures were captured
    return backbone


class RecordedCoOp(CoOp):
    def before_train(self):
        super().before_train()
        self.steps = []

    def forward_backward(self, batch):
        rate, context = self.get_current_lr(), self.model.prompt_learner.ctx
        step = {"lr": rate, **super().forward_backward(batch)}
        self.steps.append((step, context.grad.clone(), context.detach().clone()))
        return step


def small(trainer: type, figures, *values, out=""):
    """The trainer on the captured features."""
    torch.manual_seed(0)  # load_shared keeps a CLIP for the random state before loading it
    cfg = get_cfg_default()
    CoOp.extend_cfg(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.WEIGHTS", str(figures.weights), "INPUT.SIZE", (64, 64)])
    cfg.merge_from_list(["TRAINER.COOP.PREC", "fp32", "OPTIM.NAME", "sgd", "OPTIM.LR", 0.002, "OPTIM.MAX_EPOCH", 50])
    cfg.merge_from_list([*values, "OUTPUT_DIR", str(out), "TEST.NO_TEST", True])
    with patch("trainers.coop.load_backbone", seeded_backbone):
        return type("Small", (OnFeatures, trainer), {"features": figures.tensors["image_features"]})(cfg)


def words_of(tokens: torch.Tensor) -> list[list[int]]:
    return [row[row > 0].tolist() for row in tokens]


def test_zero_shot_is_the_originals(figures):
    assert words_of(tokenize([f"a photo of a {name}." for name in CLASSNAMES])) == FACTS["zero_shot"]["tokens"]
    trainer = small(ZeroshotCLIP, figures)
    assert_close(trainer.class_features, figures.tensors["zs.text_features_normalised"])
    logits = trainer.model_inference(figures.tensors["image_features"])
    assert_close(logits, figures.tensors["zs.logits"])
    assert logits.argmax(1).tolist() == FACTS["zero_shot"]["predictions"]


@pytest.mark.parametrize("name", FACTS["prompts"])
def test_prompts_features_and_logits_are_the_originals(figures, name):
    """With CTX_INIT, the original ignores CSC; our copies for each class start equal, so the features are its."""
    context, csc, position = name.split("_")
    values = *CONTEXTS[context], "TRAINER.COOP.CSC", csc == "cscTrue", "TRAINER.COOP.CLASS_TOKEN_POSITION", position
    model = small(CoOp, figures, *values).model
    learner, tensors = model.prompt_learner, figures.tensors
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
        assert words_of(tokens) == expected["tokens"]


@pytest.mark.parametrize("context", ["init4", "rand4", "rand4_csc"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_five_steps_are_the_originals(figures, tmp_path, schedule, context):
    """In the engine's loop: five epochs of one batch, under a schedule over fifty."""
    trainer = small(RecordedCoOp, figures, *SCHEDULES[schedule], *CONTEXTS[context], out=tmp_path)
    trainer.max_epoch = 5
    trainer.train()
    expected, tensors = FACTS["steps"][f"{schedule}.{context}"], figures.tensors
    largest = max(step["loss"] for step in expected)
    for number, ((step, gradient, ctx), due) in enumerate(zip(trainer.steps, expected, strict=True), start=1):
        assert step["lr"] == pytest.approx(due["lr"], rel=1e-12)
        assert step["loss"] == pytest.approx(due["loss"], abs=1e-5 * largest)
        assert step["acc"] == due["acc"]
        if number == 1:
            assert_close(gradient, tensors[f"train.{schedule}.{context}.grad0"])
        # The original's own fifth context is up to 1.5e-5 away from that in double precision.
        assert_close(ctx, tensors[f"train.{schedule}.{context}.ctx{number}"], 2e-5 if number == 5 else 1e-5)
    assert trainer.optim.param_groups[0].items() >= FACTS["optimizer"].items()


@pytest.mark.parametrize("n_ctx", [4, 16])
def test_a_run_with_seed_1_starts_from_the_originals_context(figures, run, monkeypatch, n_ctx):
    built, build_trainer = [], engine.build_trainer
    monkeypatch.setattr(engine, "build_trainer", lambda cfg: built.append(build_trainer(cfg)) or built[0])
    values = "MODEL.BACKBONE.WEIGHTS", figures.weights, "INPUT.SIZE", "(64,64)", "TRAINER.COOP.N_CTX", n_ctx
    result = run("--no-train", *values)
    assert result.code == 0
    assert not (result.folder / "result.json").exists()
    assert_close(built[0].model.prompt_learner.ctx, figures.tensors[f"fullpath_seed1_ctx{n_ctx}"])


@pytest.mark.parametrize("stop", [0, 3])
@pytest.mark.parametrize("name", FACTS["schedules"])
def test_schedules_are_the_originals(name, stop):
    """Also those of a run that stops after three epochs and goes on, which in the original keeps one rate for ever."""
    expected, optim = FACTS["schedules"][name], get_cfg_default().OPTIM
    optim.merge_from_list(["NAME", "sgd", "LR", 0.002, "LR_SCHEDULER", "cosine", "MAX_EPOCH", len(expected)])
    if "linearwarm3" in name:
        optim.merge_from_list(["WARMUP_EPOCH", 3])
    elif "constwarm1" in name:
        optim.merge_from_list(["WARMUP_EPOCH", 1, "WARMUP_TYPE", "constant", "WARMUP_RECOUNT", "norecount" not in name])

    def make():
        optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], optim)
        return optimizer, build_lr_scheduler(optimizer, optim)

    parts, found = make(), []
    for epoch in range(len(expected)):
        if stop and epoch == stop:
            states, parts = [part.state_dict() for part in parts], make()
            for part, state in zip(parts, states, strict=True):
                part.load_state_dict(state)
        found.append(parts[0].param_groups[0]["lr"])
        for part in parts:
            part.step()
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-17)


@pytest.fixture
def imagenette(tmp_path, monkeypatch):
    """The data set, with as many images of each class as ImageNette has: sampling goes by places in the sorted lists
    alone. The images are named by these places, and are nowhere."""
    for label in range(len(CLASSNAMES)):
        for split in ("train", "val"):
            (tmp_path / f"imagenet/images/{split}/n{label}").mkdir(parents=True)
    lines = [f"n{label} {name}\n" for label, name in enumerate(CLASSNAMES)]
    (tmp_path / "imagenet/classnames.txt").write_text("".join(lines))

    def scan(folder: Path) -> dict[str, bool]:
        counts = FACTS["splits"]["train_counts" if folder.parent.name == "train" else "test_counts"]
        label = int(folder.name[1:])
        return {f"{sum(counts[:label]) + number}.JPEG".zfill(10): False for number in range(counts[label])}

    def build(seed: int, *values) -> tuple[ImageNet, list[int]]:
        cfg = get_cfg_default()
        cfg.merge_from_list(["DATASET.ROOT", str(tmp_path), "SEED", seed, *values])
        dataset = ImageNet(cfg)
        return dataset, [int(Path(item.impath).stem) for item in dataset.train_x]

    monkeypatch.setattr(class_folders, "scan_folder", scan)
    return build


@pytest.mark.parametrize("key", FACTS["splits"]["few_shots"])
def test_few_shots_are_the_originals(imagenette, key):
    shots, seed = map(int, re.findall(r"\d+", key))
    _, chosen = imagenette(seed, "DATASET.NUM_SHOTS", shots)
    assert chosen == FACTS["splits"]["few_shots"][key]


@pytest.mark.parametrize("half", ["base", "new"])
def test_base_and_new_classes_are_the_originals(imagenette, half):
    expected = FACTS["splits"]["subsamples"][half]
    dataset, chosen = imagenette(1, "DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", half)
    assert chosen == expected["one_shot"]
    assert dataset.classnames == expected["classnames"]
    labels = [item.label for item in dataset.test]
    assert [labels.count(label) for label in range(5)] == expected["test_counts"]


def transforms(*values):
    """Those of a test and of training, under CoOp's config."""
    cfg = get_cfg_default()
    CoOp.extend_cfg(cfg)
    cfg.merge_from_file(REPOSITORY / "configs/trainers/CoOp/rn50.yaml")
    cfg.merge_from_list(list(values))
    return build_transform(cfg, is_train=False), build_transform(cfg, is_train=True)


def test_transforms_are_the_originals():
    """Bit for bit. The checksums are of drawings, under transforms that give the captured checksums of photos."""
    drawings = {size: drawing(size) for size in FACTS["transforms"]}
    assert checksums(drawings, *transforms()) == FACTS["transforms"]


def test_image_features_are_the_originals(figures):
    """Of drawings, by an image tower that gives the captured features of photos."""
    clip, (transform, _) = load_clip("tiny", str(figures.weights))[0], transforms("INPUT.SIZE", (64, 64))
    features = build_image_encoder(clip.visual, "").encode(transform(drawing(size)) for size in SIZES)
    assert_close(torch.stack(list(features)), figures.tensors["drawing_features"])
