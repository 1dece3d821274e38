"""`cir bench`: what is timed, how, and what is told of it."""

import itertools
import json
from unittest import mock

import jax
import numpy as np
import pytest
import tiny
from flax import nnx

from cir_jax import bench, breakdown, cli, hardware, weights
from cir_jax.bench import Case
from cir_jax.errors import UserError
from cir_jax.models import abstract_model, build_model
from cir_jax.models.layers import Block
from cir_jax.restore import Restorer

CPU = jax.devices()[0]


@pytest.fixture(autouse=True)
def small_product(monkeypatch):
    monkeypatch.setattr(bench, "SIDE", 64)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs `cir bench` on a network that compiles at once; gives what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "load", lambda name, dtype: tiny.Filter())
    monkeypatch.setattr(weights, "title", lambda name: "filter")

    def run(*words):
        words = ["bench", "--weights", "filter", "--repeats", "2", *words]
        assert cli.run(words) == cli.DONE
        return capsys.readouterr().out

    return run


def table(text, number=0):
    """A table that was printed, as rows by the names of the columns."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("|--")]
    rows = []
    for line in (lines[starts[number] - 1], *lines[starts[number] + 1 :]):
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def test_a_row_for_each_size_and_the_training_step(run, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_some_flag=1")
    text = run("--size", "16", "--size", "8x24", "--batch", "3", "--train")
    first, second, step = table(text)
    assert [row["size"] for row in (first, second, step)] == [
        "3x16x16",
        "3x8x24",
        "2x64x64",
    ]
    assert [row["what"] for row in (first, second, step)] == [
        "forward",
        "forward",
        "training step",
    ]
    flops = 2 * 25 * 3 * 3  # a pixel's
    assert float(first["GFLOP"]) == pytest.approx(3 * 16 * 16 * flops / 1e9, rel=1e-3)
    assert float(second["GFLOP"]) == pytest.approx(3 * 8 * 24 * flops / 1e9, rel=1e-3)
    assert float(step["GFLOP"]) == pytest.approx(
        3 * 2 * 64 * 64 * flops / 1e9, rel=1e-3
    )
    ratio = float(first["median ms"]) / float(first["floor ms"])
    assert float(first["ratio"]) == pytest.approx(ratio, rel=0.01)
    assert f"jax {jax.__version__}, cpu, " in text
    assert "XLA_FLAGS=--xla_some_flag=1" in text
    assert "MFU" not in text and "memory floor" not in text


def test_too_little_memory_is_one_sentence(run, monkeypatch):
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore")
    monkeypatch.setattr(bench, "timed", mock.Mock(side_effect=full))
    message = "^filter, forward 1x8x8 cannot be measured with this memory or device: "
    with pytest.raises(UserError, match=f"{message}RESOURCE_EXHAUSTED: Out of memory$"):
        run("--size", "8")


def test_a_size_that_is_given_twice_is_measured_once(run):
    text = run("--size", "8", "--size", "8x8", "--breakdown")
    assert len(table(text)) == 1 and text.count("Parts of filter") == 1


def test_the_files_hold_what_was_measured(run, tmp_path):
    text = run("--size", "16", "--json", "b.json", "--markdown", "b.md")
    assert (tmp_path / "b.md").read_text() == text
    content = json.loads((tmp_path / "b.json").read_text())
    (row,) = content["rows"]
    assert row["model"] == "filter" and row["dtype"] == "float32"
    assert row["flops"] == 2 * 25 * 3 * 3 * 16 * 16
    assert row["fastest"] <= row["seconds"] <= row["slowest"]
    assert row["floor"] == pytest.approx(row["flops"] / row["rate"])
    assert row["ratio"] == pytest.approx(row["seconds"] / row["floor"])
    assert row["slowest_rate"] <= row["rate"]
    images = 4 * 16 * 16 * 3
    parameters = 4 * (25 * 3 * 3 + 3)
    # Arguments and results, all else being temporary.
    assert row["peak"] - row["temporary"] == pytest.approx(
        2 * images + parameters, abs=64
    )
    assert row["compile_seconds"] > 0
    assert row["bandwidth_floor"] is None and row["utilisation"] is None
    assert content["environment"]["device"] == "cpu"
    assert content["breakdown"] == {}


def test_a_device_of_known_bandwidth_and_peak(run, monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "BANDWIDTH", {"cpu": 1e9})
    monkeypatch.setattr(hardware, "PEAK", {"cpu": 1e12})
    text = run("--size", "64", "--json", "b.json")
    (row,) = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert row["accessed"] >= 2 * 4 * 64 * 64 * 3  # reads an image, writes one
    assert row["bandwidth_floor"] == row["accessed"] / 1e9
    assert row["utilisation"] == pytest.approx(row["flops"] / row["seconds"] / 1e12)
    (shown,) = table(text)
    assert float(shown["memory floor ms"]) == pytest.approx(
        1e3 * row["bandwidth_floor"], rel=1e-3
    )
    assert shown["MFU"] == f"{row['utilisation']:.1%}"
    assert "Memory floor: " in text


@pytest.mark.parametrize(
    ("kind", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H200", 4.8e12),
        ("TPU v5 lite", 819e9),
        ("cpu", None),
    ],
)
def test_bandwidths_go_by_the_devices_kind(kind, bandwidth):
    device = mock.Mock(spec=jax.Device, device_kind=kind)
    assert hardware.bandwidth(device) == bandwidth


# ------------------------------------------------------------------------ comparing
def test_comparing_goes_by_the_ratio_to_the_floor(run, tmp_path):
    run("--size", "16", "--size", "8", "--json", "b.json")
    content = json.loads((tmp_path / "b.json").read_text())
    content["rows"][0] |= {"ratio": 1e9, "temporary": 123_000_000}
    (tmp_path / "b.json").write_text(json.dumps(content))
    text = run("--size", "16", "--size", "24", "--compare", "b.json")
    both, new = table(text)
    assert float(both["old ratio"]) == 1e9
    speed_up = 1e9 / float(both["ratio"])
    assert float(both["speed-up"]) == pytest.approx(speed_up, rel=0.01)
    assert both["temp MB old -> new"] == f"123.0 -> {both['temp MB']}"
    assert new["old ratio"] == new["speed-up"] == new["temp MB old -> new"] == ""
    assert "not in b.json: filter, forward 1x24x24, float32" in text
    assert "only in b.json: filter, forward 1x8x8, float32" in text
    assert "1x16x16, float32" not in text


@pytest.mark.parametrize(
    "content",
    [
        None,
        "no JSON",
        "[]",
        "{}",
        '{"rows": 3}',
        '{"rows": [{"set": "mine", "psnr": 30.0}]}',
        '{"rows": [{"model": "filter", "what": "forward", "batch": 1, "height": 8, '
        '"width": 8, "dtype": "float32", "ratio": null, "temporary": 0}]}',
    ],
)
def test_other_files_to_compare_with_are_refused(run, tmp_path, content):
    if content is not None:
        (tmp_path / "b.json").write_text(content)
    with pytest.raises(UserError, match=r"--compare b\.json is no file that cir bench"):
        run("--size", "8", "--compare", "b.json")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "0"], "--size 0: give a side such as 128"),
        (["--size", "8x"], "--size 8x: give a side"),
        (["--size", "8x8x8"], "--size 8x8x8: give a side"),
        (["--size", "12"], "filter takes images whose sides are multiples of 8, not"),
        (["--train", "2x64"], "--train 2x64: give it as 2x64x64"),
        (["--train", "2x64x60"], "multiples of 8, not 64x60"),
        (["--batch", "0"], "--batch and --repeats must be at least 1"),
        (["--repeats", "0"], "--batch and --repeats must be at least 1"),
        (["--precision", "half"], "unknown precision 'half'"),
        (["--model", "ucip"], "--model and --weights: give one of them"),
        (["--device", "gpu:99"], "unknown device 'gpu:99'"),
        (["--json", "no/f.json"], "--json no/f.json: its folder does not exist"),
        (["--markdown", "no/f.md"], "--markdown no/f.md: its folder does not exist"),
    ],
)
def test_wrong_use_is_named_before_anything_is_measured(
    run, monkeypatch, words, message
):
    monkeypatch.setattr(bench, "Product", None)  # which would be the first
    with pytest.raises(UserError, match=message):
        run(*words)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("promtcir", "unknown model 'promtcir': did you mean 'promptcir'"),
        ("ucip:XXT", "unknown variant of ucip 'XXT'"),
        ("ucip:", "unknown variant of ucip ''"),
    ],
)
def test_unknown_models_are_named(name, message):
    with pytest.raises(UserError, match=message):
        cli.run(["bench", "--model", name])


def test_models_are_measured_in_the_order_they_are_given(monkeypatch, capsys):
    made = []

    def random_model(name, precision):
        made.append((name, precision))
        return tiny.Filter()

    monkeypatch.setattr(bench, "random_model", random_model)
    models = ["--model", "ucip:XT", "--model", "promptcir:XT", "--repeats", "1"]
    assert cli.run(["bench", *models, "--precision", "bfloat16"]) == cli.DONE
    assert made == [("ucip:XT", "bfloat16"), ("promptcir:XT", "bfloat16")]
    rows = table(capsys.readouterr().out)
    shown = [(row["model"], row["size"], row["type"]) for row in rows]
    assert shown == [
        ("ucip:XT", "1x64x64", "bfloat16"),  # it enlarges
        ("promptcir:XT", "1x128x128", "bfloat16"),
    ]


# ------------------------------------------------------------------------ what is timed
def test_products_are_timed_between_the_calls(monkeypatch):
    monkeypatch.setattr(bench.time, "perf_counter", itertools.count(0.0).__next__)
    done = []
    product = mock.Mock(spec=bench.Product)
    product.rate.side_effect = lambda: done.append("product") or float(len(done))

    def call():
        done.append("call")
        return np.zeros(1)

    timing = bench.timed(call, product, 2)
    assert done == ["call", "product", "call", "product", "call", "product"]
    assert timing == bench.Timing([1.0, 1.0], [2.0, 4.0, 6.0])
    assert timing.rate == 6 and timing.median == 1
    done.clear()
    bench.timed(call, product, 2, between=False)
    assert done == ["call", "product", "call", "call", "product"]


def test_the_measure_is_a_product(monkeypatch):
    product = bench.Product(CPU, "bfloat16")
    monkeypatch.setattr(bench, "_seconds", lambda call: call() is not None and 0.5)
    assert product.rate() == 2 * 64**3 / 0.5
    assert product._call().dtype == np.float32  # a CPU's
    first = np.asarray(product._call())
    np.testing.assert_allclose(np.std(first), 64**-0.5, rtol=0.1)


def test_photographs_are_the_same_ones_every_time(photographs):
    crops = bench.photographs(6, 40, 56)
    assert crops.shape == (6, 40, 56, 3)
    np.testing.assert_array_equal(crops, bench.photographs(6, 40, 56))
    assert len({crop.tobytes() for crop in crops}) == 6
    first = photographs[min(photographs)]
    np.testing.assert_array_equal(crops[0], first[:40, :56])
    large = bench.photographs(1, 300, 400)[0]
    np.testing.assert_array_equal(large[:256, :384], first)
    np.testing.assert_array_equal(large[256:, :384], first[:-45:-1])
    np.testing.assert_array_equal(large[:256, 384:], first[:, :-17:-1])


def test_the_forward_is_the_restorers():
    model = build_model(tiny.OFFICIAL, nnx.Rngs(0))  # told the codec, with a pool
    image = np.float32(bench.photographs(1, 8, 16)) / np.float32(255)
    apply, before = bench.forward(model)
    restored, _ = jax.jit(apply)(*before, image)
    expected = Restorer(model, tile=None)(image[0])
    np.testing.assert_allclose(restored[0], expected, atol=1e-6)


def test_training_steps_go_on_from_each_other():
    model = tiny.Filter()
    before = np.asarray(model.conv.kernel[...])
    _, call, _ = bench._ready_step(model, Case(bench.STEP, 2, 16, 16), CPU)
    states = [call()[0] for _ in range(2)][1:]
    assert int(states[0].step) == 2
    moved = np.abs(states[0].params["conv"]["kernel"] - before)
    assert 0 < moved.max() < 1e-3  # two steps of AdamW at 2e-4
    np.testing.assert_array_equal(model.conv.kernel[...], before)


def test_programs_are_compiled_afresh():
    before = jax.config.jax_enable_compilation_cache
    assert before
    with pytest.raises(ValueError), bench.compiling_afresh():
        assert not jax.config.jax_enable_compilation_cache
        raise ValueError
    assert jax.config.jax_enable_compilation_cache == before


# ------------------------------------------------------------------------ the breakdown
def blocks_of(model):
    return [each for _, each in nnx.iter_modules(model) if isinstance(each, Block)]


def test_a_breakdown_counts_every_block(run, monkeypatch, tmp_path):
    model = abstract_model(tiny.MODEL | {"num_blocks": (2, 1, 1, 1)})
    monkeypatch.setattr(weights, "load", lambda name, dtype: model)
    row = mock.Mock(return_value=ROW)  # the whole takes long to compile
    monkeypatch.setattr(bench, "measure", row)
    seconds = itertools.count(1.0)
    measured = mock.Mock(
        side_effect=lambda *_: breakdown._Measured(next(seconds), 0.5, 7)
    )
    monkeypatch.setattr(breakdown, "_measure", measured)
    run("--size", "16", "--breakdown", "--json", "b.json")
    content = json.loads((tmp_path / "b.json").read_text())["breakdown"]
    parts = content["filter, forward 1x16x16"]
    names = {type(block).__name__ for block in blocks_of(model)}
    assert names == {"HAB", "OCAB", "TransformerBlock"}
    counts = sum(part["count"] for part in parts if part["kind"] in names)
    assert counts == len(blocks_of(model))
    times = [part["seconds"] for part in parts]
    assert times == sorted(times, reverse=True)
    # Two blocks of a kind, one with shifted windows: two programs in one row.
    (both,) = (
        p
        for p in parts
        if p["kind"] == "HAB"
        and p["count"] == 2
        and p["shapes"] == "1x16x16x4 -> 1x16x16x4"
    )
    assert both["floor"] == 1.0 and both["temporary"] == 7
    inside = {part["kind"]: part["count"] for part in both["inside"]}
    assert inside == {"LayerNorm": 2, "WindowAttention": 2, "CAB": 2, "GDFN": 2}
    attention = [
        call.args[1].path
        for call in measured.mock_calls
        if call.args[1].kind == "WindowAttention"
        and call.args[1].shapes == "1x16x16x4 -> 1x16x16x4"
    ]
    assert attention == [("encoder_level1", "blocks", i, "attn") for i in range(2)]


def test_a_breakdown_is_measured(run):
    text = run("--size", "16", "--breakdown")
    (part,) = table(text, 1)
    assert part["part"] == "Conv" and part["count"] == "1"
    assert part["in -> out"] == "1x16x16x3 -> 1x16x16x3"
    assert float(part["ms each"]) == float(part["ms"]) > 0
    (whole,) = table(text)
    share = float(part["ms"]) / float(whole["median ms"])
    assert float(part["share"].rstrip("%")) / 100 == pytest.approx(share, abs=0.002)
    assert f"the whole forward takes {whole['median ms']} ms" in text


def test_parts_of_all_arguments_are_run(monkeypatch):
    """Also where a block is given an object, such as UCIP's pool of means."""
    model = build_model(tiny.UCIP, nnx.Rngs(0))
    found = breakdown.find_calls(
        model, bench.abstract_images(model, Case(bench.FORWARD, 1, 8, 8))
    )
    kinds = [call.kind for call in found]
    order = ["Conv", "DPM", "PEG", "LayerNorm + Linear", "PTMM", "PTMM", "LayerNorm"]
    assert kinds == [*order, "Conv", "Reconstruction"]
    block = found[4]
    assert {call.kind for call in block.inside} == {"LayerNorm", "ATM", "MLP", "SPADE"}
    product, done = bench.Product(CPU, "float32"), []
    parts = breakdown.measure(
        model,
        [block],
        device=CPU,
        product=product,
        repeats=1,
        done=done.append,
    )
    assert [call.kind for call in done] == ["PTMM", "LayerNorm", "ATM", "MLP", "SPADE"]
    (part,) = parts
    assert part.seconds > 0 and part.floor > 0 and part.count == 1
    assert sum(each.count for each in part.inside) == 5


def test_a_model_stays_as_it_is():
    model = abstract_model(tiny.MODEL)
    before = [type(each) for _, each in nnx.iter_modules(model)]
    images = bench.abstract_images(model, Case(bench.FORWARD, 1, 16, 16))
    assert breakdown.find_calls(model, images)
    assert [type(each) for _, each in nnx.iter_modules(model)] == before


ROW = bench.Row(
    model="filter",
    what=bench.FORWARD,
    batch=1,
    height=16,
    width=16,
    dtype="float32",
    flops=1000,
    seconds=1.0,
    fastest=0.5,
    slowest=2.0,
    compile_seconds=1.0,
    temporary=1,
    peak=2,
    rate=1000.0,
    slowest_rate=500.0,
    accessed=None,
    bandwidth_floor=None,
    utilisation=None,
)
