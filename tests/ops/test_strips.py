"""Operations that a CPU computes strip by strip, against their whole-map twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from twins import assert_twins

from cir_jax.ops import (
    attend_windows,
    gated_feed_forward,
    multi_dconv_attention,
    prompt_mixing,
    strips,
)
from cir_jax.ops.affine import Affine
from cir_jax.ops.layer_norm import Norm

C, HIDDEN, HEADS, SIZE = 4, 6, 2, 4
ROOM = {
    "maps": (1 << 20, 0),
    "images": (9000, 0),
    "rows": (1200, 0),
    "kept": (1200, 1 << 20),
}
"""Bytes of a strip, for all maps at once, for one image or for some of its rows; and of
the maps that training keeps."""


def arrays(*shapes):
    """Small numbers: products of several are what is compared."""
    return [0.3 * x for x in twins.arrays(*shapes)]


@pytest.fixture(params=ROOM)
def room(request, monkeypatch):
    for name, size in zip(("LARGEST", "KEPT"), ROOM[request.param], strict=True):
        monkeypatch.setattr(strips, name, size)
    return request.param


def feed_forward(x, *parameters):
    scale, bias, k_in, b_in, k_d, b_d, k_out, b_out = parameters
    return (
        x,
        Norm(1 + scale, bias),
        Affine(k_in, b_in),
        Affine(k_d, b_d),
        Affine(k_out, b_out),
    )


FEED_FORWARD = (
    *((C,), (C,), (C, 2 * HIDDEN), (2 * HIDDEN,)),
    *((3, 3, 2 * HIDDEN), (2 * HIDDEN,), (HIDDEN, C), (C,)),
)


def test_feed_forward(room):
    assert_twins(
        lambda *a: gated_feed_forward.in_strips(*feed_forward(*a)),
        lambda *a: gated_feed_forward.plain(*feed_forward(*a)),
        *arrays((4, 12, 8, C), *FEED_FORWARD),
    )


def test_feed_forward_without_biases(room):
    def parts(x, scale, k_in, k_d, k_out):
        return x, Norm(1 + scale), Affine(k_in), Affine(k_d), Affine(k_out)

    shapes = (C,), (C, 2 * HIDDEN), (3, 3, 2 * HIDDEN), (HIDDEN, C)
    assert_twins(
        lambda *a: gated_feed_forward.in_strips(*parts(*a)),
        lambda *a: gated_feed_forward.plain(*parts(*a)),
        *arrays((4, 12, 8, C), *shapes),
    )


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_attention_between_channels(room, biased, guided):
    def parts(x, queries, temperature, k_qkv, b_qkv, k_d, b_d, k_out, b_out):
        kernels = {"qkv": (k_qkv, b_qkv), "d": (k_d, b_d), "out": (k_out, b_out)}
        qkv, d, out = (Affine(k, b if biased else None) for k, b in kernels.values())
        return x, queries if guided else None, qkv, d, 1 + temperature, out

    shapes = (C, 3 * C), (3 * C,), (3, 3, 3 * C), (3 * C,), (C, C), (C,)
    assert_twins(
        lambda *a: multi_dconv_attention.in_strips(*parts(*a)),
        lambda *a: multi_dconv_attention.plain(*parts(*a)),
        *arrays((4, 12, 8, C), (4, 12, 8, C), (HEADS, 1, 1), *shapes),
    )


WINDOWS = (C, 3 * C), (3 * C,), (C, C), (C,)


def windows(x, bias, k_qkv, b_qkv, k_out, b_out):
    return x, Affine(k_qkv, b_qkv), bias, Affine(k_out, b_out)


@pytest.mark.parametrize("shift", [0, SIZE // 2])
def test_attention_in_windows(room, shift):
    shape = (HEADS, SIZE**2, SIZE**2)
    assert_twins(
        lambda *a: attend_windows.in_strips(*windows(*a), SIZE, shift),
        lambda *a: attend_windows.plain(*windows(*a), SIZE, shift),
        *arrays((4, 3 * SIZE, 2 * SIZE, C), shape, *WINDOWS),
    )


def test_attention_in_overlapping_windows(room):
    shape = (HEADS, SIZE**2, (SIZE + 2) ** 2)
    assert_twins(
        lambda *a: attend_windows.overlapping_in_strips(*windows(*a), SIZE, 1),
        lambda *a: attend_windows.overlapping_plain(*windows(*a), SIZE, 1),
        *arrays((4, 3 * SIZE, 2 * SIZE, C), shape, *WINDOWS),
    )


def test_prompts(room):
    shapes = (4, 12, 8, 3), (4, 12, 8, 5), (3, 5, C)
    assert_twins(prompt_mixing.in_strips, prompt_mixing.task_by_task, *arrays(*shapes))


@pytest.mark.parametrize("shape", [(4, 12, 8, C), (1, 14, 8, C), (3, 7, 8, C)])
def test_strips_are_alike_and_cover_the_maps(room, shape):
    found = strips.strips_of(shape, 64)
    b, h, _, _ = shape
    starts = [found.start(i, h) for i in range(found.count)]
    covered = {
        (image + m, row + r)
        for image, row in starts
        for m in range(found.images)
        for r in range(found.rows)
    }
    assert len(covered) == found.count * found.images * found.rows
    assert covered == {(m, r) for m in range(b) for r in range(h)}
    assert found.images == 1 or found.rows == h


def test_room_decides_what_a_strip_is(room):
    found = strips.strips_of((4, 12, 8, C), 64)
    sizes = {"maps": (4, 12), "images": (1, 12), "rows": (1, 2), "kept": (1, 2)}
    assert sizes[room] == found[:2]
    assert found.kept == (room == "kept")


def test_the_rows_of_a_strip_are_whole_windows(monkeypatch):
    monkeypatch.setattr(strips, "LARGEST", 1)
    assert strips.strips_of((2, 12, 8, C), 64, unit=4) == strips.Strips(
        1, 4, 0, 6, True
    )


@pytest.mark.parametrize("kept", [False, True])
def test_memory_grows_with_the_hidden_maps_only_if_training_keeps_them(
    monkeypatch, kept
):
    """Otherwise it is one strip of what is 16 times as wide, and its gradient's."""
    b, h, w = 1, 256, 32
    hidden = 16 * C
    bytes_of_row = w * 2 * hidden * 4
    monkeypatch.setattr(strips, "LARGEST", 8 * bytes_of_row)
    monkeypatch.setattr(strips, "KEPT", h * bytes_of_row if kept else 0)

    def run(x, *kernels):
        k_in, k_d, k_out = map(Affine, kernels)
        return gated_feed_forward.in_strips(x, Norm(jnp.ones(C)), k_in, k_d, k_out)

    shapes = (b, h, w, C), (C, 2 * hidden), (3, 3, 2 * hidden), (hidden, C)
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    gradient = jax.grad(lambda *a: run(*a).sum(), argnums=(0, 1, 2, 3))
    for function, large in ((run, False), (gradient, kept)):
        program = jax.jit(function).lower(*arguments).compile()
        temporary = program.memory_analysis().temp_size_in_bytes
        assert (temporary < b * h * bytes_of_row / 2) != large


@pytest.mark.parametrize(("platform", "loops"), [("cpu", True), ("tpu", False)])
def test_accelerators_get_the_whole_map(platform, loops, monkeypatch):
    monkeypatch.setattr(strips, "LARGEST", 1)
    arguments = feed_forward(*arrays((1, 6, 8, C), *FEED_FORWARD))
    traced = gated_feed_forward.gated_feed_forward.trace(*arguments)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.while" in text) == loops


def test_bfloat16_stays_bfloat16(room):
    x, *parameters = (
        a.astype(jnp.bfloat16) for a in arrays((4, 12, 8, C), *FEED_FORWARD)
    )
    y, pull = jax.vjp(
        lambda x: gated_feed_forward.in_strips(*feed_forward(x, *parameters)), x
    )
    assert {y.dtype, *(g.dtype for g in pull(y))} == {jnp.dtype(jnp.bfloat16)}
    exact = gated_feed_forward.plain(
        *feed_forward(*(a.astype(jnp.float32) for a in (x, *parameters)))
    )
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.1)
