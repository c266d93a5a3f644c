"""CLIPs of other libraries: small random ones, built by these libraries, against what these compute themselves."""

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


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_open_clips_features(folders, names):
    import open_clip

    clip, _ = load_clip(names["open_clip"])
    theirs = open_clip.create_model(f"local-dir:{folders['open_clip']}").eval()
    assert_close(build_text_encoder(clip).encode(tokenize(TEXTS)), theirs.encode_text(open_clip.tokenize(TEXTS)))
    assert_close(clip.visual(IMAGES), theirs.encode_image(IMAGES))
    assert (clip.visual.mean, clip.visual.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert clip.logit_scale.item() == pytest.approx(theirs.logit_scale.item())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "gelu"])
def test_transformers_features(kind, folders, names):
    clip, _ = load_clip(names[kind])
    theirs = transformers.CLIPModel.from_pretrained(folders[kind]).eval()
    tokens = tokenize(TEXTS)
    assert_close(build_text_encoder(clip).encode(tokens), theirs.get_text_features(input_ids=tokens).pooler_output)
    assert_close(clip.visual(IMAGES), theirs.get_image_features(IMAGES).pooler_output)


@torch.no_grad()
def test_chinese_clips_features(folders, names):
    clip, _ = load_clip(names["chinese"])
    encoder, texts = build_text_encoder(clip), ["一张猫的照片.", "狗", "a photo of cat dog."] * 60
    theirs = transformers.ChineseCLIPModel.from_pretrained(folders["chinese"]).eval()
    words = transformers.AutoTokenizer.from_pretrained(folders["chinese"])(texts, padding=True, return_tensors="pt")
    assert_close(encoder.encode(encoder.tokenize(texts)), theirs.get_text_features(**words).pooler_output)
    assert_close(clip.visual(IMAGES), theirs.get_image_features(IMAGES).pooler_output)
    assert encoder.count_tokens("一张猫") == 3
    with pytest.raises(UserError, match="514 tokens .* of 512"):
        encoder.tokenize(["猫" * 512])


@pytest.mark.parametrize("memory", [10**9, 0])
def test_gradients_of_a_context_among_chinese_words(memory, names, monkeypatch):
    """Against each prompt by itself, without padding."""
    monkeypatch.setattr("vlm.text.bert.BATCH_PROMPTS", 2)
    clip, _ = load_clip(names["chinese"])
    encoder = build_text_encoder(clip, memory)
    learner = PromptLearner(CHINESE, encoder, n_ctx=4)
    features = encoder(learner(), learner.layout)
    features.square().sum().backward()
    ours, learner.ctx.grad = learner.ctx.grad, None
    lengths = encoder.lengths(encoder.tokenize([f"x x x x {name}." for name in CHINESE]))
    for i, length in enumerate(lengths):
        vectors = learner()[learner.index[i, :length]][None]
        alone = clip.text_projection(clip.text_model(inputs_embeds=vectors).last_hidden_state[:, 0])
        assert_close(features[i : i + 1], alone)
        alone.square().sum().backward()
    assert_close(ours / ours.norm(), learner.ctx.grad / learner.ctx.grad.norm())


@pytest.mark.parametrize("key", ["open_clip", "chinese"])
def test_trainers_do_not_notice(key, names, run):
    options = ["--backbone", names[key], "DATASET.NUM_SHOTS", 1, "TRAINER.COOP.N_CTX", 4, "OPTIM.MAX_EPOCH", 1]
    whole = run(*options)
    assert whole.code == 0, whole.error
    assert whole.record["weights"]["backbone"] == names[key]
    assert ("Note: INPUT.PIXEL_MEAN" in whole.log) == (key == "open_clip")
    assert ("Note: INPUT.RESIZE is crop" in whole.log) == (key == "chinese")
    tested = run("--eval-only", "--model-dir", whole.folder, *options, out="tested")
    assert tested.accuracy == whole.accuracy


