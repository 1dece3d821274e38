"""What is read from the text of compiled programs: arrays, traffic, FLOPs, kinds."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from programs import printed

from cir_jax import hlo, hlo_costs
from cir_jax.hlo_costs import PRODUCT

ROOT = Path(__file__).parents[1]


def array(text):
    (found,) = hlo.arrays(text)
    return found


# ------------------------------------------------------------ arrays and their tiles
@pytest.mark.parametrize(
    ("text", "size", "padded"),
    [
        # 48 channels in 128 lanes.
        ("f32[1,128,128,48]{3,2,1,0:T(8,128)}", 4 * 128**2 * 48, 4 * 128**3),
        # 128 columns in them, and the channels in 48 sublanes.
        ("f32[1,128,128,48]{2,3,1,0:T(8,128)}", 4 * 128**2 * 48, 4 * 128**2 * 48),
        ("bf16[1,128,128,48]{3,2,1,0:T(8,128)(2,1)S(1)}", 2 * 128**2 * 48, 2 * 128**3),
        # Two halves of 32 bits share a sublane: one row takes two.
        ("bf16[1,100]{1,0:T(1,128)(2,1)}", 200, 2 * 2 * 128),
        ("bf16[8]{0:T(256)(128)(2,1)}", 16, 512),
        ("pred[9,100]{1,0:T(8,128)(4,1)}", 900, 16 * 128),
        ("f32[]{:T(128)}", 4, 512),
        ("f32[3,5]{1,0}", 60, 60),
        ("s4[3,3]", 5, 5),
        ("f32[0,5]{1,0:T(8,128)}", 0, 0),
    ],
)
def test_arrays_in_whole_tiles(text, size, padded):
    found = array(text)
    assert (found.size, found.padded) == (size, padded)


def test_what_else_an_array_tells():
    found = array("bf16[1,64,32]{1,2,0:T(8,128)(2,1)S(1)}")
    assert found.space == 1 and found.tiles == ((8, 128), (2, 1))
    assert str(found) == "1x[64]x32 of 16 bits"
    assert array("f32[2,3]").order == (1, 0)
    assert hlo.arrays("(f32[2]{0}, token[], u32[]{:S(2)})")[1].space == 2


# ------------------------------------------------------------ programs, by hand
# As the TPU compiler writes them, shortened.
TABLES = """HloModule jit_f, is_scheduled=true

FileNames
1 "/some/where/window_attention.py"

FunctionNames
1 "partition"
2 "Block.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=16 end_line=16 column=6 end_column=62}
2 {file_name_id=1 function_name_id=2 line=16 end_line=16 column=27 end_column=46}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}

"""
PROGRAM = (
    TABLES
    + """
