import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_weights import assert_close, load_encoder

from cir_jax import weights
from cir_jax.encoders import clip
from cir_jax.encoders.words import words
from cir_jax.errors import UserError
from cir_jax.ops.bicubic import resize_bicubic

HEADS = {"text_heads": 4, "image_heads": 4}


@pytest.fixture(scope="module")
def golden():
    return load_encoder("clip_tiny")


@pytest.fixture(scope="module")
def file(golden, tmp_path_factory):
    """With the index buffers that older files have."""
    path = tmp_path_factory.mktemp("clip") / "model.safetensors"
    buffers = {"text_model.embeddings.position_ids": np.arange(16)[None]}
    weights.write(path, golden[1] | buffers, {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def model(file):
    return clip.load(file, **HEADS)


def jitted(model, function, *arguments):
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, *a: function(nnx.merge(graph, state), *a))
    return run(state, *arguments)


@pytest.fixture(scope="module")
def pixels(golden):
    """The images in [0, 1] that the golden normalised ones are of."""
    mean = np.float32([0.48145466, 0.4578275, 0.40821073])
    deviation = np.float32([0.26862954, 0.26130258, 0.27577711])
    return golden[0]["image"] * deviation + mean


def test_both_transformers_equal_the_official_ones(model, golden, pixels):
    arrays, _ = golden

    def run(model, image, ids):
        return {
            "vision_last_hidden": model.image(jnp.asarray(arrays["image"])),
            "text_last_hidden": model.text(model.text.token_embedding[ids]),
            "image_embeds": model.image_embedding(image),
            "text_embeds": model.text_embedding(ids),
            "scale": jnp.exp(model.logit_scale[...]),
        }

    outputs = jitted(model, run, pixels, np.int32(arrays["input_ids"]))
    scale = outputs.pop("scale")
    for name, ours in outputs.items():
        assert_close(ours, arrays[name])
    logits = scale * outputs["image_embeds"] @ outputs["text_embeds"].T
    assert_close(logits, arrays["logits_per_image"])


def test_images_of_any_size_are_resized_and_pass_gradients_on(model):
    image = np.random.default_rng(0).random((1, 40, 25, 3), np.float32)

    def run(model, image):
        def first(image):
            return model.image_embedding(image)[0, 0]

        small = resize_bicubic(image, 32, 32)
        gradient = jax.grad(first)(image)
        return model.image_embedding(image), model.image_embedding(small), gradient

    large, small, gradient = jitted(model, run, image)
    assert_close(large, small)
    np.testing.assert_allclose(np.linalg.norm(large, axis=1), 1, rtol=1e-6)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_learnt_prompts_stand_where_words_do(model):
    """Of embedded words, they give what the sentence gives; padding does not matter."""
    ids = model.sentences([[5, 17, 60], [3, 2]])
    np.testing.assert_array_equal(ids, [[98, 5, 17, 60, 99], [98, 3, 2, 99, 99]])

    def run(model, ids):
        context = model.text.token_embedding[ids[:1, 1:4]]
        padded = jnp.pad(ids, ((0, 0), (0, 3)))
        one = jnp.stack([model.token_embedding(5)] * 3)[None]
        return (
            model.text_embedding(ids),
            model.text_embedding(padded),
            model.prompt_embedding(context),
            model.prompt_embedding(one),
            model.text_embedding(jnp.array([[98, 5, 5, 5, 99]])),
        )

    sentences, padded, prompt, one, same = jitted(model, run, ids)
    assert_close(padded, sentences)
    assert_close(prompt, sentences[:1])
    assert_close(one, same)


def test_what_does_not_fit_the_network_is_refused(model):
    context = np.zeros((3, 15, 32), np.float32)
    with pytest.raises(UserError, match=r"17 tokens.* reads at most 16"):
        model.prompt_embedding(context)
    with pytest.raises(UserError, match="width 31: those of this CLIP have 32"):
        model.prompt_embedding(context[:, :4, :31])


def test_openais_own_file_is_not_run(tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ViT-B-32/code/__torch__.py", "raise RuntimeError")
        archive.writestr("ViT-B-32/constants.pkl", b"")
    with pytest.raises(UserError, match=r"TorchScript.*model\.safetensors of openai"):
        clip.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("text_projection.weight"), "no CLIP, it has no tensor"),
        (lambda t: t.pop("visual_projection.weight"), "- visual_projection.weight"),
        (
            lambda t: t.update({"logit_scale": np.zeros(2)}),
            r"! logit_scale: \(2,\), but \(\)",
        ),
    ],
    ids=["no sizes", "missing", "shape"],
)
def test_other_files_are_refused(change, message, golden, tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = dict(golden[1])
    change(tensors)
    weights.write(path, tensors, {})
    with pytest.raises(UserError, match=message) as error:
        clip.load(path, **HEADS)
    assert str(path) in str(error.value)


def test_wrong_use_is_one_sentence(file, tmp_path):
    with pytest.raises(UserError, match="there is no such file; download model"):
        clip.load(tmp_path / "absent.safetensors")
    with pytest.raises(
        UserError, match="0 attention heads do not divide a width of 32"
    ):
        clip.load(file)
    with pytest.raises(
        UserError, match="5 attention heads do not divide a width of 48"
    ):
        clip.load(file, text_heads=4, image_heads=5)
    (tmp_path / "damaged.safetensors").write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        clip.load(tmp_path / "damaged.safetensors")


def test_words_become_tokens(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"terrible": 4, "mediocre": 7, "<s>": 8, "</s>": 9, "?": 0}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 8), ("</s>", 9)]
    )
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    assert words(path, ["terrible", "a mediocre terrible"]) == [[4], [0, 7, 4]]

    path.write_text("{}")
    with pytest.raises(UserError, match=r"is no tokenizer\.json"):
        words(path, ["terrible"])
    with pytest.raises(UserError, match="there is no such file; download tokenizer"):
        words(tmp_path / "absent.json", [])


def test_words_take_a_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'cir_jax\[perceive\]'"):
        words(tmp_path / "tokenizer.json", ["terrible"])
