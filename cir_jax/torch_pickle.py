"""The pickle in a PyTorch checkpoint: plain values, and tensors that view storages.

A pickle is a program for a stack machine, and Python's own machine may import and call
anything. This one knows the instructions that `torch.save` writes for plain values and
tensors; a name in the file stays a name, and what it can call is in `_Machine._call`.
"""

import itertools
import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_TYPES = dict(Float="f4", Double="f8", Half="f2", BFloat16=ml_dtypes.bfloat16)
_TYPES |= dict(Long="i8", Int="i4", Short="i2", Char="i1", Byte="u1", Bool="?")
_TYPES |= dict(ComplexFloat="c8", ComplexDouble="c16")
_STORAGES = {f"torch {name}Storage": np.dtype(kind) for name, kind in _TYPES.items()}
_NAMES = {dtype: name for name, dtype in _STORAGES.items()}
_UNSIGNED = map(np.dtype, ("u2", "u4", "u8"))  # are views of untyped storages
_STORAGES["torch.storage UntypedStorage"] = np.dtype(np.uint8)
_DTYPES = {f"torch {dtype.name}": dtype for dtype in (*_NAMES, *_UNSIGNED)}

_ORDERED_DICT = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_TENSOR_OF_DTYPE = "torch._utils _rebuild_tensor_v3"
_WRAPPERS = {  # calls that stand for their first argument
    "collections Counter",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",
}
_GLOBALS = {*_STORAGES, *_WRAPPERS, _ORDERED_DICT, _TENSOR, _TENSOR_OF_DTYPE}

# How many values an instruction takes from the stack, if not all down to a mark.
_OPERANDS = dict.fromkeys(("TUPLE1", "APPEND", "BUILD", "BINPERSID", "STOP"), 1)
_OPERANDS |= dict.fromkeys(("TUPLE2", "SETITEM", "STACK_GLOBAL", "REDUCE"), 2)
_OPERANDS |= {"TUPLE3": 3}

_LARGEST = 1 << 24  # bytes; a thousand tensors take a hundredth of that
_MOST_VALUES, _DEEPEST = 1 << 22, 100

RESAVE = (
    "on a machine where you trust the file, save its tensors alone, with torch: "
    "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)"
)


class UnfitError(Exception):
    """What is wrong with a file and what to do; goes on where its name would stand."""


def foreign(name: str) -> UnfitError:
    """The error for what a file holds beside tensors and plain values, by its name."""
    what = f"{name[:100]!a}, which is no tensor or plain value"
    return UnfitError(f"holds {what}: {RESAVE}")


def load(
    program: np.ndarray, storage: Callable[[str], np.ndarray], *, swapped: bool
) -> Any:
    """Builds the value of a pickle.

    Args:
        program: the pickle's bytes.
        storage: gives a storage's bytes by its key.
        swapped: they are in the other byte order than this machine's.

    Returns:
        The value. Tensors and parameters are arrays, views of the storages unless
        swapped; a dtype is numpy's, a `torch.Size` a tuple, a device the name of its
        kind, a Counter a dict.

    Raises:
        UnfitError: it holds something else.
        ArithmeticError, AttributeError, LookupError, TypeError, ValueError: it is
            damaged.
    """
    if program.size > _LARGEST:
        raise UnfitError(f"holds {program.size} bytes beside its tensors: {RESAVE}")
    return check_extent(_Machine(storage, swapped).run(program.tobytes()))


def check_extent(value: Any) -> Any:
    """Refuses cycles, and sharing that multiplies: who walks them never returns."""
    level, left = [value], _MOST_VALUES
    for _ in range(_DEEPEST):
        inner = itertools.chain.from_iterable(
            item.values() if isinstance(item, dict) else item
            for item in level
            if isinstance(item, dict | list | tuple)
        )
        level = list(itertools.islice(inner, left))
        left -= len(level)
        if not level:
            return value
        if not left:
            break
    raise ValueError("too many values, or one too deep within the other")


class _Global(NamedTuple):
    """What the pickle refers to by name."""

    name: str


class _Storage(NamedTuple):
    data: np.ndarray
    dtype: np.dtype


