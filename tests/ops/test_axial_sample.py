import sys
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from programs import printed
from twins import arrays

from cir_jax.ops import bench_axial_sample
from cir_jax.ops.axial_sample import IMPLEMENTATIONS, LONGEST_TENT, axial_sample

EVERY = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
AXES = pytest.mark.parametrize("axis", [1, 2])


def one_by_one(x, offset, g, axis):
    """Value and both gradients, sample by sample, in float64."""
    x, offset, g = (np.asarray(a, np.float64) for a in (x, offset, g))
    share = x.shape[3] // offset.shape[3]
    y, d_x, d_offset = np.zeros_like(x), np.zeros_like(x), np.zeros_like(offset)
    for b, h, w, c in np.ndindex(x.shape):
        o = offset[b, h, w, c // share]
        whole = np.floor(o)
        for j, weight, slope in (
            ((h, w)[axis - 1] + whole, 1 - (o - whole), -1),
            ((h, w)[axis - 1] + whole + 1, o - whole, 1),
        ):
            if 0 <= j < x.shape[axis]:
                pixel = (b, int(j), w, c) if axis == 1 else (b, h, int(j), c)
                y[b, h, w, c] += weight * x[pixel]
                d_x[pixel] += weight * g[b, h, w, c]
                d_offset[b, h, w, c // share] += slope * x[pixel] * g[b, h, w, c]
    return y, d_x, d_offset


@partial(jax.jit, static_argnums=(3, 4))
def value_and_gradients(x, offset, g, axis, implementation):
    y, pull = jax.vjp(lambda *a: axial_sample(*a, axis, implementation), x, offset)
    return y, *pull(g)


def assert_like_one_by_one(x, offset, axis, implementation):
    (g,) = arrays(x.shape, seed=1)
    results = value_and_gradients(x, offset, g, axis, implementation)
    for ours, slow in zip(results, one_by_one(x, offset, g, axis), strict=True):
        np.testing.assert_allclose(ours, slow, 2e-5, 2e-5)


@EVERY
@AXES
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_random_offsets(axis, groups, implementation):
    x, offset = arrays((2, 5, 7, 6), (2, 5, 7, groups))
    assert_like_one_by_one(x, 3 * offset, axis, implementation)


@EVERY
@AXES
def test_whole_offsets_have_the_right_hand_derivative(axis, implementation):
    x, offset = arrays((2, 5, 7, 6), (2, 5, 7, 2))
    for scale in (0, 1, 4):
        assert_like_one_by_one(x, jnp.round(scale * offset), axis, implementation)


@EVERY
@AXES
def test_just_below_a_whole_number_the_slope_is_the_left_one(axis, implementation):
    # p - 1e-9 is p in float32: the pixel has to come from the offset alone.
    x, offset = arrays((2, 5, 7, 6), (2, 5, 7, 2))
    tiny = jnp.full_like(offset, -1e-9)
    assert_like_one_by_one(x, tiny, axis, implementation)


@EVERY
@AXES
def test_borders(axis, implementation):
    # Every position meets every distance from the border, and both sides of each.
    n = 4
    (x,) = arrays((13, n, n, 1))
    steps = jnp.linspace(-n - 2, n + 2, 13)[:, None, None, None]
    for nudge in (0, -1e-3, 1e-3):
        offset = jnp.broadcast_to(steps + nudge, x.shape)
        assert_like_one_by_one(x, offset, axis, implementation)


@EVERY
@AXES
def test_far_outside_are_zeros(axis, implementation):
    x, offset, g = arrays((2, 5, 7, 6), (2, 5, 7, 2), (2, 5, 7, 6))
    for far in (1e6, -1e6, 3e38, -3e38, np.inf, -np.inf):
        everywhere = jnp.full_like(offset, far)
        for result in value_and_gradients(x, everywhere, g, axis, implementation):
            assert not np.asarray(result).any()
    some = offset.at[0, 1].set(1e6).at[1, :, 2].set(-1e6)
    assert_like_one_by_one(x, some, axis, implementation)


@EVERY
@AXES
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1)])
def test_any_size(axis, size, implementation):
    x, offset = arrays((1, *size, 4), (1, *size, 2))
    assert_like_one_by_one(x, 2 * offset, axis, implementation)


