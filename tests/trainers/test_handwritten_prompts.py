"""Hand-written prompts of a run: lists of templates, descriptions, and the prompts in the log."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from datasets.digits import DIGIT_NAMES
from tests.common import REPOSITORY
from vlm.similarity import normalize
from vlm.text.zero_shot import build_zero_shot_classifier

TEMPLATES = ["a photo of a {}.", "one {}."]
SHORT = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1)


@pytest.fixture
def descriptions(tmp_path):
    """Return the path of a JSON file with sentences for each digit, as many as its number and one."""
    path = tmp_path / "descriptions.json"
    sentences = {name: [f"a {name} in style {i}." for i in range(n + 1)] for n, name in enumerate(DIGIT_NAMES)}
    path.write_text(json.dumps(sentences))
    return path


@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "CLIPAdapter", "TipAdapter"])
def test_a_list_of_templates_is_an_ensemble_and_descriptions_replace_it(digits_trainer, descriptions, trainer):
    config = "CoOp" if trainer == "ZeroshotCLIP" else trainer
    several = digits_trainer(config, "TRAINER.NAME", trainer, "DATASET.TEMPLATE", TEMPLATES)
    encoder = several.backbone.build_text_encoder()
    torch.testing.assert_close(several.class_features, build_zero_shot_classifier(encoder, DIGIT_NAMES, TEMPLATES))
    described = digits_trainer(config, "TRAINER.NAME", trainer, "DATASET.DESCRIPTIONS", descriptions)
    sentences = list(json.loads(descriptions.read_text()).values())[2]
    feature = normalize(encoder.encode(encoder.tokenize(sentences))).mean(0, keepdim=True)
    torch.testing.assert_close(described.class_features[2:3], normalize(feature))


@pytest.mark.parametrize(
    ("trainer", "options", "prompts"),
    [
        (
            "ZeroshotCLIP",
            (),
            ["a photo of the number zero.", "a photo of the number one.", "a photo of the number two."],
        ),
        ("ZeroshotCLIP2", (), ["itap of a zero.", "itap of a one.", "itap of a two."]),
        ("TipAdapter", ("DATASET.TEMPLATE", TEMPLATES), [f"a photo of a {name}." for name in ("zero", "one", "two")]),
        ("CoOp", ("TRAINER.COOP.N_CTX", 3), ["X X X zero.", "X X X one.", "X X X two."]),
        (
            "CoCoOp",
            ("TRAINER.COCOOP.CTX_INIT", "a_photo_of"),
            [f"a photo of {name}." for name in ("zero", "one", "two")],
        ),
        (
            "CoOp",
            ("TRAINER.COOP.CTX_INIT", "a photo of", "TRAINER.COOP.CLASS_TOKEN_POSITION", "middle"),
            [f"a {name} photo of." for name in ("zero", "one", "two")],
        ),
    ],
)
def test_the_log_shows_the_number_of_classes_and_the_first_prompts(digits_trainer, capsys, trainer, options, prompts):
    config = trainer if trainer == "TipAdapter" else "CoOp"
    digits_trainer(config, "TRAINER.NAME", trainer, *options)
    quoted = ", ".join(f'"{prompt}"' for prompt in prompts)
    assert f"10 classes; the first prompts: {quoted}\n" in capsys.readouterr().out


def test_the_record_has_the_checksum_of_the_descriptions_and_a_changed_file_is_noticed(
    run, descriptions, digits_root, capsys
):
    options = ("--config-file", REPOSITORY / "configs/trainers/CLIPAdapter/tiny.yaml", *SHORT)
    options = (*options, "DATASET.DESCRIPTIONS", descriptions)
    trained = run(*options, trainer="CLIPAdapter")
    assert 'the first prompts: "a zero in style 0.", "a one in style 0."' in trained.log
    checksum = hashlib.sha256(descriptions.read_bytes()).hexdigest()
    assert trained.record["descriptions"] == {"file": str(descriptions), "sha256": checksum}
    descriptions.write_text(descriptions.read_text().replace("style", "kind"))
    resumed = run(*options, trainer="CLIPAdapter")
    assert resumed.code == 2
    assert f"other descriptions {checksum[:12]} -> " in resumed.error


def test_fine_tuning_draws_a_prompt_for_each_class_and_epoch(digits_trainer, descriptions):
    options = ("TEST.EVALUATOR", "Classification", "DATASET.NUM_SHOTS", 2)
    trainer = digits_trainer("CLIPFineTune", *options, "DATASET.DESCRIPTIONS", descriptions)
    items, drawn = trainer.train_loader_x.dataset.data_source, set()
    sentences = json.loads(descriptions.read_text())
    for trainer.epoch in range(20):
        captions = [trainer.caption(index) for index in range(len(items))]
        assert all(caption in sentences[item.classname] for caption, item in zip(captions, items, strict=True))
        assert len(set(captions)) == 10  # images of a class have the same caption: they are no negatives
        drawn.add(captions[-1])
    assert len(drawn) > 3