%fused_computation (param_0: bf16[64,48], param_1: bf16[48,96]) -> bf16[64,96] {
  %param_0 = bf16[64,48]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1 = bf16[48,96]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[64,96]{1,0:T(8,128)(2,1)} convolution(%param_0, \
%param_1), dim_labels=bf_io->bf, metadata={op_name="jit(f)/dot_general"}
}
%body (arg: (s32[], bf16[64,96])) -> (s32[], bf16[64,96]) {
  %arg = (s32[]{:T(128)}, bf16[64,96]{1,0:T(8,128)(2,1)}) parameter(0)
  %gte = bf16[64,96]{1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %negate = bf16[64,96]{1,0:T(8,128)(2,1)} negate(%gte), \
backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %tuple = (s32[]{:T(128)}, bf16[64,96]{1,0:T(8,128)(2,1)}) tuple(%i, %negate)
}
ENTRY %main.1 (x.1: bf16[64,48], w.1: bf16[48,96]) -> bf16[64,96] {
  %x.1 = bf16[64,48]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="x"}
  %copy-start = (bf16[64,48]{1,0:T(8,128)(2,1)S(1)}, bf16[64,48]{1,0:T(8,128)(2,1)}, \
u32[]{:S(2)}) copy-start(%x.1), cross_program_prefetch_index=0
  %w.1 = bf16[48,96]{1,0:T(8,128)(2,1)} parameter(1), metadata={op_name="w"}
  %copy-done = bf16[64,48]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %fusion = bf16[64,96]{1,0:T(8,128)(2,1)} fusion(%copy-done, /*index=1*/%w.1), \
kind=kOutput, calls=%fused_computation, metadata={op_name="jit(f)/dot_general"}
  %tuple.1 = (s32[]{:T(128)}, bf16[64,96]{1,0:T(8,128)(2,1)}) tuple(%zero, %fusion)
  %while = (s32[]{:T(128)}, bf16[64,96]{1,0:T(8,128)(2,1)}) while(%tuple.1), \
condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %result = bf16[64,96]{1,0:T(8,128)(2,1)} get-tuple-element(%while), index=1
  ROOT %copy.2 = bf16[64,96]{0,1:T(8,128)(2,1)} copy(%result), \
metadata={op_name="jit(f)/cond/transpose" stack_frame_id=2}
}
"""
)


def test_a_program_by_kind():
    tile = 64 * 128 * 2  # either side of the product takes it
    turned = 96 * 128 * 2
    kinds = hlo_costs.by_kind(hlo_costs.operations(PROGRAM))
    assert {k: (t.operations, t.read, t.written, t.main) for k, t in kinds.items()} == {
        "elementwise": (1, 5 * tile, 5 * tile, 10 * tile),
        PRODUCT: (1, tile + 48 * 256, tile, 48 * 256 + tile),
        "between memories": (1, tile, tile, tile),
        "transpose": (1, tile, turned, tile + turned),
    }
    assert kinds[PRODUCT].flops == 2 * 64 * 48 * 96
    assert kinds[PRODUCT].intensity == kinds[PRODUCT].flops / (2 * tile + 48 * 256)
    assert kinds["between memories"].padding == 1 - 48 / 128
    assert kinds["elementwise"].cycles == 500
    assert hlo_costs.total([]).padding == 0


def test_where_what_moves_arrays_comes_from():
    ((kind, source), total) = next(
        iter(hlo_costs.movers(hlo_costs.operations(PROGRAM)).items())
    )
    assert (kind, source) == ("transpose", "transpose in window_attention.partition")
    assert total.operations == 1
    # What the compiler put there on its own is told by what it follows.
    unnamed = PROGRAM.replace('metadata={op_name="jit(f)/cond/transpose"', "sharding={")
    ((_, source),) = hlo_costs.movers(hlo_costs.operations(unnamed))
    assert source == "after dot_general"
    text = line('f32[5]{0} copy(%p0), metadata={op_name="x"}', "f32[5]{0}")
    assert list(hlo_costs.movers(hlo_costs.operations(text))) == [
        ("copy", "an argument")
    ]


def test_most_padding_first():
    first, *_ = hlo_costs.padded_arrays(hlo_costs.operations(PROGRAM)).items()
    assert (str(first[0]), first[1]) == ("64x[96] of 16 bits", 12)


def test_loops_of_unknown_length_count_once():
    text = PROGRAM.replace('"known_trip_count":{"n":"5"}', "")
    total = hlo_costs.by_kind(hlo_costs.operations(text))["elementwise"]
    assert (total.cycles, total.exact) == (100, False)
    assert hlo_costs.total(hlo_costs.operations(PROGRAM)).exact


def line(text, *arguments):
    """A program of one instruction; its arguments' shapes."""
    names = "".join(
        f"  %p{n} = {shape} parameter({n})\n" for n, shape in enumerate(arguments)
    )
    return f"ENTRY %main (p: f32[]) -> f32[] {{\n{names}  ROOT %r = {text}\n}}\n"


@pytest.mark.parametrize(
    ("text", "arguments", "kind", "read", "written"),
    [
        (
            "f32[4]{0} slice(%p0), slice={[0:4]}",
            ["f32[9]{0}"],
            "slice, pad, concatenate",
            16,
            16,
        ),
        (
            "f32[9]{0} dynamic-update-slice(%p0, %p1, %p2)",
            ["f32[9]{0}", "f32[2]{0}", "s32[]"],
            "slice, pad, concatenate",
            8,
            8,
        ),
        (
            "f32[2,5]{1,0} gather(%p0, %p1), offset_dims={1}",
            ["f32[9,5]{1,0}", "s32[2]{0}"],
            "gather",
            40 + 8,
            40,
        ),
        ("f32[5,9]{1,0} copy(%p0)", ["f32[5,9]{1,0}"], "copy", 180, 180),
        ("f32[5,9]{0,1} copy(%p0)", ["f32[5,9]{1,0}"], "transpose", 180, 180),
        # Of one column there is no other order.
        ("f32[5,1]{0,1} copy(%p0)", ["f32[5,1]{1,0}"], "copy", 20, 20),
        (
            "f32[9,5]{0,1} transpose(%p0), dimensions={1,0}",
            ["f32[5,9]{1,0}"],
            "slice, pad, concatenate",
            180,
            180,
        ),
        (
            "f32[9,5]{1,0} transpose(%p0), dimensions={1,0}",
            ["f32[5,9]{1,0}"],
            "transpose",
            180,
            180,
        ),
        ("f32[45]{0} reshape(%p0)", ["f32[5,9]{1,0}"], "reshape", 180, 180),
        ("f32[5]{0} exponential(%p0)", ["f32[5]{0}"], "elementwise", 20, 20),
        ("f32[5]{0} reduce(%p0)", ["f32[5,9]{1,0}"], "reduction", 180, 20),
        (
            'f32[5]{0} custom-call(%p0), custom_call_target="tpu_custom_call"',
            ["f32[5]{0}"],
            "custom call",
            20,
            20,
        ),
    ],
)
def test_one_operation(text, arguments, kind, read, written):
    (found,) = hlo_costs.operations(line(text, *arguments))
    total = hlo_costs.total([found])
    assert (found.kind, total.read, total.written) == (kind, read, written)


