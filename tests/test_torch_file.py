import contextlib
import pickle
import struct
import sys
import tracemalloc
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from cir_jax import torch_file
from cir_jax.errors import UserError

DTYPES = [
    *("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8"),
    *("uint8", "bool", "complex64", "complex128"),
]
TREE = {
    "epoch": 3,
    "step": 2**40,
    "lr": 1e-4,
    "name": "käse",
    "none": None,
    "flags": [True, False, []],
    "betas": (0.9, 0.999),
    "empty": {},
    "deep": {"er": {"x": (1, [2, ()])}},
}


def assert_same(one, other):
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert one.tobytes() == other.tobytes()


# --- what is written is read ---------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3), (), (0, 3), (2, 1, 2, 1, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_come_back(tmp_path, dtype, shape):
    count = int(np.prod(shape))
    array = np.arange(count).reshape(shape).astype(dtype)
    torch_file.write(tmp_path / "a.pth", {"x": array, "y": array.T})
    back = torch_file.read(tmp_path / "a.pth")
    assert_same(back["x"], array)
    assert_same(back["y"], array.T.copy())


def test_plain_values_come_back(tmp_path):
    torch_file.write(tmp_path / "a.pth", TREE)
    assert torch_file.read(tmp_path / "a.pth") == TREE


def test_the_file_is_laid_out_as_torch_does(tmp_path):
    path = tmp_path / "a.pth"
    torch_file.write(path, {"x": np.ones(3, np.float32), "y": np.ones(5, np.int8)})
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("archive/version") == b"3\n"
        for info in archive.infolist():
            names = struct.unpack_from("<26xHH", data, info.header_offset)
            assert (info.header_offset + 30 + sum(names)) % 64 == 0
            assert info.compress_type == zipfile.ZIP_STORED


def test_the_same_value_gives_the_same_bytes(tmp_path):
    for name in "ab":
        torch_file.write(tmp_path / name, {"x": np.arange(6.0), **TREE})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("value", [{1, 2}, np.float64(1), np.ones(2, "u2"), b"x"])
def test_what_torch_cannot_hold_is_not_written(tmp_path, value):
    with pytest.raises(UserError, match=r"a\.pth cannot hold a value of type"):
        torch_file.write(tmp_path / "a.pth", {"x": {"y": [value]}})
    assert not list(tmp_path.iterdir())


# --- files made by hand --------------------------------------------------------------


def plain(value):
    return pickle.dumps(value, protocol=2)[2:-1]


def reference(name):
    return b"c%b\n" % name.replace(" ", "\n").encode()


ORDERED_DICT = reference("collections OrderedDict") + b")R"
OFFSET, SHAPE, STRIDES = 0, (2, 3), (3, 1)


def storage(key="0", size=6, kind="torch FloatStorage"):
    parts = plain("storage"), reference(kind), *map(plain, (key, "cpu", size))
    return b"(" + b"".join(parts) + b"tQ"


def tensor(
    stored=None,
    offset=OFFSET,
    shape=SHAPE,
    strides=STRIDES,
    function="torch._utils _rebuild_tensor_v2",
    extra=b"",
):
    view = b"".join(map(plain, (offset, shape, strides, False)))
    stored = storage() if stored is None else stored
    return reference(function) + b"(" + stored + view + ORDERED_DICT + extra + b"tR"


NUMBERS = np.arange(6, dtype="<f4")


def make(path, program, storages=(NUMBERS,), **members):
    """A torch zip file with a program, between its start and stop, as its pickle."""
    members = {"data.pkl": b"\x80\x02" + program + b"."} | members
    members |= {f"data/{key}": array.tobytes() for key, array in enumerate(storages)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            if data is not None:
                archive.writestr(f"archive/{name}", data)
    return path


@pytest.fixture
def read(tmp_path):
    def call(program, *arguments, **members):
        path = make(tmp_path / "a.pth", program, *arguments, **members)
        return torch_file.read(path)

    return call


def listed(*programs):
    return b"](" + b"".join(programs) + b"e"


def test_views_share_their_storage_and_are_read_only(read):
    whole, part, turned = read(
        listed(
            tensor(),
            tensor(offset=1, shape=(2,), strides=(3,)),
            tensor(shape=(3, 2), strides=(1, 3)),
        )
    )
    np.testing.assert_array_equal(whole, NUMBERS.reshape(2, 3))
    np.testing.assert_array_equal(part, [1, 4])
    np.testing.assert_array_equal(turned, whole.T)
    assert np.shares_memory(whole, part) and np.shares_memory(whole, turned)
    assert not whole.flags.writeable


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((0,), (1,), 6), ((0, 3), (3, 1), 0), ((2, 0), (1, 1), 5), ((), (), 5)],
)
def test_views_at_the_end_of_a_storage(read, shape, strides, offset):
    assert read(tensor(shape=shape, strides=strides, offset=offset)).shape == shape


