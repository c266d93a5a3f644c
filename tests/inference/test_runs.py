"""predict.py --model-dir: the predictions of a run, compared with those of train.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import read_image
from datasets.digits import DIGIT_NAMES
from inference.classifier import build_preprocessing
from inference.trained_run import load_trainer
from tests.common import REPOSITORY
from tests.datasets.shapes import write_captions
from trainers.zsclip import ZeroshotCLIP
from vlm.similarity import normalize
from vlm.text.templates import SELECTED_TEMPLATES
from vlm.text.zero_shot import build_zero_shot_classifier
from vlm.tiny.weights import load_tiny

TINY = ("--backbone", "tiny")
SHORT = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", "True")
TEXT_ONLY = ("TRAINER.FINETUNE.PARTS", "('text',)")  # of CLIPFineTune: the image encoder stays the frozen one


def read_file_stats(folder: Path) -> dict[Path, tuple]:
    """Return path -> (modification time, size) of everything below ``folder``."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def few_digits(digits_root, tmp_path_factory) -> Path:
    """Return the root of a copy of the digits with eight test images for each digit."""
    root = tmp_path_factory.mktemp("few")
    shutil.copytree(digits_root / "digits", root / "digits")
    for folder in (root / "digits/images/val").iterdir():
        for path in sorted(folder.iterdir())[8:]:
            path.unlink()
    return root


@pytest.mark.parametrize(
    "trainer",
    [
        *("CoOp", "CoCoOp", "ZeroshotCLIP2", "LinearProbe", "TipAdapterF", "CLIPAdapter"),
        *("KgCoOp", "ProGrad", "CLIPLoRA"),
    ],
)
def test_predictions_of_a_run_have_the_accuracy_in_its_log(run, call, few_digits, trainer):
    options = (*SHORT, "TEST.NO_TEST", "False", "TRAINER.CLIPLORA.N_ITERS", 0)
    trained = run("--root", few_digits, *options, "TRAINER.NAME", trainer)
    assert trained.code == 0, trained.error
    before = read_file_stats(trained.folder)
    result = call(few_digits / "digits/images/val", "--model-dir", trained.folder, "--json")
    assert result.code == 0
    correct = [
        record["predictions"][0]["class"] == DIGIT_NAMES[int(Path(record["image"]).parent.name)]
        for record in result.records
    ]
    assert len(correct) == 80
    assert f"{100 * sum(correct) / len(correct):.2f}" == trained.accuracy
    assert read_file_stats(trained.folder) == before


@pytest.fixture
def three(digits_root) -> Path:
    """Return the path of a test image of the digit three."""
    return digits_root / "digits/images/val/3/0013.png"


def test_a_learned_context_works_with_new_classes(run, call, three):
    trained = run(*SHORT)
    old = call(three, "--model-dir", trained.folder, "--json", "--top-k", 10).probabilities()
    new = call(three, "--model-dir", trained.folder, "--json", "--classes", "nine", "three").probabilities()
    assert new["three"] == pytest.approx(old["three"] / (old["three"] + old["nine"]), abs=1e-5)
    unseen = call(three, "--model-dir", trained.folder, "--json", "--classes", "red_envelope", "cup")
    assert set(unseen.probabilities()) == {"red_envelope", "cup"}


@pytest.mark.parametrize(
    ("flags", "templates"),
    [(("--template", "the digit {}"), ["the digit {}"]), (("--ensemble", "select"), SELECTED_TEMPLATES)],
)
def test_the_prompts_of_a_fine_tuned_clip_may_be_replaced(run, call, three, tmp_path, flags, templates):
    descriptions = tmp_path / "descriptions.json"
    descriptions.write_text(json.dumps({name: [f"it says {name}"] for name in DIGIT_NAMES}))
    options = (*SHORT, *TEXT_ONLY, "OPTIM.LR", 0.001, "DATASET.DESCRIPTIONS", descriptions)
    trained = run(*options, trainer="CLIPFineTune")
    trainer = load_trainer(trained.folder)
    image = build_preprocessing(trainer.backbone.clip.visual)(read_image(three))[None]
    command = (three, "--json", "--model-dir", trained.folder, "--top-k", 10)
    for classes, names in (((), DIGIT_NAMES), (("--classes", "cup", "cat"), ["cup", "cat"])):
        result = call(*command, *classes, *flags)
        assert result.code == 0, result.error
        class_features = build_zero_shot_classifier(trainer.encoder, names, templates)
        logits = (
            trainer.model.clip.logit_scale.exp() * normalize(trainer.backbone.clip.visual(image)) @ class_features.T
        )
        probabilities = result.probabilities()
        assert [probabilities[name] for name in names] == pytest.approx(
            logits.detach().softmax(1)[0].tolist(), abs=1e-5
        )
    assert call(*command).probabilities() != call(*command, *flags).probabilities()


