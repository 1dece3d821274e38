"""Intra frames of video codecs as images: what HEVC and VVC share.

Decoders, colour conversion and x265 are those of the FFmpeg in PyAV's wheel, in this
process: a crop takes milliseconds, where starting a program takes more than coding.

RGB becomes YUV by full-range BT.709, bicubic chroma, accurate rounding: swscale's work,
the same in both directions and for every codec here.
"""

import contextlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cir_jax import codecs
from cir_jax.errors import UserError

EXACT = "flags=accurate_rnd+full_chroma_int+full_chroma_inp+bicubic"
RANGE = "in_range=full:out_range=full"
TO_YUV = f"{EXACT}:{RANGE}:out_color_matrix=bt709"
TO_RGB = f"{EXACT}:{RANGE}:in_color_matrix=bt709"
SMALLEST = 16
"""Encoders refuse smaller pictures; these are padded."""
GREY = 0x80
ONE_FRAME = Fraction(1, 25)
"""A time base, which filters and encoders want of still pictures too."""


def pyav() -> ModuleType:
    """The PyAV package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import av
        import av.filter
    except ImportError as error:
        raise UserError(
            "HEVC and VVC need the package av: pip install 'cir_jax[codecs]'"
        ) from error
    return av


def to_yuv(image: UInt8[np.ndarray, "h w c"], pixel_format: str) -> Any:
    """RGB or grey pixels to a frame of a YUV format, such as yuv420p."""
    grey = image.shape[-1] == 1
    pixels = np.ascontiguousarray(image[..., 0] if grey else image)
    frame = pyav().VideoFrame.from_ndarray(pixels, "gray" if grey else "rgb24")
    return _converted(frame, TO_YUV, pixel_format)


def to_pixels(frame: Any, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """A frame of a YUV format to RGB, or to one grey channel."""
    pixel_format = "gray" if channels == 1 else "rgb24"
    pixels = _converted(frame, TO_RGB, pixel_format).to_ndarray()
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _converted(frame: Any, scale: str, pixel_format: str) -> Any:
    """A frame in another pixel format, through FFmpeg's scale filter."""
    graph = pyav().filter.Graph()
    graph.link_nodes(
        graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=ONE_FRAME,
        ),
        graph.add("scale", scale),
        graph.add("format", pixel_format),
        graph.add("buffersink"),
    ).configure()
    graph.vpush(frame)
    return graph.vpull()


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


class IntraCodec:
    """An intra frame of a video encoder as an image codec.

    The stream is the encoder's own, parameter sets included, after two bytes of ours:
    the rows and the columns that were added to make the sides even, and whether the
    image is grey (coded with neutral chroma).
    """

    name: str
    qualities: Sequence[int]
    pillow_decodes = False
    suffix = ""
    pixel_format: str
    """FFmpeg's name of the planes that the encoder takes."""
    decoder: str
    """FFmpeg's name of the decoder."""

    def encode_frame(self, frame: Any, quality: int) -> bytes:
        """Encodes a frame of `pixel_format`."""
        raise NotImplementedError

    def encode(self, image: UInt8[np.ndarray, "h w c"], quality: int) -> bytes:
        """Compresses an RGB image, or a grey one of one channel.

        Raises:
            UserError: no such quality, or the encoder fails.
        """
        codecs.check_quality(self, quality)
        padded, rows, columns = pad(image)
        with self._named_failure("encoding {1}x{0} pixels".format(*image.shape)):
            stream = self.encode_frame(to_yuv(padded, self.pixel_format), quality)
        grey = GREY if image.shape[-1] == 1 else 0
        return bytes([rows | grey, columns]) + stream

    def decode(self, data: bytes) -> UInt8[np.ndarray, "h w c"]:
        """Decodes a bitstream to RGB, or to one channel if it is grey.

        Raises:
            UserError: the stream is damaged.
        """
        with self._named_failure(f"decoding {len(data)} bytes"):
            rows, columns = data[0] & ~GREY, data[1]
            channels = 1 if data[0] & GREY else 3
            decoder = pyav().CodecContext.create(self.decoder, "r")
            decoder.thread_count = 1
            packet = pyav().Packet(data[2:])
            frame, *_ = [*decoder.decode(packet), *decoder.decode(None)]
            image = to_pixels(frame, channels)
        return image[: image.shape[0] - rows, : image.shape[1] - columns]

    @contextlib.contextmanager
    def _named_failure(self, purpose: str) -> Iterator[None]:
        """Makes one sentence of what FFmpeg or a stream without a picture raises."""
        try:
            yield
        except (pyav().error.FFmpegError, ValueError, IndexError) as error:
            raise UserError(f"{self.name}: {purpose} failed: {error}") from error
