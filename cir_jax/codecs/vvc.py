"""VVC intra coding by VVenC: what stands here for VTM, never called VTM."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from cir_jax.codecs import _video
from cir_jax.errors import UserError, unknown

PRESETS = ("faster", "fast", "medium", "slow", "slower")


class Codec(_video.IntraCodec):
    """VVenC, 10 bits 4:2:0 inside, at QP 63 (worst) to 0.

    `intraqpoffset=0` and `-qpa 0` make QP the QP of every block, as in the reference
    encoder. `faster` is for training sets; `medium` and `slower`, 10 and 100 times as
    long, for test sets: "vvc:medium".

    FFmpeg gives VVenC a byte a pixel for the stream: noise at low QPs does not fit and
    is refused.
    """

    qualities: ClassVar[range] = range(63, -1, -1)
    pixel_format = "yuv420p10le"
    decoder = "vvc"

    def __init__(self, preset: str = "faster"):
        if preset not in PRESETS:
            raise unknown("VVenC preset", preset, PRESETS)
        self.preset = preset
        self.name = "vvc" if preset == "faster" else f"vvc:{preset}"
        _video.pyav()
        _ffmpeg()

    @property
    def version(self) -> str:
        """The library that encodes, with its version and the arguments in force."""
        printed = subprocess.run(
            [_ffmpeg(), "-version"], capture_output=True, text=True
        )
        library = f"libvvenc in FFmpeg {printed.stdout.split()[2]} (imageio-ffmpeg)"
        return f"VVC intra, {library}, {self.preset}, 10-bit 4:2:0"

    def encode_frame(self, frame: Any, quality: int) -> bytes:
        """Encodes a frame of `pixel_format`.

        Raises:
            UserError: the encoder fails.
        """
        size = f"{frame.width}x{frame.height}"
        source = f"-f rawvideo -pix_fmt {self.pixel_format} -s {size} -i"
        encoder = f"-c:v libvvenc -qp {quality} -qpa 0 -preset {self.preset} -threads 1"
        settings = "intraperiod=1:refreshsec=0:intraqpoffset=0"
        # Files, not pipes: vvenc writes its warnings to standard output, into the
        # stream, and Python feeds a pipe by 512 bytes.
        with tempfile.TemporaryDirectory() as folder:
            planes, stream = Path(folder) / "planes", Path(folder) / "stream"
            frame.to_ndarray().tofile(planes)
            command = [_ffmpeg(), "-hide_banner", "-loglevel", "error", *source.split()]
            command += [str(planes), *encoder.split(), "-vvenc-params", settings]
            done = subprocess.run(
                [*command, "-f", "vvc", str(stream)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                # Without the addresses, which differ each time.
                reason = re.sub(r" @ 0x[0-9a-f]+", "", done.stderr.partition("\n")[0])
                raise UserError(
                    f"{self.name}: ffmpeg exited with {done.returncode} on {size} "
                    f"pixels at QP {quality}: {reason or 'it gave no reason'}"
                )
            return stream.read_bytes()


def _ffmpeg() -> str:
    """The path of the FFmpeg program that has VVenC; PyAV's library has not.

    Raises:
        UserError: the package that carries it is not installed.
    """
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError(
            "VVC needs FFmpeg from the package imageio-ffmpeg: "
            "pip install 'cir_jax[codecs]'"
        ) from error
    return imageio_ffmpeg.get_ffmpeg_exe()
