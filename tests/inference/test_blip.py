"""predict.py caption, match and ask, with BLIP and BLIP-2."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import predict
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
def pictures(tmp_path) -> list[str]:
    return [models.picture(tmp_path / f"pictures/{number}.png", number) for number in range(2)]


@pytest.fixture
def say(folders, capsys):
    """Call a command; returns the exit code, the lines of its output, and its messages."""

    def call(command: str, *arguments: object, kind: str = "blip") -> tuple[int, list[str], str]:
        folder = folders[CLASSES[command][kind == "blip2"]]
        code = predict.main([str(argument) for argument in (command, *arguments, "--model", folder)])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return call


def library(folders, command: str, kind: str):
    """The library's own model and processor."""
    name = CLASSES[command][kind == "blip2"]
    model = getattr(transformers, name).from_pretrained(folders[name]).eval()
    processor = transformers.AutoProcessor.from_pretrained(folders[name])
    processor.num_query_tokens = models.QUERIES
    return model, processor


@both
@pytest.mark.parametrize("prompt", [None, "a photo of"])
def test_captions_are_those_of_the_library(say, folders, pictures, kind, prompt):
    options = ["--prompt", prompt] if prompt else []
    code, lines, _ = say("caption", *pictures, *options, "--json", "--max-tokens", 12, kind=kind)
    assert code == 0
    model, processor = library(folders, "caption", kind)
    captions = []
    for line, path in zip(lines, pictures, strict=True):
        record = json.loads(line)
        assert record["image"] == path
        inputs = processor(images=Image.open(path), text=prompt, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=12)
        assert record["caption"] == processor.decode(tokens[0], skip_special_tokens=True).strip()
        assert record["caption"].startswith(prompt or "")
        captions.append(record["caption"])
    assert captions[0] != captions[1]  # the picture matters


@both
def test_answers_are_those_of_the_library(say, folders, pictures, kind):
    questions = ["what is red?", "two cats of what photo?"]
    code, lines, _ = say("ask", *pictures, "--question", *questions, "--json", "--max-tokens", 9, kind=kind)
    assert code == 0
    model, processor = library(folders, "ask", kind)
    for line, path in zip(lines, pictures, strict=True):
        record = json.loads(line)
        assert record["image"] == path
        assert [entry["question"] for entry in record["answers"]] == questions
        for entry in record["answers"]:
            text = entry["question"] if kind == "blip" else f"Question: {entry['question']} Answer:"
            inputs = processor(images=Image.open(path), text=text, return_tensors="pt")
            tokens = model.generate(**inputs, max_new_tokens=9)[0]
            if kind == "blip2":
                tokens = tokens[inputs.input_ids.shape[1] :]
            assert len(tokens) <= 10
            assert entry["answer"] == processor.decode(tokens, skip_special_tokens=True).strip() != ""


@both
def test_matches_are_those_of_the_library(say, folders, pictures, kind):
    code, lines, _ = say("match", *pictures, "--text", *TEXTS, "--json", kind=kind)
    assert code == 0
    model, processor = library(folders, "match", kind)
    head = "use_itm_head" if kind == "blip" else "use_image_text_matching_head"
    seen = set()
    for line, path in zip(lines, pictures, strict=True):
        record = json.loads(line)
        assert record["image"] == path
        assert [entry["text"] for entry in record["matches"]] == TEXTS
        for entry in record["matches"]:
            inputs = processor(images=Image.open(path), text=[entry["text"]], return_tensors="pt")
            with torch.no_grad():
                scores = [model(**inputs, **{head: use}, return_dict=True) for use in (True, False)]
            logits, cosine = (score["itm_score" if kind == "blip" else "logits_per_image"] for score in scores)
            assert entry["match"] == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-5)
            assert entry["cosine"] == pytest.approx(cosine.item(), abs=1e-5)
            seen.add(round(entry["match"], 4))
    assert len(seen) == 6  # each text and picture has its own


def test_more_texts_than_fit_into_one_computation(say, pictures, monkeypatch):
    arguments = ["match", pictures[0], "--text", *TEXTS, "--json"]
    together = json.loads(say(*arguments)[1][0])["matches"]
    monkeypatch.setattr("inference.neighbours.TEXTS_AT_ONCE", 2)
    for entry, other in zip(json.loads(say(*arguments)[1][0])["matches"], together, strict=True):
        assert entry == pytest.approx(other, abs=1e-5)


def test_a_processor_that_does_not_know_its_queries(say, folders, pictures):
    """Folders of early versions do not say how many tokens stand for the picture; without them it would be left out."""
    folder = folders["Blip2ForConditionalGeneration"]
    assert transformers.Blip2Processor.from_pretrained(folder).num_query_tokens is None
    answers = [
        json.loads(line)["answers"][0]["answer"]
        for line in say("ask", *pictures, "--question", "what?", "--json", kind="blip2")[1]
    ]
    assert answers[0] != answers[1]


def test_for_people(say, pictures):
    _, lines, _ = say("match", pictures[0], "--text", *TEXTS)
    assert lines[0].split() == ["text", "match", "cosine"]
    assert len(lines) == 5
    _, lines, _ = say("match", *pictures, "--text", "a cat")
    assert [line for line in lines if line in pictures] == pictures
    _, lines, _ = say("ask", pictures[0], "--question", "what?", "--max-tokens", 3)
    assert lines[0].split() == ["question", "answer"]
    assert lines[2].startswith("what?")
    _, alone, _ = say("caption", pictures[0], "--max-tokens", 3)
    _, lines, _ = say("caption", *pictures, "--max-tokens", 3)
    assert lines[0] == f"{pictures[0]}  {alone[0]}"


def test_a_model_for_something_else(say, folders, pictures, capsys):
    folder = folders["BlipForConditionalGeneration"]
    assert predict.main(["match", pictures[0], "--text", "cat", "--model", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{folder} was not trained for match: it has no weights for" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption", "--prompt", ""], "--prompt: a text is empty"),
        (["caption", "--max-tokens", "0"], "--max-tokens is 0; it must be at least 1"),
        (["match", "--text", "cat " * 80], "has 82 tokens; the model reads at most 64"),
        (["ask", "--question", "what? " * 40], "has 82 tokens; the model reads at most 64"),
    ],
)
def test_mistakes(say, pictures, arguments, message):
    command, *options = arguments
    code, lines, error = say(command, pictures[0], *options)
    assert (code, lines) == (2, [])
    assert message in error
