"""CLIPs of other libraries: small random models, whose features must equal those of their library."""

import sys

import pytest
import torch
import transformers
from PIL import Image

from dassl.utils import UserError
from inference.classifier import build_zero_shot
from tests.vlm import foreign_models as models
from trainers.coop import PromptLearner
from vlm.clip.load import load_clip
from vlm.clip.third_party import describe_architecture
from vlm.text.encoder import build_text_encoder
from vlm.text.tokenizer import tokenize

CHINESE = ["猫", "狗猫狗", "cat", "dog cat", "狗"]
TEXTS = ["a photo of a cat", "dog", "a very long sentence about nothing at all"]
IMAGES = torch.linspace(-1, 1, 2 * 3 * models.SIZE**2).view(2, 3, models.SIZE, models.SIZE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "open_clip": models.open_clip_folder(root / "open_clip"),
        "clip": models.hugging_face_clip(root / "clip"),
        "gelu": models.hugging_face_clip(root / "gelu", "gelu"),
        "chinese": models.chinese_clip(root / "chinese"),
    }


@pytest.fixture(scope="module")
def names(folders):
    return {key: f"{'open_clip:local-dir' if key == 'open_clip' else 'hf'}:{path}" for key, path in folders.items()}


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_features_of_an_open_clip_model_equal_those_of_open_clip(folders, names):
    import open_clip

    clip, _ = load_clip(names["open_clip"])
    reference = open_clip.create_model(f"local-dir:{folders['open_clip']}").eval()
    assert_close(build_text_encoder(clip).encode(tokenize(TEXTS)), reference.encode_text(open_clip.tokenize(TEXTS)))
    assert_close(clip.visual(IMAGES), reference.encode_image(IMAGES))
    assert (clip.visual.mean, clip.visual.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert clip.logit_scale.item() == pytest.approx(reference.logit_scale.item())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "gelu"])
def test_features_of_a_transformers_clip_equal_those_of_transformers(kind, folders, names):
    clip, _ = load_clip(names[kind])
    reference = transformers.CLIPModel.from_pretrained(folders[kind]).eval()
    tokens = tokenize(TEXTS)
    assert_close(build_text_encoder(clip).encode(tokens), reference.get_text_features(input_ids=tokens).pooler_output)
    assert_close(clip.visual(IMAGES), reference.get_image_features(IMAGES).pooler_output)


@torch.no_grad()
def test_features_of_chinese_clip_equal_those_of_transformers(folders, names):
    clip, _ = load_clip(names["chinese"])
    encoder, texts = build_text_encoder(clip), ["一张猫的照片.", "狗", "a photo of cat dog."] * 60
    reference = transformers.ChineseCLIPModel.from_pretrained(folders["chinese"]).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(folders["chinese"])(texts, padding=True, return_tensors="pt")
    assert_close(encoder.encode(encoder.tokenize(texts)), reference.get_text_features(**inputs).pooler_output)
    assert_close(clip.visual(IMAGES), reference.get_image_features(IMAGES).pooler_output)
    assert encoder.count_tokens("一张猫") == 3
    with pytest.raises(UserError, match="514 tokens .* of 512"):
        encoder.tokenize(["猫" * 512])


@pytest.mark.parametrize("memory", [10**9, 0])
def test_features_and_gradients_of_chinese_prompts_equal_those_of_each_prompt_alone(memory, names, monkeypatch):
    """A prompt alone has no padding."""
    monkeypatch.setattr("vlm.text.bert.BATCH_PROMPTS", 2)
    clip, _ = load_clip(names["chinese"])
    encoder = build_text_encoder(clip, memory)
    learner = PromptLearner(CHINESE, encoder, n_ctx=4)
    features = encoder(learner(), learner.layout)
    features.square().sum().backward()
    gradient, learner.ctx.grad = learner.ctx.grad, None
    lengths = encoder.lengths(encoder.tokenize([f"x x x x {name}." for name in CHINESE]))
    for i, length in enumerate(lengths):
        vectors = learner()[learner.index[i, :length]][None]
        alone = clip.text_projection(clip.text_model(inputs_embeds=vectors).last_hidden_state[:, 0])
        assert_close(features[i : i + 1], alone)
        alone.square().sum().backward()
    assert_close(gradient / gradient.norm(), learner.ctx.grad / learner.ctx.grad.norm())


@pytest.mark.parametrize("key", ["open_clip", "chinese"])
def test_coop_trains_and_evaluates_with_a_clip_of_another_library(key, names, run):
    options = ["--backbone", names[key], "DATASET.NUM_SHOTS", 1, "TRAINER.COOP.N_CTX", 4, "OPTIM.MAX_EPOCH", 1]
    trained = run(*options)
    assert trained.code == 0, trained.error
    assert trained.record["weights"]["backbone"] == names[key]
    assert ("Note: INPUT.PIXEL_MEAN" in trained.log) == (key == "open_clip")
    assert ("Note: INPUT.RESIZE is crop" in trained.log) == (key == "chinese")
    evaluated = run("--eval-only", "--model-dir", trained.folder, *options, out="evaluated")
    assert evaluated.accuracy == trained.accuracy