@pytest.mark.parametrize(
    "text",
    [
        "f32[5]{0} bitcast(%p0)",
        'f32[5]{0} custom-call(%p0), custom_call_target="AssumeGatherIndicesInBound"',
    ],
)
def test_what_moves_nothing(text):
    assert hlo_costs.operations(line(text, "f32[5]{0}")) == []


@pytest.mark.parametrize(
    ("text", "arguments", "flops"),
    [
        (
            "f32[7,3,9]{2,1,0} dot(%p0, %p1), lhs_batch_dims={0}, rhs_batch_dims={0}, "
            "lhs_contracting_dims={2}, rhs_contracting_dims={1}",
            ["f32[7,3,5]{2,1,0}", "f32[7,5,9]{2,1,0}"],
            2 * 7 * 3 * 5 * 9,
        ),
        (
            "f32[1,8,6,5]{3,2,1,0} convolution(%p0, %p1), window={size=3x3 "
            "pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
            ["f32[1,8,6,4]{3,2,1,0}", "f32[3,3,4,5]{3,2,1,0}"],
            2 * (3 * 8 - 2) * (3 * 6 - 2) * 4 * 5,
        ),
        (
            "f32[1,8,6,4]{3,2,1,0} convolution(%p0, %p1), window={size=3x3 "
            "pad=1_1x1_1}, dim_labels=b01f_01io->b01f, feature_group_count=4",
            ["f32[1,8,6,4]{3,2,1,0}", "f32[3,3,1,4]{3,2,1,0}"],
            2 * (3 * 8 - 2) * (3 * 6 - 2) * 4,
        ),
        # Four matrix products, as the TPU compiler writes them.
        (
            "bf16[4,256,8]{1,2,0} convolution(%p0, %p1), window={size=4 stride=3 "
            "lhs_dilate=4}, dim_labels=0bf_0io->0bf",
            ["bf16[4,256,16]{2,1,0}", "bf16[4,16,8]{2,1,0}"],
            2 * 4 * 256 * 16 * 8,
        ),
    ],
)
def test_flops(text, arguments, flops):
    assert hlo_costs.total(hlo_costs.operations(line(text, *arguments))).flops == flops


# ------------------------------------------------------------ programs of compilers
def test_a_program_compiled_here():
    def f(x, w, k, i):
        y = jax.lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        y = jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y @ w), y)
        return y.transpose(0, 2, 1, 3)[:, i]

    shapes = (1, 8, 6, 4), (4, 4), (3, 3, 4, 4)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    numbers = jax.ShapeDtypeStruct((2,), jnp.int32)
    text = jax.jit(f).lower(*arrays, numbers).compile().as_text()
    found = hlo_costs.operations(text)
    total = hlo_costs.total(found)
    once = 2 * (3 * 8 - 2) * (3 * 6 - 2) * 4 * 4
    assert total.flops == once + 3 * 2 * 8 * 6 * 4 * 4
    assert total.exact and total.padding == 0
    assert "gather" in hlo_costs.by_kind(found)


@pytest.mark.slow
def test_48_channels_in_the_lanes_of_a_tpu():
    pytest.importorskip("libtpu")
    uncached = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    found = printed("padding_on_tpu.py", **uncached)
    full, wide = 4 * 128**3, 4 * 128**2 * 48
    assert found["channels in the lanes"] == {
        "ratio": 128 / 48,
        "moved": 2 * full,
        "accessed": 2 * full,
        "kinds": ["elementwise"],
    }
    assert found["columns in the lanes"]["ratio"] == 1
    assert found["columns in the lanes"]["moved"] == 2 * wide
    assert "transpose" in found["from one to the other"]["kinds"]
    assert found["rows by number"]["kinds"].count("gather") == 1
    assert found["product"]["flops"] == 2 * 1024 * 48 * 96


@pytest.mark.slow
def test_what_restores_images_on_a_tpu():
    pytest.importorskip("libtpu")
    command = ["--model=dagn:XT", "--forward=16x16", "--topology=v5e:2x2"]
    result = subprocess.run(
        [sys.executable, "-m", "cir_jax.plan", *command, "--operations"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Compiled, not run (jax")
    row = result.stdout.split("\n\n")[1].splitlines()[2]
    assert "forward, 1 x 16x16, bfloat16 | one of v5e:2x2" in row
    assert "padding" in row and row.endswith(" ms            |")
    assert f"\n| {PRODUCT} " in result.stdout
    assert " in layers." in result.stdout  # a function, without its file's folder
    assert str(ROOT) not in result.stdout
