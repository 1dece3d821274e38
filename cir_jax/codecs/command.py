"""Any encoder and decoder with a command line, described by a small TOML file.

    name = "hm"                          # what records and tables call it
    version = "HM-16.20, intra main"     # printed beside every number
    qualities = [47, 42, 37, 32]         # worst first; or names, numbered from 1
    format = "yuv420p"                   # of the pixel files: png, or raw planar YUV
    encode = "TAppEncoder -c {folder}/intra.cfg -i {input} -b {bitstream} -q {quality} -wdt {width} -hgt {height} -f 1"
    decode = "TAppDecoder -b {bitstream} -o {output} -d 8"

`{folder}` is the TOML file's own folder. The words of a command are split before the
placeholders are filled in, so paths with spaces need no quotes.
"""  # noqa: E501

import math
import shlex
import struct
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cir_jax import codecs, image_io, programs
from cir_jax.codecs import _video
from cir_jax.errors import UserError, unknown
from cir_jax.files import sha256

FORMATS = ("png", "yuv420p", "yuv444p")
SIZE = struct.Struct("<HHBB")
"""Height, width, and what of them is padding, in front of the stream where the pixel
files are raw: these do not say their size."""
REQUIRED = {"name": str, "version": str, "qualities": list, "encode": str,
            "decode": str}  # fmt: skip
OPTIONAL = {"format": "png"}


class Codec:
    """A codec made of two commands, `command:FILE.toml`."""

    pillow_decodes = False
    suffix = ""

    def __init__(self, path: str = ""):
        if not path:
            raise UserError(
                "the codec command needs its description: command:FILE.toml "
                "(cir_jax/codecs/command.py shows one)"
            )
        settings = _settings(Path(path))
        self.name: str = settings["name"]
        # The commands make the pixels: records by others must not be taken for these.
        self.version = f"{settings['version']} (sha256 {sha256(Path(path))[:12]})"
        self.format: str = settings["format"]
        names = settings["qualities"]
        numbered = all(isinstance(name, int) for name in names)
        numbers = names if numbered else range(1, len(names) + 1)
        self.qualities: tuple[int, ...] = tuple(numbers)
        self._quality_names = dict(zip(numbers, map(str, names), strict=True))
        self._commands = {kind: settings[kind] for kind in ("encode", "decode")}
        self._folder = str(Path(path).resolve().parent)

    def encode(self, image: UInt8[np.ndarray, "h w c"], quality: int) -> bytes:
        """Compresses an RGB image.

        Raises:
            UserError: no such quality, the image is grey, or the command fails.
        """
        codecs.check_quality(self, quality)
        codecs.refuse_grey(self, image)
        raw = self.format != "png"
        with tempfile.TemporaryDirectory() as folder:
            pixels, stream = Path(folder) / f"in.{self.format}", Path(folder) / "stream"
            if raw:
                image, rows, columns = _video.pad(image)
                _video.to_yuv(image, self.format).to_ndarray().tofile(pixels)
            else:
                Image.fromarray(image).save(pixels)
            self._run(
                "encode",
                stream,
                input=pixels,
                bitstream=stream,
                quality=self._quality_names[quality],
                width=image.shape[1],
                height=image.shape[0],
            )
            size = SIZE.pack(*image.shape[:2], rows, columns) if raw else b""
            return size + stream.read_bytes()

    def decode(self, data: bytes) -> UInt8[np.ndarray, "h w 3"]:
        """Decodes a bitstream to RGB.

        Raises:
            UserError: the command fails, or gives another size.
        """
        raw = self.format != "png"
        with tempfile.TemporaryDirectory() as folder:
            stream = Path(folder) / "stream"
            pixels = Path(folder) / f"out.{self.format}"
            stream.write_bytes(data[SIZE.size :] if raw else data)
            if not raw:
                self._run("decode", pixels, bitstream=stream, output=pixels)
                return image_io.read_rgb(pixels)
            height, width, rows, columns = SIZE.unpack_from(data)
            self._run(
                "decode",
                pixels,
                bitstream=stream,
                output=pixels,
                width=width,
                height=height,
            )
            image = self._to_rgb(np.fromfile(pixels, np.uint8), height, width)
            return image[: height - rows, : width - columns]

    def _to_rgb(
        self, planes: UInt8[np.ndarray, " n"], height: int, width: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The decoder's planes as RGB."""
        shape = {
            "yuv420p": (height * 3 // 2, width),
            "yuv444p": (3, height, width),
        }[self.format]
        if planes.size != math.prod(shape):
            raise UserError(
                f"{self.name}: the decoder wrote {planes.size} bytes, but "
                f"{width}x{height} pixels of 8-bit {self.format} are "
                f"{math.prod(shape)}: mend its command"
            )
        frame = _video.pyav().VideoFrame.from_ndarray(
            planes.reshape(shape), self.format
        )
        return _video.to_pixels(frame, 3)

    def _run(self, kind: str, result: Path, **values: object) -> None:
        """Runs one of the commands and checks that it wrote its result."""
        values["folder"] = self._folder
        try:
            words = [
                word.format(**values) for word in shlex.split(self._commands[kind])
            ]
            ended = programs.run(words)
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(
                f"{self.name}: the command {kind} cannot be filled in ({error}): known "
                f"placeholders are {', '.join(f'{{{name}}}' for name in values)}"
            ) from error
        except OSError as error:
            raise UserError(
                f"{self.name}: {words[0]} cannot be run ({error.strerror}): install "
                f"it, or mend {kind} in its TOML file"
            ) from error
        if ended.status or not result.is_file():
            raise UserError(
                f"{self.name}: {shlex.join(words)} exited with {ended.status}"
                f"{'' if result.is_file() else ' and wrote no result'}: "
                f"{ended.reason}"
            )


def _settings(path: Path) -> dict[str, Any]:
    """Reads and checks the description."""
    try:
        settings = tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"codec description {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"codec description {path} is no TOML: {error}") from error
    for key in settings:
        if key not in {*REQUIRED, *OPTIONAL}:
            raise unknown(f"key of {path}", key, [*REQUIRED, *OPTIONAL])
    for key, kind in REQUIRED.items():
        if not isinstance(settings.get(key), kind) or not settings[key]:
            raise UserError(
                f"codec description {path}: give {key}, a {kind.__name__} (see "
                "cir_jax/codecs/command.py)"
            )
    settings = OPTIONAL | settings
    if settings["format"] not in FORMATS:
        raise unknown(f"format in {path}", settings["format"], FORMATS)
    return settings