def test_parameters_and_what_lightning_adds(read):
    parameter = reference("torch._utils _rebuild_parameter")
    metadata = b"}" + plain("_metadata") + b"}sb"
    state_dict, *values = read(
        listed(
            ORDERED_DICT
            + plain("x")
            + parameter
            + b"("
            + tensor()
            + b"\x88)tRs"
            + metadata,
            reference("torch Size") + plain(((2, 3),)) + b"R",
            reference("torch device") + plain(("cuda", 0)) + b"R",
            reference("torch bfloat16"),
            reference("collections Counter") + plain(({5: 1},)) + b"R",
        )
    )
    np.testing.assert_array_equal(state_dict["x"], NUMBERS.reshape(2, 3))
    assert values == [(2, 3), "cuda", np.dtype(ml_dtypes.bfloat16), {5: 1}]


def test_untyped_storages(read):
    array = np.arange(6, dtype="<u2")
    program = tensor(
        storage(size=12, kind="torch.storage UntypedStorage"),
        function="torch._utils _rebuild_tensor_v3",
        extra=reference("torch uint16"),
    )
    assert_same(read(program, [array]), array.reshape(2, 3))


def test_later_pickle_protocols(tmp_path):
    value = pickle.dumps(TREE, protocol=4)[2:-1]
    assert torch_file.read(make(tmp_path / "a.pth", value)) == TREE


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_other_byte_order(tmp_path, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    torch_file.write(tmp_path / "a.pth", {"x": array})
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        program = archive.read("archive/data.pkl")[2:-1]
    order = {"little": b"big", "big": b"little"}[sys.byteorder]
    path = make(tmp_path / "b.pth", program, [array.byteswap()], byteorder=order)
    assert_same(torch_file.read(path)["x"], array)


def without_checksums(path):
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        position = archive.start_dir
        for info in archive.infolist():
            data[position + 16 : position + 20] = bytes(4)
            position += 46 + len(info.filename) + len(info.extra)
    path.write_bytes(data)
    return path


def test_files_without_checksums_are_read(tmp_path):
    torch_file.write(tmp_path / "a.pth", {"x": NUMBERS})
    path = without_checksums(tmp_path / "a.pth")
    assert_same(torch_file.read(path)["x"], NUMBERS)


# --- hostile pickles -----------------------------------------------------------------


def system(canary):
    return f"touch {canary}"


RUNS = {
    "GLOBAL": lambda c: reference("os system") + plain((system(c),)) + b"R",
    "STACK_GLOBAL": lambda c: (
        plain("os") + plain("system") + b"\x93" + plain((system(c),)) + b"R"
    ),
    "INST": lambda c: b"(" + plain(system(c)) + b"ios\nsystem\n",
    "OBJ": lambda c: b"(" + reference("os system") + plain(system(c)) + b"o",
    "builtins": lambda c: (
        reference("builtins eval") + plain((f"open({str(c)!r}, 'w')",)) + b"R"
    ),
    "in a dict": lambda c: (
        b"}" + plain("x") + reference("os system") + plain((system(c),)) + b"Rs"
    ),
    "BUILD": lambda c: (
        reference("types SimpleNamespace")
        + b")\x81"
        + (reference("os system") + plain((system(c),)) + b"R")
        + b"b"
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_no_code_runs(tmp_path, read, name):
    canary = tmp_path / "canary"
    program = RUNS[name](canary)
    with contextlib.suppress(Exception):
        pickle.loads(b"\x80\x04" + program + b".")
    assert canary.exists()  # Python's own machine runs it
    canary.unlink()
    refused = r"a\.pth holds '(os system|builtins eval|types .*)', which"
    with pytest.raises(UserError, match=refused + r".*: on a machine where you trust"):
        read(program)
    assert not canary.exists()


DEEP = b"(" * 9 + b"t" * 9


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (tensor(reference("os system") + plain(("true",)) + b"R"), "holds 'os system'"),
        (
            tensor(function="torch._utils _rebuild_nested"),
            "holds 'torch._utils _rebuild",
        ),
        (
            reference("torch.nn.modules.linear Linear") + b")\x81",
            "torch.nn.modules.lin",
        ),
        (reference("a\x1b[31m b"), r"holds 'a\\x1b\[31m b', which"),
        (tensor() + plain({"shape": (9,)}) + b"b", "holds 'BUILD'"),
        (tensor() + plain((1, (9,), None, False, b"")) + b"b", "holds"),
        (
            reference("torch FloatStorage") + plain((None, {"name": 1})) + b"b",
            "'BUILD'",
        ),
        (reference("collections OrderedDict") + b"]\x85R", "damaged"),
        (reference("collections OrderedDict") + b")\x81", "holds 'NEWOBJ'"),
        (b"(icollections\nOrderedDict\n", "holds 'collections OrderedDict'"),
        (b"\x82\x01", "holds 'EXT1'"),
        (plain("os system") + b")R", "damaged"),
        (reference("torch FloatStorage") + b")R", "damaged"),
        (tensor(plain("0")), "damaged"),
        (tensor(b"(" + plain("storage") + b"tQ"), "damaged"),
        (tensor(storage(kind="torch Size")), "damaged"),
        (tensor(storage(key=0)), "damaged"),
        (tensor(storage(key="1")), "has no member 'data/1'"),
        (tensor(storage(key="../data.pkl")), r"has no member 'data/\.\./data\.pkl'"),
        (tensor(storage(size=7)), "damaged.*storage 0 is not as long"),
        (tensor(storage(size=5)), "damaged.*storage 0 is not as long"),
        (tensor(storage(kind="torch DoubleStorage")), "storage 0 is not as long"),
        (tensor(storage(size=None)), "damaged"),
        (tensor(shape=(2, 4)), "more elements than are stored"),
        (tensor(shape=(1 << 40,), strides=(0,)), "more elements than are stored"),
        (tensor(strides=(4, 1)), "reaches outside its storage"),
        (tensor(offset=1), "reaches outside its storage"),
        (tensor(offset=1 << 62), "reaches outside its storage"),
        (tensor(shape=(5,), strides=(1 << 62,)), "reaches outside its storage"),
        (tensor(offset=7, shape=(0,), strides=(1,)), "damaged"),
        (tensor(offset=-1), "without a shape, strides or an offset"),
        (tensor(shape=(-2, -3)), "without a shape, strides or an offset"),
        (tensor(strides=(-3, 1)), "without a shape, strides or an offset"),
        (tensor(shape=(2.0, 3)), "without a shape, strides or an offset"),
        (tensor(shape=(1,) * 65, strides=(1,) * 65), "without a shape"),
        (tensor(shape=(6,)), "damaged"),
        (tensor(shape=None), "damaged"),
        (tensor(extra=plain({"conj": True})), "no plain view"),
        (tensor(extra=plain({"conj": True}) * 9), "damaged"),
        (b"}" + DEEP + b"Ns", "a dict's key"),
        (b"}" + tensor() + b"Ns", "a dict's key"),
        (b"}(Nu", "damaged"),
        (b"](Nu", "damaged"),
        (b"]q\x00h\x00a", "too deep within the other"),
        (b"]" * 200 + b"a" * 199, "too deep within the other"),
        (b"]" + (b"q\x00](" + b"h\x00" * 9 + b"e") * 30, "too many values"),
        (b"h\x07", "damaged"),
        (b"R", "damaged"),
        (b"t", "damaged"),
        (b"", "damaged"),
        (b"\xff", "damaged"),
        (b"X\xff\xff\xff\xffabc", "damaged"),
        (b"X\x01\x00\x00\x00\xff", "damaged"),
        (b"I" + b"9" * 5000 + b"\n", "damaged"),
        (bytes(1 << 24), "16777219 bytes beside its tensors: on a machine"),
    ],
)
def test_hostile_pickles_are_refused(read, program, words):
    with pytest.raises(UserError, match=words) as caught:
        read(program)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_memo_index_costs_no_memory(read):
    program = b"]r\xff\xff\xff\x7f" + b"j\xff\xff\xff\x7f"
    tracemalloc.start()
    assert read(program) == []
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


# --- damaged and hostile files -------------------------------------------------------


@pytest.fixture
def whole(tmp_path):
    program = b"}" + plain("x") + tensor() + b"s"
    return make(tmp_path / "a.pth", program, byteorder=b"little")


def test_every_truncation_is_refused(whole):
    data = whole.read_bytes()
    for size in range(len(data)):
        whole.write_bytes(data[:size])
        with pytest.raises(UserError, match=r"a\.pth is (truncated|no PyTorch)"):
            torch_file.read(whole)


def flips(path, flip):
    """Gives the path again for each of its bytes, with that one flipped."""
    data = path.read_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= flip
        path.write_bytes(damaged)
        yield path


@pytest.mark.parametrize("flip", [0x01, 0xFF])
def test_every_flipped_byte_is_refused_or_without_effect(whole, flip):
    for path in flips(whole, flip):
        try:
            assert_same(torch_file.read(path)["x"], NUMBERS.reshape(2, 3))
        except UserError as error:
            assert "\n" not in str(error)


def test_without_checksums_a_flipped_byte_ends_in_one_sentence_at_worst(whole):
    for path in flips(without_checksums(whole), 0x02):
        with contextlib.suppress(UserError):
            torch_file.read(path)


def test_a_flipped_byte_of_a_tensor_is_named(whole):
    data = whole.read_bytes()
    whole.write_bytes(data.replace(NUMBERS.tobytes(), NUMBERS[::-1].tobytes()))
    with pytest.raises(UserError, match="is damaged in its member 'data/0'"):
        torch_file.read(whole)


def test_storages_cannot_be_missing_or_short(tmp_path):
    with pytest.raises(UserError, match="has no member 'data/0'"):
        torch_file.read(make(tmp_path / "a.pth", tensor(), []))
    with pytest.raises(UserError, match="storage 0 is not as long"):
        torch_file.read(make(tmp_path / "a.pth", tensor(), [NUMBERS[:5]]))


def test_other_zip_files_are_refused(tmp_path):
    path = make(tmp_path / "a.pth", tensor(), **{"data.pkl": None})
    with pytest.raises(UserError, match=r"has no member 'data\.pkl': get it as torch"):
        torch_file.read(path)
    path = make(
        tmp_path / "a.pth", tensor(), **{"constants.pkl": b"", "code/a.py": b""}
    )
    with pytest.raises(UserError, match=r"is a TorchScript program.*state_dict\(\)"):
        torch_file.read(path)


def test_compressed_members_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    with pytest.raises(UserError, match=r"a\.pth has a compressed member"):
        torch_file.read(tmp_path / "a.pth")


def test_an_unknown_byte_order_is_refused(read):
    with pytest.raises(UserError, match="unknown byte order"):
        read(tensor(), byteorder=b"middle")


def test_overlapping_members_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02N.")
        archive.writestr("archive/data/0", bytes(64))
        first, second = archive.infolist()
        second.header_offset = first.header_offset
    with pytest.raises(UserError, match="overlap"):
        torch_file.read(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02N.")
        archive.infolist()[0].file_size = 1 << 40
    with pytest.raises(UserError, match="reaches beyond the end of the file"):
        torch_file.read(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("folder", ["archive", "other"])
def test_members_of_one_name_are_refused(tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02N.")
        archive.writestr(f"{folder}/data.pkl", b"\x80\x02N.")
    with pytest.raises(UserError, match=r"not clear which member is data\.pkl"):
        torch_file.read(tmp_path / "a.pth")


@pytest.mark.parametrize("data", [b"", b"P", b"{}", b"\x80\x04N.", bytes(1000)])
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.pth is no PyTorch file"):
        torch_file.read(tmp_path / "a.pth")


def test_what_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.pth cannot be read \(No such file"):
        torch_file.read(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory"):
        torch_file.read(tmp_path)


# --- files of before torch 1.6 -------------------------------------------------------

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
TAR = bytes(257) + b"ustar" + bytes(250)


@pytest.mark.parametrize("data", [MAGIC, TAR])
@pytest.mark.parametrize(
    ("torch", "words"),
    [
        (None, r"of before torch 1\.6.*pip install 'cir_jax\[convert\]'"),
        (
            types.SimpleNamespace(__version__="2.5.1+cu124"),
            r"torch 2\.5\.1.*CVE-2025-32",
        ),
    ],
)
def test_older_files_take_a_torch_that_is_safe(
    tmp_path, monkeypatch, data, torch, words
):
    monkeypatch.setitem(sys.modules, "torch", torch)
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(UserError, match=words):
        torch_file.read(tmp_path / "a.pth")