def test_the_number_of_heads_is_in_the_fingerprint():
    """Neither the weights nor PyTorch's description of a layer tell it."""
    one, other = (torch.nn.MultiheadAttention(8, heads) for heads in (2, 4))
    assert str(one) == str(other)
    assert describe_architecture(one, "a", "torch") != describe_architecture(other, "a", "torch")


def test_a_file_of_weights_wins_over_those_of_the_name(tmp_path, monkeypatch):
    import open_clip

    given = []
    monkeypatch.setattr(open_clip, "create_model", lambda *_, pretrained, **__: given.append(pretrained) or 1 / 0)
    (tmp_path / "own.pt").touch()
    for weights, expected in ((str(tmp_path / "own.pt"), str(tmp_path / "own.pt")), ("", "laion2b_s34b_b88k")):
        with pytest.raises(UserError, match="division by zero"):
            load_clip("open_clip:ViT-B-16/laion2b_s34b_b88k", weights)
        assert given.pop() == expected


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
def test_a_wrong_name_is_answered(name, message):
    with pytest.raises(UserError, match=message):
        load_clip(name)


@pytest.mark.parametrize("name", ["open_clip:ViT-B-16/laion2b_s34b_b88k", "hf:OFA-Sys/chinese-clip-vit-base-patch16"])
def test_without_a_network_the_message_says_what_helps(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="Hub cannot be reached(.|\n)*(MODEL.BACKBONE.WEIGHTS FILE|hf download)"):
        load_clip(name)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ({}, {"init_logit_bias": -10}, "sigmoid loss"),
        ({"no_causal_mask": True}, {"custom_text": True}, "not causal"),
        ({"vocab_size": 100}, {}, "knows 100 words"),
        ({"ls_init_value": 0.1}, {}, "not built as CLIP's"),
    ],
)
def test_an_open_clip_of_another_kind_is_refused(text, settings, message, tmp_path):
    folder = models.open_clip_folder(tmp_path / "model", text, **settings)
    with pytest.raises(UserError, match=message):
        load_clip(f"open_clip:local-dir:{folder}")


def test_a_model_of_another_kind_is_refused(tmp_path):
    transformers.SiglipConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r'kind "siglip" \(its sigmoid loss .*known: clip, chinese_clip'):
        load_clip(f"hf:{tmp_path}")


def test_damaged_weights_are_named(tmp_path):
    folder = models.open_clip_folder(tmp_path / "model")
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded: "):
        load_clip(f"open_clip:local-dir:{folder}")


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install transformers"):
        load_clip("hf:some/model")


@torch.no_grad()
def test_chinese_prompts_of_several_contexts(names):
    encoder = build_text_encoder(load_clip(names["chinese"])[0])
    learner = PromptLearner(CHINESE, encoder, n_ctx=2)
    contexts = torch.randn(3, 2, learner.ctx.shape[1])
    ours = encoder.encode_contexts(contexts, learner.fixed, learner.layout)
    assert_close(ours, torch.stack([encoder(learner.table(context), learner.layout) for context in contexts]))


def test_an_open_clip_model_that_squashes_pictures(tmp_path):
    folder = models.open_clip_folder(tmp_path / "model")
    config = folder / "open_clip_config.json"
    config.write_text(config.read_text().replace('"preprocess_cfg": {', '"preprocess_cfg": {"resize_mode": "squash", '))
    assert load_clip(f"open_clip:local-dir:{folder}")[0].visual.resize == "squash"


@torch.no_grad()
def test_pictures_are_prepared_as_their_library_does(folders, names):
    picture = Image.effect_noise((80, 40), 80).convert("RGB")
    for key in ("clip", "chinese"):
        ours = build_zero_shot(["猫", "cat"], ["{}"], names[key]).preprocess(picture)
        processor = transformers.AutoImageProcessor.from_pretrained(folders[key])
        torch.testing.assert_close(ours, processor(picture, return_tensors="pt").pixel_values[0], atol=0.05, rtol=0)
