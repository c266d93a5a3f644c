"""predict.py caption, match and ask, with BLIP and BLIP-2."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.inference import models

transformers = pytest.importorskip("transformers", reason="needs the optional package transformers")
TEXTS = ["a cat", "two red dogs of what", "photo"]
CLASSES = {
    "caption": ("BlipForConditionalGeneration", "Blip2ForConditionalGeneration"),
    "ask": ("BlipForQuestionAnswering", "Blip2ForConditionalGeneration"),
    "match": ("BlipForImageTextRetrieval", "Blip2ForImageTextRetrieval"),
}
both = pytest.mark.parametrize("kind", ["blip", "blip2"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """By the name of the model's class."""
    root = tmp_path_factory.mktemp("models")
    names = {name for pair in CLASSES.values() for name in pair}
    return {name: (models.blip2 if "2" in name else models.blip)(root / name, name) for name in names}


@pytest.fixture
def say(folders, call):
    def run_it(command: str, *arguments: object, kind: str = "blip"):
        return call(command, *arguments, "--model", folders[CLASSES[command][kind == "blip2"]])

    return run_it


def library(folders, command: str, kind: str):
    """The library's own model and processor."""
    name = CLASSES[command][kind == "blip2"]
    model = getattr(transformers, name).from_pretrained(folders[name]).eval()
    processor = transformers.AutoProcessor.from_pretrained(folders[name])
    # Folders of early versions do not say how many tokens stand for the picture; without them it would be left out.
    assert getattr(processor, "num_query_tokens", None) is None
    processor.num_query_tokens = models.QUERIES
    return model, processor


@both
@pytest.mark.parametrize("prompt", [None, "a photo of"])
def test_captions_are_those_of_the_library(say, folders, pictures, kind, prompt):
    options = ["--prompt", prompt] if prompt else []
    records = say("caption", *pictures, *options, "--json", "--max-tokens", 12, kind=kind).records
    assert [record["image"] for record in records] == pictures
    model, processor = library(folders, "caption", kind)
    for record in records:
        inputs = processor(images=Image.open(record["image"]), text=prompt, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=12)
        assert record["caption"] == processor.decode(tokens[0], skip_special_tokens=True).strip()
        assert record["caption"].startswith(prompt or "")
    assert records[0]["caption"] != records[1]["caption"]  # the picture matters


@both
def test_answers_are_those_of_the_library(say, folders, pictures, kind):
    questions = ["what is red?", "two cats of what photo?"]
    records = say("ask", *pictures, "--question", *questions, "--json", "--max-tokens", 9, kind=kind).records
    assert [record["image"] for record in records] == pictures
    model, processor = library(folders, "ask", kind)
    for record in records:
        assert [entry["question"] for entry in record["answers"]] == questions
        for entry in record["answers"]:
            text = entry["question"] if kind == "blip" else f"Question: {entry['question']} Answer:"
            inputs = processor(images=Image.open(record["image"]), text=text, return_tensors="pt")
            tokens = model.generate(**inputs, max_new_tokens=9)[0]
            if kind == "blip2":
                tokens = tokens[inputs.input_ids.shape[1] :]
            assert len(tokens) <= 10
            assert entry["answer"] == processor.decode(tokens, skip_special_tokens=True).strip() != ""
    assert records[0]["answers"] != records[1]["answers"]  # the picture matters


@both
def test_matches_are_those_of_the_library(say, folders, pictures, kind, monkeypatch):
    """Of more texts than fit into one computation."""
    monkeypatch.setattr("inference.transformers_models.BATCH_TEXTS", 2)
    records = say("match", *pictures, "--text", *TEXTS, "--json", kind=kind).records
    assert [record["image"] for record in records] == pictures
    model, processor = library(folders, "match", kind)
    head = "use_itm_head" if kind == "blip" else "use_image_text_matching_head"
    seen = set()
    for record in records:
        assert [entry["text"] for entry in record["matches"]] == TEXTS
        for entry in record["matches"]:
            inputs = processor(images=Image.open(record["image"]), text=[entry["text"]], return_tensors="pt")
            with torch.no_grad():
                scores = [model(**inputs, **{head: use}, return_dict=True) for use in (True, False)]
            logits, cosine = (score["itm_score" if kind == "blip" else "logits_per_image"] for score in scores)
            assert entry["match"] == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-5)
            assert entry["cosine"] == pytest.approx(cosine.item(), abs=1e-5)
            seen.add(round(entry["match"], 4))
    assert len(seen) == 6  # each text and picture has its own


def test_for_people(say, pictures):
    lines = say("ask", *pictures, "--question", "what?", "--max-tokens", 3).output.splitlines()
    assert [line for line in lines if line in pictures] == pictures
    assert lines[1].split() == ["question", "answer"]
    assert lines[3].startswith("what?")
    alone = say("caption", pictures[0], "--max-tokens", 3).output
    assert say("caption", *pictures, "--max-tokens", 3).output.startswith(f"{pictures[0]}  {alone}")


def test_a_model_for_something_else(refused, folders, pictures):
    folder = folders["BlipForConditionalGeneration"]
    parts = [f"{folder} was not trained for match: it has no weights for"]
    refused("match", pictures[0], "--text", "cat", "--model", folder, parts=parts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption", "--prompt", ""], "--prompt: a text is empty"),
        (["caption", "--max-tokens", "0"], "--max-tokens is 0; it must be at least 1"),
        (["match", "--text", "cat " * 80], "has 82 tokens; the model reads at most 64"),
        (["ask", "--question", "what? " * 40], "has 82 tokens; the model reads at most 64"),
    ],
)
def test_mistakes(refused, folders, pictures, arguments, message):
    command, *options = arguments
    refused(command, pictures[0], *options, "--model", folders[CLASSES[command][0]], parts=[message])