@EVERY
@AXES
def test_finite_differences(axis, implementation):
    x, offset, g = arrays((1, 5, 6, 4), (1, 5, 6, 2), (1, 5, 6, 4))
    distance = jnp.abs(3 * offset - jnp.round(3 * offset))
    offset = jnp.where(distance < 2e-2, 0.5, 3 * offset)

    @jax.jit
    def loss(x, offset):
        return (axial_sample(x, offset, axis, implementation) * g).sum()

    # The value is linear in each along its way, so the step need not be small.
    gradients = jax.grad(loss, argnums=(0, 1))(x, offset)
    directions = arrays(x.shape, offset.shape, seed=2)
    for k, step in enumerate((1.0, 1e-2)):
        change = [jnp.zeros_like(x), jnp.zeros_like(offset)]
        change[k] = step * jnp.clip(directions[k], -1, 1)
        ahead = loss(x + change[0], offset + change[1])
        behind = loss(x - change[0], offset - change[1])
        expected = (gradients[k] * change[k]).sum()
        np.testing.assert_allclose((ahead - behind) / 2, expected, 1e-3, 1e-4)


@EVERY
@AXES
def test_bfloat16_maps_keep_float32_offsets_and_sums(axis, implementation):
    x, offset, g = arrays((1, 5, 40, 4), (1, 5, 40, 2), (1, 5, 40, 4))
    x, g = x.astype(jnp.bfloat16), g.astype(jnp.bfloat16)
    results = value_and_gradients(x, offset, g, axis, implementation)
    assert [a.dtype.name for a in results] == ["bfloat16", "bfloat16", "float32"]
    for ours, slow in zip(results, one_by_one(x, offset, g, axis), strict=True):
        # Half a unit in the last place, once; the offset's gradient is not rounded.
        tolerance = 1e-5 if ours.dtype == jnp.float32 else 2**-8
        np.testing.assert_allclose(ours.astype(jnp.float32), slow, tolerance, 1e-5)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, None])
def test_vmap_and_gradient(implementation):
    x, offset, g = arrays((3, 1, 4, 5, 4), (3, 1, 4, 5, 2), (3, 1, 4, 5, 4))

    def run(x, offset, g):
        return value_and_gradients(x, 2 * offset, g, 2, implementation)

    mapped = jax.vmap(run)(x, offset, g)
    for i in range(3):
        for ours, single in zip(mapped, run(x[i], offset[i], g[i]), strict=True):
            np.testing.assert_allclose(ours[i], single, 1e-6, 1e-6)


@EVERY
def test_the_gradient_keeps_the_arguments_only(implementation):
    x, offset = arrays((1, 4, 5, 4), (1, 4, 5, 2))
    _, pull = jax.vjp(lambda *a: axial_sample(*a, 1, implementation), x, offset)
    assert sum(a.size for a in jax.tree.leaves(pull)) == x.size + offset.size


@pytest.mark.parametrize(
    ("platform", "length", "marks"),
    [
        ("cpu", 8, {"gather"}),
        ("cuda", 8, {"gather"}),
        ("tpu", LONGEST_TENT, {"reduce"}),
        ("tpu", LONGEST_TENT + 1, {"while", "reduce"}),
    ],
)
def test_the_default_follows_platform_and_length(platform, length, marks):
    traced = jax.jit(lambda *a: axial_sample(*a, 2)).trace(
        *arrays((1, 2, length, 4), (1, 2, length, 2))
    )
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    found = {m for m in ("gather", "while", "reduce") if f"stablehlo.{m}" in text}
    assert found == marks


def test_unknown_names_and_wrong_shapes_are_refused():
    x, offset = arrays((1, 4, 5, 4), (1, 4, 5, 2))
    with pytest.raises(ValueError, match="known are gather, tent, shift"):
        axial_sample(x, offset, 1, "gathr")
    with pytest.raises(ValueError, match="axis is 3"):
        axial_sample(x, offset, 3)
    with pytest.raises(ValueError, match=r"\(1, 4, 5, 3\).*\(1, 4, 5, 4\)"):
        axial_sample(x, *arrays((1, 4, 5, 3)), 1)
    with pytest.raises((ValueError, jaxtyping.TypeCheckError)):
        axial_sample(x, offset[:, :3], 1)


@pytest.mark.slow
def test_a_tpu_gathers_nothing_and_holds_little():
    pytest.importorskip("libtpu")
    figures = printed("ops/aot_tpu.py")
    by_gather = figures.pop("by gather")
    assert by_gather["gather"] and by_gather["accessed_gb"] > 50
    for case, figure in figures.items():
        # The map is 34 MB in training and 66 MB at inference, in float32.
        temporary_mb = 64 if case.startswith("training") else 400
        assert not figure["gather"], case
        assert figure["temporary_mb"] < temporary_mb, case
        assert figure["accessed_gb"] < 2, case


def test_the_benchmark_has_a_row_for_each_case(monkeypatch, capsys):
    flags = ["--sizes", "1x4x6x4", "--groups", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["bench", *flags])
    bench_axial_sample.main()
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 2 * len(IMPLEMENTATIONS) * 2
    assert all(float(row.split()[4]) >= 0 for row in rows)
