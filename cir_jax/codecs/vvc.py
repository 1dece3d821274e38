"""VVC intra coding by VVenC: what stands here for VTM, never called VTM."""

from typing import ClassVar

from cir_jax.codecs import _ffmpeg
from cir_jax.errors import unknown

PRESETS = ("faster", "fast", "medium", "slow", "slower")


class Codec(_ffmpeg.IntraCodec):
    """VVenC, 10 bits 4:2:0 inside, at QP 63 (worst) to 0.

    `intraqpoffset=0` and `-qpa 0` make QP the QP of every block, as in the reference
    encoder. `faster` is for training sets; `medium` and `slower`, 10 and 100 times as
    long, for test sets: "vvc:medium".
    """

    qualities: ClassVar[range] = range(63, -1, -1)
    stream = "vvc"

    def __init__(self, preset: str = "faster"):
        if preset not in PRESETS:
            raise unknown("VVenC preset", preset, PRESETS)
        self.preset = preset
        self.name = "vvc" if preset == "faster" else f"vvc:{preset}"
        _ffmpeg.executable()

    @property
    def version(self) -> str:
        """The library that encodes, with its version and the arguments in force."""
        library = _ffmpeg.library_version("libvvenc")
        return f"VVC intra, {library}, {self.preset}, 10-bit 4:2:0"

    def arguments(self, quality: int) -> list[str]:
        """FFmpeg's arguments for the encoder."""
        settings = "intraperiod=1:refreshsec=0:intraqpoffset=0"
        encoder = f"-c:v libvvenc -qp {quality} -qpa 0 -preset {self.preset} -threads 1"
        pixels = "-pix_fmt yuv420p10le"
        return [*pixels.split(), *encoder.split(), "-vvenc-params", settings]
