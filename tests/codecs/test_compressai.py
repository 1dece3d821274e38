import importlib.util
import pickle
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from cir_jax.codecs import CodecProtocol, get_codec
from cir_jax.errors import UserError

pytestmark = pytest.mark.slow
needs_compressai = pytest.mark.skipif(
    importlib.util.find_spec("compressai") is None, reason="needs CompressAI"
)
SMALL = "bmshj2018-hyperprior"


def random_network(architecture=SMALL, quality=1):
    """A network of random weights, with latents and pixels that are not all zero."""
    import torch
    from compressai.zoo import image_models

    torch.manual_seed(quality)
    network = image_models[architecture](quality).eval()
    with torch.no_grad():
        [kernel for kernel in network.g_a.parameters() if kernel.ndim == 4][-1].mul_(50)
        [bias for bias in network.g_s.parameters() if bias.ndim == 1][-1].fill_(0.5)
    return network


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of random weights of the small network: qualities 1 and 2, two formats."""
    import torch

    folder = tmp_path_factory.mktemp("learned")
    for quality in (1, 2):
        state = random_network(quality=quality).state_dict()
        torch.save(state, folder / f"w-{quality}.pth")
        torch.save({"state_dict": state, "epoch": 7}, folder / f"w-{quality}.pth.tar")
        arrays = {key: value.numpy() for key, value in state.items()}
        save_file(arrays, folder / f"w-{quality}.safetensors")
    return folder


@pytest.fixture
def codec(weights):
    return get_codec(f"compressai:{SMALL}:mse:{weights}/w-{{quality}}.pth")


@pytest.fixture
def image(photographs):
    return photographs["coffee"][60:130, 90:140]


@needs_compressai
def test_round_trip_is_the_networks_own(codec, image):
    import torch

    stream = codec.encode(image, 1)
    decoded = codec.decode(stream)
    assert decoded.shape == image.shape and decoded.dtype == np.uint8
    assert decoded.std() > 1

    network = random_network()
    network.update(force=True)
    padded = np.pad(image, ((0, 58), (0, 14), (0, 0)), mode="edge")
    with torch.no_grad():
        pixels = torch.from_numpy(padded.transpose(2, 0, 1)[None]).float() / 255
        coded = network.compress(pixels)
        expected = network.decompress(**coded)["x_hat"][0, :, :70, :50]
    expected = np.round(expected.numpy().transpose(1, 2, 0) * 255)
    np.testing.assert_array_equal(decoded, expected)
    assert len(coded["strings"][0][0]) > 100
    own_bytes = sum(len(batch[0]) for batch in coded["strings"])
    assert own_bytes < len(stream) <= own_bytes + 22


@needs_compressai
def test_another_instance_encodes_and_decodes_alike(codec, image):
    import torch

    stream = codec.encode(image, 2)
    torch.set_num_threads(2)
    other = pickle.loads(pickle.dumps(codec))
    assert len(pickle.dumps(codec)) < 1000
    assert other.encode(image, 2) == stream
    np.testing.assert_array_equal(other.decode(stream), codec.decode(stream))
    # The quality travels in the bitstream.
    assert np.any(codec.decode(codec.encode(image, 1)) != codec.decode(stream))


@needs_compressai
@pytest.mark.parametrize("suffix", ["pth.tar", "safetensors"])
def test_weights_come_in_several_formats(codec, weights, image, suffix):
    other = get_codec(f"compressai:{SMALL}:mse:{weights}/w-{{quality}}.{suffix}")
    assert other.encode(image, 1) == codec.encode(image, 1)


@needs_compressai
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 64), (33, 130)])
def test_every_size_comes_back(codec, photographs, size):
    image = photographs["coffee"][: size[0], : size[1]]
    assert codec.decode(codec.encode(image, 1)).shape == image.shape


@needs_compressai
@pytest.mark.parametrize(
    "architecture", ["bmshj2018-factorized", "mbt2018-mean", "cheng2020-attn"]
)
def test_other_networks_run(tmp_path, photographs, architecture):
    import torch

    path = tmp_path / "w.pth"
    torch.save(random_network(architecture).state_dict(), path)
    codec = get_codec(f"compressai:{architecture}:mse:{path}")
    image = photographs["coffee"][60:124, 90:154]
    stream = codec.encode(image, 1)
    decoded = codec.decode(stream)
    assert decoded.shape == image.shape
    np.testing.assert_array_equal(codec.decode(stream), decoded)


@needs_compressai
def test_keeps_two_networks(weights, image):
    codec = get_codec(f"compressai:{SMALL}:mse:{weights}/w-1.pth")
    for quality in (1, 2, 3):
        codec.encode(image, quality)
    assert [*codec._networks] == [2, 3]


@needs_compressai
def test_follows_the_protocol(codec):
    assert isinstance(codec, CodecProtocol)
    assert codec.name == f"{SMALL}-mse"
    assert codec.qualities == tuple(range(1, 9))
    assert not codec.pillow_decodes
    weights = "weights w-{quality}.pth (sha256 "
    words = ("CompressAI 1.", SMALL, "mse", weights, "torch ")
    assert all(word in codec.version for word in words)
    default = get_codec("compressai")
    assert default.name == "cheng2020-attn-mse"
    assert default.qualities == tuple(range(1, 7))
    assert "weights zoo" in default.version


@needs_compressai
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cheng2020-atn:mse", "network 'cheng2020-atn': did you mean 'cheng2020-attn'"),
        (f"{SMALL}:ssim", "metric 'ssim': did you mean 'ms-ssim'"),
        (SMALL, "metric '': known are ms-ssim, mse"),
    ],
)
def test_unknown_networks_and_metrics_are_refused(name, words):
    with pytest.raises(UserError, match=words):
        get_codec(f"compressai:{name}")


@needs_compressai
@pytest.mark.parametrize(
    ("network", "quality", "file", "words"),
    [
        (SMALL, 1, "none.pth", r"none\.pth does not exist"),
        (SMALL, 1, "text.pth", r"cannot read .*text\.pth"),
        (SMALL, 1, "text.safetensors", r"cannot read .*text\.safetensors"),
        (SMALL, 1, "epoch.pth", r"epoch\.pth .*no tensors"),
        (SMALL, 8, "w-1.pth", r"w-1\.pth does not fit .* quality 8 \(size mismatch"),
        ("bmshj2018-factorized", 1, "w-1.pth", r"h_a\..* is unexpected"),
        ("mbt2018", 1, "w-1.pth", "entropy_parameters.* is missing"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    weights, image, network, quality, file, words
):
    import torch

    (weights / "text.pth").write_text("no weights")
    (weights / "text.safetensors").write_text("no weights")
    torch.save({"epoch": 7}, weights / "epoch.pth")
    codec = get_codec(f"compressai:{network}:mse:{weights / file}")
    with pytest.raises(UserError, match=words):
        codec.encode(image, quality)


@needs_compressai
def test_a_failed_download_tells_of_local_files(monkeypatch, image):
    import torch
    from compressai.zoo import image as zoo

    def offline(url, **options):
        raise OSError("no route to host")

    assert torch.hub.load_state_dict_from_url is zoo.load_state_dict_from_url
    monkeypatch.setattr(zoo, "load_state_dict_from_url", offline)
    words = r"cannot download https://.*mse-3-.* \(no route to host\): .*:mse:FILE"
    with pytest.raises(UserError, match=words):
        get_codec("compressai").encode(image, 3)


@needs_compressai
def test_damaged_bitstreams_are_refused(codec, image):
    stream = codec.encode(image, 1)
    for end in (0, 5, 16, len(stream) - 1):
        with pytest.raises(UserError, match=f"{end} bytes is damaged or cut short"):
            codec.decode(stream[:end])
    for bad in (stream + b"x", b"\x09" + stream[1:]):
        with pytest.raises(UserError, match="damaged"):
            codec.decode(bad)


@needs_compressai
def test_a_quality_out_of_range_is_refused(codec, image):
    for quality in (0, 9):
        with pytest.raises(UserError, match=f"quality {quality} .* 1 .*to 8"):
            codec.encode(image, quality)


@needs_compressai
def test_grey_is_refused(codec):
    with pytest.raises(UserError, match="has no grey images"):
        codec.encode(np.zeros((8, 8, 1), np.uint8), 1)


def test_without_compressai_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "compressai", None)
    with pytest.raises(UserError, match=r"pip install 'cir_jax\[learned-codecs\]'"):
        get_codec("compressai")