def test_a_run_on_captions_classifies_with_class_names_and_a_template(run, call, refused, three, tmp_path):
    write_captions(tmp_path / "photos", 8, lambda number: f"number {number}")
    data = ("--root", tmp_path / "photos", "--dataset-config-file", REPOSITORY / "configs/datasets/captions.yaml")
    data += ("--config-file", REPOSITORY / "configs/trainers/CLIPFineTune/tiny.yaml")
    trained = run(*data, "OPTIM.MAX_EPOCH", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 4, trainer="CLIPFineTune")
    command, classes = (three, "--json", "--model-dir", trained.folder), ("--classes", "three", "seven")
    refused(*command, "--template", "{}", fragments=["a run on captions", "--classes"])
    default, other = (call(*command, *classes, *flags).probabilities() for flags in ((), ("--template", "number {}")))
    assert default.keys() == other.keys() == {"three", "seven"}
    assert default != other


@pytest.mark.parametrize("flags", [("--template", "a {}."), ("--ensemble",)])
def test_a_run_with_a_learned_prompt_refuses_templates(run, refused, three, flags):
    message = "is of CoOp; they replace the prompts of runs of CLIPFineTune and CLIPLoRA alone"
    refused(three, "--model-dir", run(*SHORT).folder, *flags, fragments=["--template and --ensemble", message])


@pytest.mark.parametrize(
    ("trainer", "options", "message"),
    [
        ("CoOp", ("TRAINER.COOP.CSC", True), "--classes differs from the classes of the run (zero, one"),
        ("LinearProbe", (), "in another order"),
        ("TipAdapter", (), "in another order"),
    ],
)
def test_a_model_bound_to_its_classes_refuses_others(run, call, three, refused, trainer, options, message):
    command = (three, "--model-dir", run(*SHORT, *options, trainer=trainer).folder)
    assert call(*command).code == 0
    refused(*command, "--classes", *DIGIT_NAMES[1:], DIGIT_NAMES[0], fragments=[message, "--classes"])


def test_load_epoch_weights_and_the_folder_are_checked_against_the_run(run, call, three, refused, tmp_path):
    folder = run(*SHORT, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1, out="CoOp/seed1").folder
    command = (three, "--model-dir", folder, "--json")
    first, last, newest = (call(*command, *epoch) for epoch in (["--load-epoch", 1], ["--load-epoch", 2], []))
    assert last.probabilities() == newest.probabilities() != first.probabilities()
    refused(*command, "--load-epoch", 7, fragments=["epoch 7", "epochs there: 1, 2"])
    weights, changed = load_tiny(), tmp_path / "changed.safetensors"
    save_file({**weights, "logit_scale": weights["logit_scale"] + 1}, changed)
    refused(*command, "--weights", changed, fragments=["began with other weights", changed])
    refused(three, "--model-dir", folder.parent, fragments=["no run in", f"below it there are {folder}"])
    (folder / "result.json").unlink()
    refused(*command, fragments=[folder, "no result.json", "--classes"])
    assert call(*command, "--classes", *DIGIT_NAMES).output == newest.output


def test_a_run_predicts_its_classes_though_an_evaluation_took_the_place_of_its_record(run, call, three, refused):
    """As versions before this one let an evaluation do."""
    trained = run(*SHORT)
    flags = ("--eval-only", "--model-dir", trained.folder, "--allow-mismatch")
    new = run(*flags, *SHORT, "DATASET.SUBSAMPLE_CLASSES", "new", out="new")
    expected = call(three, "--model-dir", trained.folder, "--json").output
    record = trained.folder / "result.json"
    renamed = record.rename(f"{record}-2026-01-01-00-00-00")
    shutil.copy(new.folder / "result.json", record)
    assert call(three, "--model-dir", trained.folder, "--json").output == expected
    renamed.unlink()
    refused(three, "--model-dir", trained.folder, fragments=[trained.folder, "of a training run", "--classes"])
    assert call(three, "--model-dir", trained.folder, "--json", "--classes", *DIGIT_NAMES).output == expected