def test_the_number_of_heads_changes_the_described_architecture():
    """Neither the shapes of the weights nor PyTorch's repr of a layer depend on it."""
    one, other = (torch.nn.MultiheadAttention(8, heads) for heads in (2, 4))
    assert str(one) == str(other)
    assert describe_architecture(one, "a", "torch") != describe_architecture(other, "a", "torch")


def test_a_weights_file_replaces_the_weights_of_the_name(tmp_path, monkeypatch):
    import open_clip

    pretrained_arguments = []

    def create_model(*_, pretrained, **__):
        pretrained_arguments.append(pretrained)
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    (tmp_path / "weights.pt").touch()
    for weights, expected in ((str(tmp_path / "weights.pt"), str(tmp_path / "weights.pt")), ("", "laion2b_s34b_b88k")):
        with pytest.raises(UserError, match="division by zero"):
            load_clip("open_clip:ViT-B-16/laion2b_s34b_b88k", weights)
        assert pretrained_arguments.pop() == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-99/laion2b", 'no architecture "ViT-B-99"; did you mean "ViT-B-'),
        ("open_clip:ViT-B-16/laion2b_s34b", 'did you mean "laion2b_s34b_b88k"'),
        ("open_clip:ViT-B-16/openai", "without open_clip:"),
        ("open_clip:local-dir:/nowhere", "there is no folder /nowhere"),
        ("openclip:ViT-B-16", "open_clip:<architecture>/<weights>"),
    ],
)
def test_a_wrong_name_is_refused_with_a_hint(name, message):
    with pytest.raises(UserError, match=message):
        load_clip(name)


@pytest.mark.parametrize("name", ["open_clip:ViT-B-16/laion2b_s34b_b88k", "hf:OFA-Sys/chinese-clip-vit-base-patch16"])
def test_without_a_network_the_message_says_how_to_get_the_weights(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="Hub cannot be reached(.|\n)*(MODEL.BACKBONE.WEIGHTS FILE|hf download)"):
        load_clip(name)


@pytest.mark.parametrize(
    ("text_cfg", "config", "message"),
    [
        ({}, {"init_logit_bias": -10}, "sigmoid loss"),
        ({"no_causal_mask": True}, {"custom_text": True}, "not causal"),
        ({"vocab_size": 100}, {}, "knows 100 words"),
        ({"ls_init_value": 0.1}, {}, "not built as CLIP's"),
    ],
)
def test_an_open_clip_of_another_kind_is_refused(text_cfg, config, message, tmp_path):
    folder = models.open_clip_folder(tmp_path / "model", text_cfg, **config)
    with pytest.raises(UserError, match=message):
        load_clip(f"open_clip:local-dir:{folder}")


def test_a_transformers_model_of_another_kind_is_refused(tmp_path):
    transformers.SiglipConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r'kind "siglip" \(its sigmoid loss .*known: clip, chinese_clip'):
        load_clip(f"hf:{tmp_path}")


def test_damaged_weights_are_refused(tmp_path):
    folder = models.open_clip_folder(tmp_path / "model")
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded: "):
        load_clip(f"open_clip:local-dir:{folder}")


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install transformers"):
        load_clip("hf:some/model")


@torch.no_grad()
def test_chinese_prompts_under_several_contexts_equal_one_context_after_another(names):
    encoder = build_text_encoder(load_clip(names["chinese"])[0])
    learner = PromptLearner(CHINESE, encoder, n_ctx=2)
    contexts = torch.randn(3, 2, learner.ctx.shape[1])
    features = encoder.encode_contexts(contexts, learner.fixed_embeddings, learner.layout)
    assert_close(features, torch.stack([encoder(learner.table(context), learner.layout) for context in contexts]))


def test_an_open_clip_model_that_squashes_images_is_loaded_as_such(tmp_path):
    folder = models.open_clip_folder(tmp_path / "model")
    config = folder / "open_clip_config.json"
    config.write_text(config.read_text().replace('"preprocess_cfg": {', '"preprocess_cfg": {"resize_mode": "squash", '))
    assert load_clip(f"open_clip:local-dir:{folder}")[0].visual.resize == "squash"


@torch.no_grad()
def test_images_are_preprocessed_as_in_transformers(folders, names):
    picture = Image.effect_noise((80, 40), 80).convert("RGB")
    for key in ("clip", "chinese"):
        pixels = build_zero_shot(["猫", "cat"], ["{}"], names[key]).preprocess(picture)
        processor = transformers.AutoImageProcessor.from_pretrained(folders[key])
        torch.testing.assert_close(pixels, processor(picture, return_tensors="pt").pixel_values[0], atol=0.05, rtol=0)