class _Machine:
    def __init__(self, storage: Callable[[str], np.ndarray], swapped: bool):
        self._read = storage
        self._swapped = swapped

    def run(self, program: bytes) -> Any:
        stack: list[Any] = []
        below: list[list[Any]] = []  # the stacks under the open marks
        memo: dict[int, Any] = {}  # no list: a file may name any index
        for opcode, argument, _ in pickletools.genops(program):
            name = opcode.name
            if name in ("TUPLE", "APPENDS", "SETITEMS"):
                items, stack = stack, below.pop()
            else:
                items = [stack.pop() for _ in range(_OPERANDS.get(name, 0))][::-1]
            match name:
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                    stack.append(argument)
                case "BINUNICODE" | "SHORT_BINUNICODE":
                    stack.append(argument)
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NEWTRUE": True, "NEWFALSE": False}.get(name))
                case "EMPTY_LIST" | "EMPTY_DICT":
                    stack.append([] if name == "EMPTY_LIST" else {})
                case "EMPTY_TUPLE" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(items))
                case "APPEND" | "APPENDS":
                    stack[-1].extend(items)
                case "SETITEM" | "SETITEMS":
                    # Plain keys alone: the hash of a deep tuple overflows C's stack.
                    keys, values = items[::2], items[1::2]
                    if not all(isinstance(key, str | int | float) for key in keys):
                        raise TypeError("a dict's key is neither text nor a number")
                    stack[-1].update(zip(keys, values, strict=True))
                case "MARK":
                    below.append(stack)
                    stack = []
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(_global(argument))
                case "STACK_GLOBAL":
                    stack.append(_global(" ".join(items)))
                case "BINPERSID":
                    stack.append(self._storage(*items[0]))
                case "REDUCE":
                    stack.append(self._call(*items))
                case "BUILD" if isinstance(stack[-1], OrderedDict):
                    pass  # the attribute _metadata of a state dict
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return items[0]
                case _:
                    raise foreign(argument if name == "INST" else name)

    def _call(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, _Global) else None
        if name == _ORDERED_DICT and arguments == ():
            return OrderedDict()
        if name == _TENSOR:
            return self._tensor(*arguments[:6], None, *arguments[6:])
        if name == _TENSOR_OF_DTYPE:
            return self._tensor(*arguments)
        if name in _WRAPPERS:
            return arguments[0]
        raise TypeError(f"no call of {name}")

    def _storage(self, _tag, kind, key, _device, size) -> _Storage:
        if not isinstance(kind, _Global) or not isinstance(key, str):
            raise TypeError("a storage without a type or a key")
        storage = _Storage(self._read(key), _STORAGES[kind.name])
        if storage.data.size != size * storage.dtype.itemsize:
            raise ValueError(f"storage {key} is not as long as the pickle says")
        return storage

    def _tensor(
        self, storage, offset, shape, strides, _grad, _hooks, dtype=None, metadata=None
    ) -> np.ndarray:
        if not isinstance(storage, _Storage) or metadata:
            raise TypeError("a tensor that is no plain view of a storage")
        if not isinstance(dtype, np.dtype):
            dtype = storage.dtype
        numbers = (offset, *shape, *strides)
        if len(shape) > 64 or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError("a tensor without a shape, strides or an offset")
        room, count = storage.data.size // dtype.itemsize, math.prod(shape)
        if count > room:  # expanded, maybe from one number to gigabytes
            raise UnfitError(
                "holds a tensor of more elements than are stored: save it after "
                ".contiguous()"
            )
        steps = (stride * (n - 1) for n, stride in zip(shape, strides, strict=True))
        # In Python's integers, which do not overflow as those of numpy's check may.
        if count and offset + sum(steps) >= room:
            raise ValueError("a tensor reaches outside its storage")
        start, steps = offset * dtype.itemsize, [n * dtype.itemsize for n in strides]
        tensor = np.ndarray(shape, dtype, storage.data, start, steps)
        return tensor.byteswap() if self._swapped else tensor


def _global(name: str) -> _Global | np.dtype:
    if name in _DTYPES:
        return _DTYPES[name]
    if name in _GLOBALS:
        return _Global(name)
    raise foreign(name)


def dump(value: Any, arrays: list[np.ndarray]) -> bytes:
    """The pickle that builds a value.

    Args:
        value: arrays, numbers, text, None; lists, tuples and mappings of them.
        arrays: each of its arrays is appended; its index is its storage's key.

    Raises:
        UnfitError: something else is among them, or an array of another dtype than
            torch's storages have.
    """

    def each(values: Iterable[Any]) -> bytes:
        return b"".join(map(one, values))

    def one(value: Any) -> bytes:
        if type(value) in (str, int, float, bool, type(None)):
            return pickle.dumps(value, protocol=2)[2:-1]  # without its start and stop
        if isinstance(value, _Global):
            return b"c%b\n" % value.name.replace(" ", "\n").encode()
        if isinstance(value, np.ndarray) and value.dtype in _NAMES:
            kind, key = _Global(_NAMES[value.dtype]), str(len(arrays))
            arrays.append(value)
            storage = one(("storage", kind, key, "cpu", value.size)) + b"Q"
            strides = tuple(math.prod(value.shape[i + 1 :]) for i in range(value.ndim))
            view = each((0, value.shape, strides, False, {}))
            return one(_Global(_TENSOR)) + b"(" + storage + view + b"tR"
        if isinstance(value, Mapping):
            items = each(itertools.chain.from_iterable(value.items()))
            return one(_Global(_ORDERED_DICT)) + b")R(" + items + b"u"
        if isinstance(value, list | tuple):
            start, end = (b"](", b"e") if isinstance(value, list) else (b"(", b"t")
            return start + each(value) + end
        kind = getattr(value, "dtype", type(value).__name__)
        raise UnfitError(
            f"cannot hold a value of type {kind}: give plain values, and arrays of the "
            "types that torch's storages have"
        )

    return b"\x80\x02" + one(value) + b"."
