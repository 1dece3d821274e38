"""Other people's restorers: commands in the evaluation's table, beside our networks.

A peer is written NAME=COMMAND, such as `jpegqs=jpegqs --quality 6 {in} {out}.jpg`.
`{in}` is the compressed image, the very file if it is one of a format that others read
and otherwise a PNG of its pixels; `{out}` is where the command writes the restored one,
a PNG unless a suffix follows. No shell is involved: the words are split before the
placeholders are filled in, so paths with spaces need no quotes.
"""

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cir_jax import image_arrays, image_io, programs
from cir_jax.errors import UserError
from cir_jax.scores import BICUBIC, NONE

TIMEOUT = 600.0
"""Seconds that a program gets for one image; then it is stopped."""
EXAMPLE = "jpegqs='jpegqs --quality 6 {in} {out}.jpg'"
PLACEHOLDER = re.compile(r"\{in\}|\{out\}(?P<suffix>(?:\.\w*)+)?")


@dataclasses.dataclass(frozen=True)
class Peer:
    """A command that restores an image file; `parse_peer` makes and checks it.

    Attributes:
        name: what the table calls it.
        command: the program and its arguments, with the placeholders.
    """

    name: str
    command: tuple[str, ...]

    @property
    def installed(self) -> bool:
        """Whether its program is there."""
        return shutil.which(self.command[0]) is not None

    def restore(
        self,
        bitstream: bytes,
        suffix: str,
        degraded: UInt8[np.ndarray, "h w c"],
        scale: int,
    ) -> tuple[UInt8[np.ndarray, "H W c"], float]:
        """Restores one image. It runs in the current folder, on files of another.

        Args:
            bitstream: the compressed image.
            suffix: of a file of the bitstream, see `CodecProtocol`; "" if no other
                program reads it.
            degraded: what the bitstream decodes to: RGB or one grey channel.
            scale: by how much the program enlarges.

        Returns:
            The restored image, `scale` times as high and wide, and the seconds that the
            program took, its start included. Of one channel if `degraded` is: an RGB
            output is then averaged, which leaves grey as it is.

        Raises:
            UserError: the program is not installed, fails, takes longer than `TIMEOUT`,
                or writes no image, a damaged one or one of another size.
        """
        with tempfile.TemporaryDirectory(prefix="cir_peer_") as folder:
            source = Path(folder) / f"in{suffix or '.png'}"
            (out_suffix,) = _out_suffixes(self.command)
            target = Path(folder) / f"out{out_suffix}"
            if suffix:
                source.write_bytes(bitstream)
            else:
                size = degraded.shape[1], degraded.shape[0]
                image_arrays.pack(size, [degraded]).save(source)
            words = [_filled_in(word, source, target) for word in self.command]
            try:
                ended = programs.run(words, TIMEOUT)
            except OSError as error:
                raise UserError(
                    f"peer {self.name}: {words[0]} cannot be run ({error.strerror}): "
                    "install it, or mend the command"
                ) from error
            if ended.status is None:
                raise self._failed(f"was stopped after {TIMEOUT:g} s", ended)
            if ended.status:
                raise self._failed("failed", ended)
            if not target.is_file():
                raise self._failed(f"wrote no {target.name}", ended)
            try:
                restored = image_io.decode_rgb(target.read_bytes(), target.name)
            except UserError as error:
                raise self._failed(f"wrote what is no use, {error}", ended) from error
        height, width = (scale * side for side in degraded.shape[:2])
        if restored.shape[:2] != (height, width):
            found = f"{restored.shape[1]}x{restored.shape[0]}"
            what = f"wrote {found} pixels, but {width}x{height} are due"
            raise self._failed(what, ended)
        if degraded.shape[-1] == 1:
            mean = restored.mean(axis=-1, keepdims=True)
            restored = np.round(mean).astype(np.uint8)
        return restored, ended.seconds

    def _failed(self, what: str, ended: programs.Ended) -> UserError:
        """The error for a program that did not do its work."""
        status = "none" if ended.status is None else ended.status
        return UserError(
            f"peer {self.name}: {self.command[0]} {what} (exit status {status}; "
            f"{ended.reason}): mend the command, or leave the peer out"
        )


def parse_peer(text: str) -> Peer:
    """Reads NAME=COMMAND, such as "jpegqs=jpegqs --quality 6 {in} {out}.jpg".

    Whether the program is installed is not looked at, see `Peer.installed`.

    Raises:
        UserError: there is no name or a reserved one, the command cannot be split into
            words, lacks `{in}` or `{out}`, has other braces, names several outputs, or
            names one of a format that is not read.
    """
    name, words = programs.named_command("peer", text, EXAMPLE)
    if name in (NONE, BICUBIC):
        raise UserError(
            f"peer {name}: the table has a row {name} of its own: give another name"
        )
    _check_placeholders(name, words)
    return Peer(name, words)


def _check_placeholders(name: str, words: Sequence[str]) -> None:
    """Refuses a command whose files cannot be filled in."""
    whole = " ".join(words)
    for placeholder in ("{in}", "{out}"):
        if placeholder not in whole:
            raise UserError(
                f"peer {name}: its command has no {placeholder}: give one such as "
                f"{EXAMPLE}"
            )
    allowed = "{in} and {out}"
    programs.refuse_other_braces(f"peer {name}", words, PLACEHOLDER, allowed)
    suffixes = _out_suffixes(words)
    if len(suffixes) > 1:
        raise UserError(
            f"peer {name}: its command has several outputs, {{out}} with "
            f"{' and '.join(sorted(suffixes))}: give one, and other files names such "
            "as {in}.tmp"
        )
    (suffix,) = suffixes
    if suffix.lower() not in image_io.SUFFIXES:
        raise UserError(
            f"peer {name}: its output {{out}}{suffix} is not read: let it end in one "
            f"of {', '.join(image_io.SUFFIXES)}, or in nothing for .png"
        )


def _out_suffixes(words: Sequence[str]) -> set[str]:
    """The suffixes of the outputs that a command names; .png where it gives none."""
    found = (match for word in words for match in PLACEHOLDER.finditer(word))
    return {match["suffix"] or ".png" for match in found if match[0] != "{in}"}


def _filled_in(word: str, source: Path, target: Path) -> str:
    """A word of the command with the files' paths."""
    return PLACEHOLDER.sub(
        lambda match: str(source if match[0] == "{in}" else target), word
    )
