"""HEVC intra coding by x265: what stands here for HM, never called HM."""

from typing import ClassVar

from cir_jax.codecs import _ffmpeg
from cir_jax.errors import unknown

PIXEL_FORMATS = {"4:2:0": "yuv420p", "4:4:4": "yuv444p"}


class Codec(_ffmpeg.IntraCodec):
    """x265's slower preset, 8 bits, at QP 51 (worst) to 0.

    `ipratio=1` makes QP the QP of the I frame, as in the reference encoder (x265 takes
    3 off otherwise); `info=0` leaves out a text of 2 kB; one thread makes the stream
    independent of the machine.
    """

    qualities: ClassVar[range] = range(51, -1, -1)
    stream = "hevc"

    def __init__(self, subsampling: str = "4:2:0"):
        if subsampling not in PIXEL_FORMATS:
            raise unknown("HEVC chroma subsampling", subsampling, PIXEL_FORMATS)
        self.subsampling = subsampling
        self.name = "hevc" if subsampling == "4:2:0" else f"hevc:{subsampling}"
        _ffmpeg.executable()

    @property
    def version(self) -> str:
        """The library that encodes, with its version and the arguments in force."""
        library = _ffmpeg.library_version("libx265")
        return f"HEVC intra, {library}, slower, 8-bit {self.subsampling}"

    def arguments(self, quality: int) -> list[str]:
        """FFmpeg's arguments for the encoder."""
        settings = (
            f"qp={quality}:keyint=1:ipratio=1:info=0:log-level=none"
            ":pools=none:frame-threads=1"
        )
        pixels = PIXEL_FORMATS[self.subsampling]
        encoder = f"-pix_fmt {pixels} -c:v libx265 -preset slower -x265-params"
        return [*encoder.split(), settings]
