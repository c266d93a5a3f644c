"""predict.py caption, match and ask, with BLIP and BLIP-2."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.inference import models

transformers = pytest.importorskip("transformers", reason="needs the optional package transformers")
TEXTS = ["a cat", "two red dogs of what", "photo"]
CLASSES = {
    "caption": ("BlipForConditionalGeneration", "Blip2ForConditionalGeneration"),
    "ask": ("BlipForQuestionAnswering", "Blip2ForConditionalGeneration"),
    "match": ("BlipForImageTextRetrieval", "Blip2ForImageTextRetrieval"),
}
both_models = pytest.mark.parametrize("kind", ["blip", "blip2"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Return class name of transformers -> folder with a model of that class."""
    root = tmp_path_factory.mktemp("models")
    names = {name for pair in CLASSES.values() for name in pair}
    return {name: (models.blip2 if "2" in name else models.blip)(root / name, name) for name in names}


@pytest.fixture
def call_blip(folders, call):
    """Return a function that calls a command of predict.py with the tiny BLIP or BLIP-2 for it."""

    def call_command(command: str, *arguments: object, kind: str = "blip"):
        return call(command, *arguments, "--model", folders[CLASSES[command][kind == "blip2"]])

    return call_command


def load_reference(folders, command: str, kind: str):
    """Return the model and the processor as transformers loads them."""
    name = CLASSES[command][kind == "blip2"]
    model = getattr(transformers, name).from_pretrained(folders[name]).eval()
    processor = transformers.AutoProcessor.from_pretrained(folders[name])
    # Processors that early versions saved lack the number of image tokens; the model would then see no image.
    assert getattr(processor, "num_query_tokens", None) is None
    processor.num_query_tokens = models.QUERIES
    return model, processor


@both_models
@pytest.mark.parametrize("prompt", [None, "a photo of"])
def test_captions_equal_those_of_transformers(call_blip, folders, image_paths, kind, prompt):
    options = ["--prompt", prompt] if prompt else []
    records = call_blip("caption", *image_paths, *options, "--json", "--max-tokens", 12, kind=kind).records
    assert [record["image"] for record in records] == image_paths
    model, processor = load_reference(folders, "caption", kind)
    for record in records:
        inputs = processor(images=Image.open(record["image"]), text=prompt, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=12)
        assert record["caption"] == processor.decode(tokens[0], skip_special_tokens=True).strip()
        assert record["caption"].startswith(prompt or "")
    assert records[0]["caption"] != records[1]["caption"]  # the output depends on the image


@both_models
def test_answers_equal_those_of_transformers(call_blip, folders, image_paths, kind):
    questions = ["what is red?", "two cats of what photo?"]
    records = call_blip("ask", *image_paths, "--question", *questions, "--json", "--max-tokens", 9, kind=kind).records
    assert [record["image"] for record in records] == image_paths
    model, processor = load_reference(folders, "ask", kind)
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
    assert records[0]["answers"] != records[1]["answers"]  # the output depends on the image


@both_models
def test_matches_equal_those_of_transformers(call_blip, folders, image_paths, kind, monkeypatch):
    """With more texts than fit into one batch."""
    monkeypatch.setattr("inference.transformers_models.BATCH_TEXTS", 2)
    records = call_blip("match", *image_paths, "--text", *TEXTS, "--json", kind=kind).records
    assert [record["image"] for record in records] == image_paths
    model, processor = load_reference(folders, "match", kind)
    head = "use_itm_head" if kind == "blip" else "use_image_text_matching_head"
    distinct = set()
    for record in records:
        assert [entry["text"] for entry in record["matches"]] == TEXTS
        for entry in record["matches"]:
            inputs = processor(images=Image.open(record["image"]), text=[entry["text"]], return_tensors="pt")
            with torch.no_grad():
                scores = [model(**inputs, **{head: use}, return_dict=True) for use in (True, False)]
            logits, cosine = (score["itm_score" if kind == "blip" else "logits_per_image"] for score in scores)
            assert entry["match"] == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-5)
            assert entry["cosine"] == pytest.approx(cosine.item(), abs=1e-5)
            distinct.add(round(entry["match"], 4))
    assert len(distinct) == 6  # every pair of text and image differs


def test_without_json_the_output_is_a_table_or_a_line_for_each_image(call_blip, image_paths):
    lines = call_blip("ask", *image_paths, "--question", "what?", "--max-tokens", 3).output.splitlines()
    assert [line for line in lines if line in image_paths] == image_paths
    assert lines[1].split() == ["question", "answer"]
    assert lines[3].startswith("what?")
    caption = call_blip("caption", image_paths[0], "--max-tokens", 3).output
    assert call_blip("caption", *image_paths, "--max-tokens", 3).output.startswith(f"{image_paths[0]}  {caption}")


def test_a_model_without_weights_for_the_command_is_refused(refused, folders, image_paths):
    folder = folders["BlipForConditionalGeneration"]
    message = f"{folder} was not trained for match, or is incomplete: it has no weights"
    refused("match", image_paths[0], "--text", "cat", "--model", folder, fragments=[message])


@pytest.mark.parametrize("shape", [None, (3, 5)])
def test_a_model_without_a_tensor_is_refused(refused, tmp_path, image_paths, shape):
    folder = models.blip(tmp_path / "model", "BlipForConditionalGeneration")
    weights, name = load_file(folder / "model.safetensors"), "vision_model.encoder.layers.1.mlp.fc1.weight"
    del weights[name]
    if shape:
        weights[name] = torch.ones(shape)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    problem = "it has no weights, or some of another shape, for 1 of the "
    refused("caption", image_paths[0], "--model", folder, fragments=[problem, f"({name})"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption", "--prompt", ""], "--prompt: a text is empty"),
        (["caption", "--max-tokens", "0"], "--max-tokens is 0; it must be at least 1"),
        (["match", "--text", "cat " * 80], "has 82 tokens; the model reads at most 64"),
        (["ask", "--question", "what? " * 40], "has 82 tokens; the model reads at most 64"),
    ],
)
def test_wrong_arguments_are_refused_with_a_message(refused, folders, image_paths, arguments, message):
    command, *options = arguments
    refused(command, image_paths[0], *options, "--model", folders[CLASSES[command][0]], fragments=[message])


def test_weights_that_are_not_finite_are_refused(call, image_paths, tmp_path):
    folder = models.blip(tmp_path / "blip", CLASSES["match"][0])
    weights = load_file(folder / "model.safetensors")
    weights["itm_head.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    result = call("match", *image_paths, "--text", "a cat", "--json", "--model", folder)
    assert (result.code, result.output) == (2, "")
    assert "values of itm_head.weight are NaN or infinite" in result.error
