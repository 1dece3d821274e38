"""FFmpeg, as the imageio-ffmpeg wheel carries it, for what its encoders can do.

RGB becomes YUV by full-range BT.709, bicubic chroma, accurate rounding: swscale's work,
the same in both directions and for every codec here.
"""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cir_jax import codecs
from cir_jax.errors import UserError

EXACT = "flags=accurate_rnd+full_chroma_int+full_chroma_inp+bicubic"
RANGE = "in_range=full:out_range=full"
TO_YUV = f"scale={EXACT}:{RANGE}:out_color_matrix=bt709"
TO_RGB = f"scale={EXACT}:{RANGE}:in_color_matrix=bt709"
SMALLEST = 16
"""Encoders refuse smaller pictures; these are padded."""
GREY = 0x80


def executable() -> str:
    """The path of the FFmpeg program.

    Raises:
        UserError: the package that carries it is not installed.
    """
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError(
            "HEVC and VVC need FFmpeg from the imageio-ffmpeg package: "
            "pip install 'cir_jax[codecs]'"
        ) from error
    return imageio_ffmpeg.get_ffmpeg_exe()


def run(arguments: Sequence[str], data: bytes, purpose: str) -> bytes:
    """Runs FFmpeg on bytes.

    Args:
        arguments: from `-f` of the input to the output; `pipe:` is `data` and the
            returned bytes.
        data: standard input.
        purpose: what is being done, for the error.

    Raises:
        UserError: FFmpeg is missing or fails; holds its last message.
    """
    command = [executable(), "-hide_banner", "-loglevel", "error", "-threads", "1"]
    result = subprocess.run([*command, *arguments], input=data, capture_output=True)
    if result.returncode:
        reason = result.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(
            f"{purpose} failed: ffmpeg exited with {result.returncode}: "
            f"{reason[-1] if reason else 'it gave no reason'}"
        )
    return result.stdout


def rgb_input(image: UInt8[np.ndarray, "h w c"]) -> list[str]:
    """The arguments that tell FFmpeg of raw pixels on its standard input."""
    height, width, channels = image.shape
    pixels = "gray" if channels == 1 else "rgb24"
    source = f"-f rawvideo -pix_fmt {pixels} -s {width}x{height} -i pipe:"
    return [*source.split(), "-vf", TO_YUV]


def pad(
    image: UInt8[np.ndarray, "h w c"],
) -> tuple[UInt8[np.ndarray, "H W c"], int, int]:
    """Repeats the last row and column until both sides are even and large enough.

    Returns:
        The padded image, and how many rows and columns were added.
    """
    rows, columns = (max(SMALLEST, size + size % 2) - size for size in image.shape[:2])
    padded = np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge")
    return padded, rows, columns


def to_planes(image: UInt8[np.ndarray, "h w 3"], pixel_format: str) -> bytes:
    """RGB to the planes of an 8-bit YUV format, such as yuv420p."""
    output = ["-pix_fmt", pixel_format, "-f", "rawvideo", "pipe:"]
    return run([*rgb_input(image), *output], image.tobytes(), "RGB to YUV")


def to_rgb(
    planes: bytes, pixel_format: str, height: int, width: int
) -> UInt8[np.ndarray, "h w 3"]:
    """The planes of an 8-bit YUV format to RGB.

    Raises:
        UserError: there are more or fewer bytes than the size asks for.
    """
    expected = height * width * {"yuv420p": 3, "yuv444p": 6}[pixel_format] // 2
    if len(planes) != expected:
        raise UserError(
            f"the decoder wrote {len(planes)} bytes, but {width}x{height} pixels of "
            f"8-bit {pixel_format} are {expected}: mend its command"
        )
    source = f"-f rawvideo -pix_fmt {pixel_format} -s {width}x{height} -i pipe:"
    output = f"-vf {TO_RGB} -pix_fmt rgb24 -f rawvideo pipe:"
    rgb = run([*source.split(), *output.split()], planes, "YUV to RGB")
    return np.frombuffer(rgb, np.uint8).reshape(height, width, 3)


class IntraCodec:
    """An intra frame of a video encoder as an image codec.

    The stream is the encoder's own, parameter sets included, after two bytes of ours:
    the rows and the columns that were added to make the sides even, and whether the
    image is grey (coded with neutral chroma).
    """

    name: str
    qualities: Sequence[int]
    pillow_decodes = False
    stream: str
    """FFmpeg's name of the raw stream format."""

    def arguments(self, quality: int) -> list[str]:
        """FFmpeg's arguments for the encoder."""
        raise NotImplementedError

    def encode(self, image: UInt8[np.ndarray, "h w c"], quality: int) -> bytes:
        """Compresses an RGB image, or a grey one of one channel.

        Raises:
            UserError: no such quality, or the encoder fails.
        """
        codecs.check_quality(self, quality)
        padded, rows, columns = pad(image)
        # Not through a pipe: vvenc writes its warnings to standard output, into the
        # stream.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "stream"
            output = [*self.arguments(quality), "-f", self.stream, str(path)]
            purpose = f"{self.name}: encoding {image.shape[1]}x{image.shape[0]} pixels"
            run([*rgb_input(padded), *output], padded.tobytes(), purpose)
            stream = path.read_bytes()
        grey = GREY if image.shape[-1] == 1 else 0
        return bytes([rows | grey, columns]) + stream

    def decode(self, data: bytes) -> UInt8[np.ndarray, "h w c"]:
        """Decodes a bitstream to RGB, or to one channel if it is grey.

        Raises:
            UserError: the stream is damaged.
        """
        rows, columns, channels = data[0] & ~GREY, data[1], 1 if data[0] & GREY else 3
        # PAM: raw pixels after a text header that says their size.
        pixels = "gray" if channels == 1 else "rgb24"
        output = f"-vf {TO_RGB} -frames:v 1 -pix_fmt {pixels} -c:v pam -f image2pipe"
        pam = run(
            ["-f", self.stream, "-i", "pipe:", *output.split(), "pipe:"],
            data[2:],
            f"{self.name}: decoding {len(data)} bytes",
        )
        header, separator, pixels = pam.partition(b"ENDHDR\n")
        if not separator:
            raise UserError(f"{self.name}: the {len(data)} bytes hold no picture")
        fields = dict(line.split() for line in header.splitlines()[1:])
        height, width = int(fields[b"HEIGHT"]), int(fields[b"WIDTH"])
        image = np.frombuffer(pixels, np.uint8).reshape(height, width, channels)
        return image[: height - rows, : width - columns]


def library_version(library: str) -> str:
    """FFmpeg's version, and which of its libraries encodes."""
    first = run(["-version"], b"", "asking ffmpeg for its version").split(b"\n")[0]
    return f"{library} in FFmpeg {first.split()[2].decode()} (imageio-ffmpeg)"
