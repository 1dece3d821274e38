"""PyTorch's checkpoint files, read and written without PyTorch.

Since 1.6 `torch.save` writes a zip file of uncompressed members: `NAME/data.pkl`, a
pickle in which tensors are views of storages; `NAME/data/KEY`, a storage's bytes;
`NAME/byteorder`. Older files are left to torch.
"""

import mmap
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from cir_jax import torch_pickle
from cir_jax.errors import UserError
from cir_jax.files import written_whole
from cir_jax.torch_pickle import RESAVE, UnfitError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
_LOCAL_HEADER = struct.Struct("<26xHH")  # the lengths of name and extra field
_EXTRA_FIELD = struct.Struct("<2sH")
_ALIGNMENT = 64  # torch's, of the members' bytes
# What a damaged zip file or pickle raises.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError)
_DAMAGE += (ValueError, NotImplementedError, zipfile.BadZipFile, struct.error)

# --- reading -------------------------------------------------------------------------


def read(path: Path) -> Any:
    """Reads what `torch.save` wrote, and runs nothing that the file may hold.

    Args:
        path: a file that `torch.save` wrote; one of before torch 1.6 takes torch.

    Returns:
        The object in the file. Tensors and parameters are arrays, read-only views of
        the mapped file, which may be renamed or deleted but not overwritten while they
        live; a dtype is numpy's, a `torch.Size` a tuple, a device the name of its kind.

    Raises:
        UserError: the file cannot be read, is damaged, or holds what is neither a
            tensor nor a plain value; names that, and says what to do.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
            if head.startswith(b"PK"):
                return _Archive(file).load()
        if _LEGACY_MAGIC in head[:40] or head[257:262] == b"ustar":
            return _load_legacy(path)
        raise UnfitError("is no PyTorch file: expected one that torch.save wrote")
    except UnfitError as error:
        raise UserError(f"{path} {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise UserError(
            f"{path} is truncated or damaged ({reason!a}): get the file again"
        ) from error


class _Archive:
    """The members of a torch zip file, mapped into memory, checked as they are read."""

    def __init__(self, file: BinaryIO):
        with zipfile.ZipFile(file) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        if any(info.filename.endswith("/constants.pkl") for info in infos):
            raise UnfitError(
                "is a TorchScript program: save its tensors alone, with torch: "
                "torch.save(torch.jit.load(FILE).state_dict(), NEW)"
            )
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        raw, end = np.frombuffer(mapped, np.uint8), 0
        self._members: dict[str, np.ndarray] = {}
        self._checksums: dict[str, int] = {}
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED:  # a kilobyte may be a terabyte
                raise UnfitError(
                    "has a compressed member, which torch.save never writes: get the "
                    "file as it was published"
                )
            if info.header_offset < end:
                raise ValueError("the members of the zip file overlap")
            lengths = _LOCAL_HEADER.unpack_from(raw, info.header_offset)
            header = info.header_offset + _LOCAL_HEADER.size
            start = header + sum(lengths)
            end = start + info.file_size
            if end > raw.size:
                raise ValueError("a member reaches beyond the end of the file")
            _, _, name = info.filename.partition("/")
            written = bytes(raw[header : header + lengths[0]])
            if name in self._members or written != info.orig_filename.encode():
                raise ValueError(f"it is not clear which member is {name}")
            self._members[name] = raw[start:end]
            self._checksums[name] = info.CRC

    def load(self) -> Any:
        """The object in the file."""
        order = "little"
        if "byteorder" in self._members:
            order = bytes(self._read("byteorder")).decode()
        if order not in ("little", "big"):
            raise ValueError("an unknown byte order")
        return torch_pickle.load(
            self._read("data.pkl"),
            lambda key: self._read(f"data/{key}"),
            swapped=order != sys.byteorder,
        )

    def _read(self, name: str) -> np.ndarray:
        if name not in self._members:
            raise UnfitError(
                f"has no member {name[:100]!a}: get it as torch.save wrote it"
            )
        data = self._members[name]
        # Checked once, for many tensors may share a storage; torch without checksums
        # (torch.serialization.set_crc32_options) writes 0.
        expected = self._checksums.pop(name, 0)
        if expected and zlib.crc32(data) != expected:
            raise UnfitError(f"is damaged in its member {name!a}: get the file again")
        return data


def _load_legacy(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UnfitError(
            "is of before torch 1.6, and such files are read with torch: "
            "pip install 'cir_jax[convert]'"
        ) from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise UnfitError(
            f"is not read with torch {torch.__version__}, in which such a file can run "
            "code in spite of weights_only (CVE-2025-32434): pip install 'torch>=2.6'"
        )

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if value.nbytes > value.untyped_storage().nbytes():
                raise ValueError("a tensor of more elements than are stored")
            value = value.detach().resolve_conj().resolve_neg()
            if value.dtype == torch.bfloat16:
                return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            return value.numpy()
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return (list if isinstance(value, list) else tuple)(map(plain, value))
        if not isinstance(value, str | int | float | None):
            raise torch_pickle.foreign(type(value).__name__)
        return value

    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
        return plain(torch_pickle.check_extent(value))
    except UnfitError:
        raise
    except Exception as error:  # torch raises any
        text = str(error)
        if name := re.search(r"GLOBAL (\S+)", text):
            raise torch_pickle.foreign(name[1]) from error
        reason = re.split(r"\.\s", text.partition("Unpickler error: ")[2] or text)[0]
        raise UnfitError(
            f"is not read with torch ({reason[:200]!a}): get it again, or {RESAVE}"
        ) from error


# --- writing -------------------------------------------------------------------------


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Writes what `torch.load(path, weights_only=True)` reads, whole or not at all.

    The same value gives the same bytes. Mappings become OrderedDicts; an array that is
    there twice becomes two tensors. torch 1.13 takes no float beside the tensors.

    Args:
        path: where to.
        value: arrays, numbers, text, None; lists, tuples and mappings of them.

    Raises:
        UserError: something else is among them, or an array of another dtype than
            torch's storages have.
    """
    arrays: list[np.ndarray] = []
    try:
        program = torch_pickle.dump(value, arrays)
    except UnfitError as error:
        raise UserError(f"{path} {error}") from error
    with (
        written_whole(path) as temporary,
        temporary.open("wb") as file,
        zipfile.ZipFile(file, "w") as archive,
    ):

        def add(name: str, data: bytes | np.ndarray) -> None:
            info = zipfile.ZipInfo(f"archive/{name}")  # of 1980
            info.file_size = len(data)
            header = _LOCAL_HEADER.size + len(info.filename) + _EXTRA_FIELD.size
            padding = -(file.tell() + header) % _ALIGNMENT
            info.extra = _EXTRA_FIELD.pack(b"FB", padding) + bytes(padding)
            with archive.open(info, "w") as member:
                member.write(data)

        add("data.pkl", program)
        add("byteorder", sys.byteorder.encode())
        for key, array in enumerate(arrays):
            add(f"data/{key}", np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        add("version", b"3\n")