def test_a_run_that_only_evaluated_predicts_as_zero_shot_clip(run, call, few_digits, three):
    trained = run("--root", few_digits, "--eval-only", trainer="ZeroshotCLIP")
    assert not (trained.folder / "config.yaml").exists()
    zero_shot = call(three, "--json", "--classes", *DIGIT_NAMES, *TINY, "--template", "a photo of the number {}.")
    from_run = call(three, "--json", "--model-dir", trained.folder)
    assert from_run.probabilities() == pytest.approx(zero_shot.probabilities(), abs=1e-5)


# ---- a learned prompt without its config ----


@pytest.fixture
def prompt_alone(run, tmp_path):
    """Return a function that trains a prompt, and returns the run and a folder with its checkpoint alone."""

    def train_prompt(*options: object, trainer: str = "CoOp"):
        trained, folder = run(*SHORT, *options, trainer=trainer), tmp_path / "download"
        (folder / "prompt_learner").mkdir(parents=True)
        checkpoint = torch.load(trained.checkpoint(1), weights_only=True)
        content = {key: checkpoint[key] for key in ("state_dict", "epoch")}  # as the original's: without an origin
        torch.save(content, folder / "prompt_learner/model.pth.tar-1")
        return trained, folder

    return train_prompt


@pytest.fixture
def other_clip(tmp_path) -> Path:
    """Return the path of weights of a CLIP that has the tiny CLIP's shapes, but other word embeddings."""
    weights, path = load_tiny(), tmp_path / "other.safetensors"
    save_file({**weights, "token_embedding.weight": weights["token_embedding.weight"].flip(0).contiguous()}, path)
    return path


@pytest.mark.parametrize(
    ("trainer", "options"),
    [("CoOp", ()), ("CoOp", ("TRAINER.COOP.CSC", True, "TRAINER.COOP.N_CTX", 3)), ("CoCoOp", ())],
)
def test_a_prompt_alone_predicts_as_its_run_does(prompt_alone, call, three, trainer, options):
    trained, folder = prompt_alone(*options, trainer=trainer)
    expected = call(three, "--model-dir", trained.folder, "--json")
    for source in (trained.folder / "prompt_learner", trained.checkpoint(1)):
        assert call(three, "--model-dir", source, "--json").output == expected.output
    for source in (folder, folder / "prompt_learner", folder / "prompt_learner/model.pth.tar-1"):
        result = call(three, "--model-dir", source, *TINY, "--classes", *DIGIT_NAMES, "--json")
        assert result.code == 0, result.error
        assert result.probabilities() == pytest.approx(expected.probabilities(), abs=1e-5)
        assert ("taken to follow the context" in result.error) == (trainer == "CoOp")


def test_a_prompt_alone_needs_its_clip_and_classes(prompt_alone, refused, three, other_clip):
    trained, folder = prompt_alone()
    command, classes = (three, "--model-dir", folder), ("--classes", *DIGIT_NAMES)
    refused(*command, fragments=["no config.yaml", "--backbone", "--classes"])
    refused(*command, *TINY, fragments=["no result.json", "--classes"])
    refused(*command, "--weights", other_clip, *classes, fragments=[other_clip, "learned with another CLIP"])
    in_run = (three, "--model-dir", trained.checkpoint(1))
    refused(*in_run, *TINY, *classes, fragments=["--backbone does not go with --model-dir"])


def test_train_evaluates_a_prompt_alone_under_its_clip_only(prompt_alone, run, other_clip):
    trained, folder = prompt_alone("TEST.NO_TEST", False)
    for source in (folder, folder / "prompt_learner", folder / "prompt_learner/model.pth.tar-1"):
        assert run("--eval-only", "--model-dir", source, out="eval").accuracy == trained.accuracy
    weights = ("MODEL.BACKBONE.WEIGHTS", other_clip)
    refusals = [run("--eval-only", "--model-dir", folder, *weights, out="other")]
    refusals += [run("MODEL.INIT_WEIGHTS", folder / "prompt_learner/model.pth.tar-1", *SHORT, *weights, out="init")]
    for result in refusals:
        assert result.code == 2
        assert "learned with another CLIP" in result.error
    allowed = run("--eval-only", "--model-dir", folder, "--allow-mismatch", *weights, out="allowed")
    assert "Note: its context was learned with another CLIP" in allowed.log
    assert "learned with another CLIP" in allowed.record["allowed_mismatch"][0]


