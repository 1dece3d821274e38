"""Learned codecs through CompressAI's networks and its range coder."""

import struct
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from cir_jax import codecs
from cir_jax.errors import UserError, unknown
from cir_jax.files import sha256

STRIDE = 64
"""Every network halves the image at most six times."""
HEADER = struct.Struct("<BIIHHB")
"""Quality, height and width, the latent's height and width, number of strings."""
KEPT_NETWORKS = 2


class Codec:
    """A network of CompressAI's zoo at its quality 1 (worst) to 6 or 8.

    Bitstreams decode where they were made: the networks compute the range coder's
    tables in floating point, and another processor or version of PyTorch may round
    them otherwise, which damages the image.

    Args:
        argument: ARCH:METRIC or ARCH:METRIC:WEIGHTS. WEIGHTS is a file with the state
            dict of the network, `{quality}` in its path standing for the quality;
            without it the zoo's own weights are downloaded.

    Raises:
        UserError: CompressAI is not installed, or has no such network or metric.
    """

    pillow_decodes: ClassVar[bool] = False
    suffix: ClassVar[str] = ""

    def __init__(self, argument: str = "cheng2020-attn:mse"):
        zoo = _zoo().image
        self.architecture, _, rest = argument.partition(":")
        self.metric, _, self.weights = rest.partition(":")
        if self.architecture not in zoo.model_urls:
            raise unknown("CompressAI network", self.architecture, zoo.model_urls)
        metrics = zoo.model_urls[self.architecture]
        if self.metric not in metrics:
            raise unknown("CompressAI metric", self.metric, metrics)
        self.name = f"{self.architecture}-{self.metric}"
        self.qualities = tuple(sorted(zoo.cfgs[self.architecture]))
        self._networks: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes load the networks themselves: pickles stay small.
        return {**self.__dict__, "_networks": {}}

    @property
    def version(self) -> str:
        """The libraries that encode, with their versions and the network in force."""
        library = f"CompressAI {metadata.version('compressai')}"
        weights = f"weights {Path(self.weights).name if self.weights else 'zoo'}"
        # Records by other weights of the same name must not be taken for these.
        paths = {self._path(quality) for quality in self.qualities if self.weights}
        sums = [sha256(path)[:12] for path in sorted(paths) if path.is_file()]
        weights += f" (sha256 {' '.join(sums)})" * bool(sums)
        network = f"{self.architecture}, {self.metric}, {weights}"
        return f"{library}, {network}, torch {metadata.version('torch')}"

    def encode(self, image: UInt8[np.ndarray, "h w c"], quality: int) -> bytes:
        """Compresses an RGB image.

        Raises:
            UserError: the network does not have the quality, its weights cannot be
                loaded, or the image is grey.
        """
        codecs.check_quality(self, quality)
        codecs.refuse_grey(self, image)
        height, width, _ = image.shape
        network = self._network(quality)
        import torch

        padding = ((0, -height % STRIDE), (0, -width % STRIDE), (0, 0))
        padded = np.pad(image, padding, mode="edge")
        with torch.inference_mode():
            pixels = torch.from_numpy(padded).permute(2, 0, 1)[None] / 255
            coded = network.compress(pixels)
        strings = [batch[0] for batch in coded["strings"]]
        head = HEADER.pack(quality, height, width, *coded["shape"], len(strings))
        lengths = struct.pack(f"<{len(strings)}I", *map(len, strings))
        return b"".join([head, lengths, *strings])

    def decode(self, data: bytes) -> UInt8[np.ndarray, "h w c"]:
        """Decodes what `encode` made, to RGB.

        Raises:
            UserError: the bitstream is damaged, or the weights cannot be loaded.
        """
        quality, (height, width), latent, strings = self._unpack(data)
        network = self._network(quality)
        import torch

        with torch.inference_mode():
            decoded = network.decompress([[string] for string in strings], latent)
            pixels = (decoded["x_hat"][0].clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(1, 2, 0)[:height, :width].numpy()

    def _unpack(
        self, data: bytes
    ) -> tuple[int, tuple[int, int], tuple[int, int], list[bytes]]:
        """Quality, image size, latent size and strings of a bitstream.

        Raises:
            UserError: the bitstream is not what `encode` makes. The range decoder would
                read past the end of a short string without a word.
        """
        damaged = UserError(
            f"a {self.name} bitstream of {len(data)} bytes is damaged or cut short: "
            "encode the image again"
        )
        try:
            quality, height, width, *latent, count = HEADER.unpack_from(data)
            lengths = struct.unpack_from(f"<{count}I", data, HEADER.size)
        except struct.error as error:
            raise damaged from error
        start = HEADER.size + 4 * count
        if quality not in self.qualities or len(data) != start + sum(lengths):
            raise damaged
        strings = []
        for length in lengths:
            strings.append(data[start : start + length])
            start += length
        return quality, (height, width), tuple(latent), strings

    def _network(self, quality: int) -> Any:
        """The network of a quality, ready to compress; the last two made are kept.

        Raises:
            UserError: its weights cannot be loaded.
        """
        import torch

        # The range decoder needs the very floats that the encoder had, and sums split
        # among threads round otherwise; worker processes use the other cores.
        torch.set_num_threads(1)
        if quality not in self._networks:
            network = self._from_file(quality) if self.weights else self._zoos(quality)
            network.update(force=True)
            while len(self._networks) >= KEPT_NETWORKS:
                self._networks.pop(next(iter(self._networks)))
            self._networks[quality] = network.eval()
        return self._networks[quality]

    def _zoos(self, quality: int) -> Any:
        """The zoo's own network, downloaded if it was not yet."""
        zoo = _zoo()
        make = zoo.image_models[self.architecture]
        try:
            return make(quality, metric=self.metric, pretrained=True)
        except (OSError, RuntimeError) as error:
            url = zoo.image.model_urls[self.architecture][self.metric][quality]
            raise UserError(
                f"cannot download {url} ({error}): download it elsewhere and give the "
                f"file, as compressai:{self.architecture}:{self.metric}:FILE"
            ) from error

    def _path(self, quality: int) -> Path:
        """The user's file for a quality."""
        return Path(self.weights.replace("{quality}", str(quality)))

    def _from_file(self, quality: int) -> Any:
        """The network with a state dict from the user's file."""
        zoo = _zoo()
        path = self._path(quality)
        state = zoo.load_state_dict(_read_state(path))  # renames keys of old files
        sizes = zoo.image.cfgs[self.architecture][quality]
        network = zoo.image.model_architectures[self.architecture](*sizes)
        expected = network.state_dict()
        wrong = [f"{key} is missing" for key in expected if key not in state]
        wrong += [f"{key} is unexpected" for key in state if key not in expected]
        if not wrong:
            try:
                network.load_state_dict(state)
            except RuntimeError as error:
                wrong = str(error).split("\n\t")[1:] or [str(error)]
        if wrong:
            raise UserError(
                f"{path} does not fit {self.architecture} at quality {quality} "
                f"({'; '.join(wrong[:3])}): give weights of this network and quality"
            )
        return network


def _zoo() -> ModuleType:
    """CompressAI's module of networks.

    Raises:
        UserError: CompressAI is not installed.
    """
    try:
        from compressai import zoo
    except ImportError as error:
        raise UserError(
            f"learned codecs need CompressAI, which cannot be imported ({error}): "
            "pip install 'cir_jax[learned-codecs]'"
        ) from error
    return zoo


def _read_state(path: Path) -> dict[str, Any]:
    """Reads a state dict, alone or under a checkpoint's "state_dict".

    Raises:
        UserError: the file is missing, or holds no state dict.
    """
    if not path.is_file():
        raise UserError(
            f"weights file {path} does not exist: mind the place of {{quality}} in its "
            "name, or leave it out to take the zoo's"
        )
    import safetensors.torch
    import torch

    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
        if not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise TypeError("it has values that are no tensors")
    # Whatever the file really is decides what the readers raise.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"cannot read {path} ({reason}): give a state dict of tensors, saved by "
            "torch.save or as .safetensors"
        ) from error
    return state
