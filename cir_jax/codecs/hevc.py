"""HEVC intra coding by x265: what stands here for HM, never called HM."""

from typing import Any, ClassVar

from cir_jax.codecs import _video
from cir_jax.errors import unknown

PIXEL_FORMATS = {"4:2:0": "yuv420p", "4:4:4": "yuv444p"}


class Codec(_video.IntraCodec):
    """x265's slower preset, 8 bits, at QP 51 (worst) to 0.

    `ipratio=1` makes QP the QP of the I frame, as in the reference encoder (x265 takes
    3 off otherwise); `info=0` leaves out a text of 2 kB; one thread makes the stream
    independent of the machine.
    """

    qualities: ClassVar[range] = range(51, -1, -1)
    decoder = "hevc"

    def __init__(self, subsampling: str = "4:2:0"):
        if subsampling not in PIXEL_FORMATS:
            raise unknown("HEVC chroma subsampling", subsampling, PIXEL_FORMATS)
        self.subsampling = subsampling
        self.name = "hevc" if subsampling == "4:2:0" else f"hevc:{subsampling}"
        self.pixel_format = PIXEL_FORMATS[subsampling]
        _video.pyav()

    @property
    def version(self) -> str:
        """The library that encodes, with its version and the arguments in force."""
        av = _video.pyav()
        library = f"libx265 in FFmpeg {av.ffmpeg_version_info} (PyAV {av.__version__})"
        return f"HEVC intra, {library}, slower, 8-bit {self.subsampling}"

    def encode_frame(self, frame: Any, quality: int) -> bytes:
        """Encodes a frame of `pixel_format`."""
        encoder = _video.pyav().CodecContext.create("libx265", "w")
        encoder.width, encoder.height = frame.width, frame.height
        encoder.pix_fmt, encoder.time_base = self.pixel_format, _video.ONE_FRAME
        settings = "keyint=1:ipratio=1:info=0:log-level=none:pools=none:frame-threads=1"
        encoder.options = {
            "preset": "slower",
            "x265-params": f"qp={quality}:{settings}",
        }
        packets = [*encoder.encode(frame), *encoder.encode(None)]
        return b"".join(map(bytes, packets))