def test_a_prompt_alone_is_used_as_its_checkpoint_says_that_it_was_learned(run, call, refused, three, tmp_path):
    trained = run(*SHORT, "TRAINER.COOP.CLASS_TOKEN_POSITION", "middle")
    path = shutil.copy(trained.checkpoint(1), tmp_path / "model.pth.tar-1")
    expected = call(three, "--model-dir", trained.folder, "--json").probabilities()
    result = call(three, "--model-dir", path, *TINY, "--classes", *DIGIT_NAMES, "--json")
    assert result.probabilities() == pytest.approx(expected, abs=1e-5)
    assert "Note" not in result.error
    weights = load_tiny()
    name = next(name for name in weights if name.startswith("visual."))  # the start token's embedding is the same
    save_file({**weights, name: weights[name] + 1}, tmp_path / "other.safetensors")
    other = ("--weights", tmp_path / "other.safetensors", "--classes", *DIGIT_NAMES)
    refused(three, "--model-dir", path, *other, fragments=["learned with other weights"])


def test_the_folder_of_an_evaluation_names_the_folder_of_its_model(run, refused, three):
    trained = run(*SHORT)
    run("--eval-only", "--model-dir", trained.folder, *SHORT)
    fragments = ["holds an evaluation", f"the model is in {trained.folder}"]
    refused(three, "--model-dir", trained.folder / "eval-Digits-test", fragments=fragments)


# ---- logits and cosines ----


@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "CoOp", "CoCoOp", "CLIPFineTune"])
def test_json_has_logits_and_cosines_beside_probabilities(run, call, three, trainer):
    folder = run(*SHORT, *TEXT_ONLY * (trainer == "CLIPFineTune"), trainer=trainer).folder
    (record,) = call(three, "--model-dir", folder, "--json", "--top-k", 10).records
    assert set(record["predictions"][0]) == {"class", "probability", "logit", "cosine"}
    logits = torch.tensor([entry["logit"] for entry in record["predictions"]])
    probabilities = [entry["probability"] for entry in record["predictions"]]
    assert logits.softmax(0).tolist() == pytest.approx(probabilities, abs=1e-6)
    trainer = load_trainer(folder)
    image = build_preprocessing(trainer.backbone.clip.visual)(read_image(three))[None]
    features = trainer.backbone.clip.visual(image)
    if hasattr(trainer, "linear_head"):
        weight, _ = trainer.linear_head()
        expected = (normalize(features) @ normalize(weight).T)[0]
    else:  # CoCoOp: the class features are those under this image
        expected = trainer.model_inference(features)[0] / trainer.model.logit_scale.exp()
    cosines = {entry["class"]: entry["cosine"] for entry in record["predictions"]}
    assert [cosines[name] for name in DIGIT_NAMES] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("trainer", ["CLIPAdapter", "TipAdapter", "LinearProbe", "Shifted"])
def test_logits_that_are_no_cosines_have_none(run, call, three, trainer):
    folder = run(*SHORT, trainer=trainer).folder
    (record,) = call(three, "--model-dir", folder, "--json").records
    assert set(record["predictions"][0]) == {"class", "probability", "logit"}


@TRAINER_REGISTRY.register(force=True)
class Shifted(ZeroshotCLIP):
    """Zero-shot CLIP with other logits, which inherits the rest."""

    def model_inference(self, input):
        return super().model_inference(input) + 1


def test_a_learned_prompt_with_nan_is_refused(run, call, three, tmp_path):
    trained = run(*SHORT)
    content = torch.load(trained.checkpoint(1), weights_only=True)
    content["state_dict"]["ctx"][0, 0] = torch.nan
    torch.save(content, trained.checkpoint(1))
    alone = tmp_path / "alone/model.pth.tar-1"
    alone.parent.mkdir()
    shutil.copy(trained.checkpoint(1), alone)
    for options in ((trained.folder,), (alone, *TINY, "--classes", "nine", "three")):
        result = call(three, "--json", "--model-dir", *options)
        assert (result.code, result.output) == (2, "")
        assert "values of ctx are NaN or infinite" in result.error
