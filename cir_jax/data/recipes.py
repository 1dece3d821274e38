"""Degradation recipes: from a clean image to its compressed versions.

A recipe is run by `cir encode`, once for each crop, or by the training reader, afresh
for each batch. It is a list of degradations, each written as text:

    jpeg 10,20,30,40                   a codec and its qualities
    jpeg 5:95:1 shifted + jpeg 5:95:1  steps in a row; the first one's grid is shifted
    noise 15,25,50                     Gaussian noise of that standard deviation, 0..255

`shifted` moves the codec's block grid by 0..7 rows and columns at random: what happens
to a JPEG that is cropped and saved again.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from cir_jax import codecs
from cir_jax.data.records import Version, encode_lossless
from cir_jax.errors import UserError, unknown

BLOCK = 8
"""The side of a JPEG block, pixels."""
NOISE = "noise"
SHIFTED = "shifted"
TRIAL = np.full((64, 64, 3), 128, np.uint8)
ONLINE = "online:"
"""Marks a recipe that the training reader runs, on records of clean crops."""


class Step(NamedTuple):
    """One operation of a degradation."""

    codec: str
    """What `codecs.get_codec` takes, or "noise"."""
    quality: int
    shifted: bool

    def __str__(self) -> str:
        return f"{self.codec} {self.quality}" + f" {SHIFTED}" * self.shifted


Chain = tuple[Step, ...]
"""The operations of one degradation, in order."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Which degraded versions an image gets.

    Attributes:
        degradations: as text, see above.
        weights: how often each degradation is drawn, relative to the others; all the
            same when empty.
        draws: how many different versions each image gets, drawn at random; None for
            every quality of every degradation, in order.
    """

    degradations: tuple[str, ...]
    weights: tuple[float, ...] = ()
    draws: int | None = None

    def __post_init__(self):
        if not self.degradations:
            raise UserError("a recipe needs at least one degradation")
        if self.weights and len(self.weights) != len(self.degradations):
            raise UserError(
                f"the recipe has {len(self.degradations)} degradations and "
                f"{len(self.weights)} weights: give one each"
            )
        if any(weight <= 0 for weight in self.weights):
            raise UserError(f"the recipe's weights {self.weights} must be above 0")
        count = len(self.chains)  # which reads the texts, so wrong ones show here
        if self.draws is not None and not 1 <= self.draws <= count:
            raise UserError(
                f"the recipe draws {self.draws} of its {count} degradations: give 1 to "
                "all of them"
            )

    @functools.cached_property
    def chains(self) -> tuple[Chain, ...]:
        """Every quality of every degradation."""
        return tuple(itertools.chain.from_iterable(self._choices))

    @functools.cached_property
    def _choices(self) -> tuple[tuple[Chain, ...], ...]:
        """The chains of each degradation: the product of its steps' qualities."""
        return tuple(
            tuple(itertools.product(*map(_parse_step, text.split(" + "))))
            for text in self.degradations
        )

    @property
    def codecs(self) -> list[str]:
        """The codecs that the recipe uses, sorted."""
        used = {step.codec for chain in self.chains for step in chain}
        return sorted(used - {NOISE})

    @property
    def versions_of_codecs(self) -> dict[str, str]:
        """The version of every codec, by the name that records use."""
        return {_codec(name).name: _codec(name).version for name in self.codecs}

    def check(self) -> None:
        """Tries every codec at every quality, on a small image, before any work.

        Raises:
            UserError: a codec is unknown, its library or weights missing or its command
                failing, or it does not have one of the qualities.
        """
        for step in dict.fromkeys(itertools.chain.from_iterable(self.chains)):
            if step.codec != NOISE:
                _try(step.codec, step.quality)
            elif step.quality < 0:
                raise UserError(f"noise {step.quality}: give 0 or more")

    def with_codecs(self, replacements: Mapping[str, str]) -> "Recipe":
        """The recipe with codecs replaced by name.

        Raises:
            UserError: the recipe has no codec of such a name.
        """
        for name in replacements:
            if name not in self.codecs:
                raise unknown("codec of the recipe", name, self.codecs)

        def replaced(text: str) -> str:
            steps = map(shlex.split, text.split(" + "))
            return " + ".join(
                shlex.join([replacements.get(name, name), *rest])
                for name, *rest in steps
            )

        return dataclasses.replace(
            self, degradations=tuple(map(replaced, self.degradations))
        )

    def without(self, codec: str) -> "Recipe":
        """The recipe without the degradations that use a codec."""
        kept = [
            number
            for number, chains in enumerate(self._choices)
            if codec not in {step.codec for step in chains[0]}
        ]
        return dataclasses.replace(
            self,
            degradations=tuple(self.degradations[number] for number in kept),
            weights=tuple(self.weights[number] for number in kept if self.weights),
        )

    def versions(
        self, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
    ) -> tuple[Version, ...]:
        """Degrades an image in all the ways of the recipe, or in `draws` of them.

        Raises:
            UserError: a codec fails.
        """
        chains = self.chains
        if self.draws is not None:
            drawn: dict[Chain, None] = {}
            while len(drawn) < self.draws:
                drawn[self._draw(rng)] = None
            chains = tuple(drawn)
        return tuple(_version(image, chain, rng) for chain in chains)

    def degrade(
        self, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Degrades an image in one way of the recipe, drawn at random.

        Raises:
            UserError: a codec fails.
        """
        for step in self._draw(rng):
            image = _Applied(step, rng).pixels(image)
        return image

    def _draw(self, rng: np.random.Generator) -> Chain:
        """A degradation by weight, then a quality of each of its steps."""
        shares = self.weights or (1,) * len(self.degradations)
        ends = np.cumsum(shares) / math.fsum(shares)
        number = int(np.searchsorted(ends[:-1], rng.random(), side="right"))
        chains = self._choices[number]
        return chains[int(rng.integers(len(chains)))]


def _parse_step(text: str) -> list[Step]:
    """The steps that a part of a degradation stands for, one for each quality."""
    match shlex.split(text):
        case [codec, qualities]:
            shifted = False
        case [codec, qualities, word] if word == SHIFTED and codec != NOISE:
            shifted = True
        case _:
            raise UserError(
                f"cannot read the degradation step {text.strip()!r}: give CODEC "
                f"QUALITIES, such as 'jpeg 10,20', 'jpeg 5:95:5 {SHIFTED}' or "
                f"'{NOISE} 25'"
            )
    numbers = codecs.parse_qualities(qualities)
    return [Step(codec, number, shifted) for number in numbers]


@functools.cache
def _codec(name: str) -> codecs.CodecProtocol:
    return codecs.get_codec(name)


@functools.cache
def _try(name: str, quality: int) -> None:
    """Encodes a small image."""
    codecs.check_quality(_codec(name), quality)
    _codec(name).encode(TRIAL, quality)


class _Applied:
    """A step with its random choices made."""

    def __init__(self, step: Step, rng: np.random.Generator):
        self._step, self._rng = step, rng
        self.shift = (0, 0)
        if step.shifted:
            self.shift = tuple(map(int, rng.integers(BLOCK, size=2)))

    def __str__(self) -> str:
        shift = " at {},{}".format(*self.shift) if self._step.shifted else ""
        return f"{self.label} {self._step.quality}{shift}"

    @property
    def label(self) -> str:
        """What records call the codec."""
        name = self._step.codec
        return name if name == NOISE else _codec(name).name

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """The degraded image."""
        if self._step.codec != NOISE:
            return self.decode(self.encode(image))
        noise = self._rng.normal(scale=self._step.quality, size=image.shape)
        return np.clip(np.round(image + noise), 0, 255).astype(np.uint8)

    def encode(self, image: np.ndarray) -> bytes:
        """The bitstream: of the image with mirrored rows and columns in front."""
        y, x = self.shift
        if self.shift != (0, 0):  # np.pad takes a third of a JPEG's time
            image = np.pad(image, ((y, 0), (x, 0), (0, 0)), mode="symmetric")
        with self._named_failure(image):
            return _codec(self._step.codec).encode(image, self._step.quality)

    def decode(self, bitstream: bytes) -> np.ndarray:
        """The image without the rows and columns in front."""
        y, x = self.shift
        with self._named_failure(bitstream):
            image = _codec(self._step.codec).decode(bitstream)
        return np.ascontiguousarray(image[y:, x:])

    @contextlib.contextmanager
    def _named_failure(self, given: np.ndarray | bytes) -> Iterator[None]:
        """Says which codec failed, whatever its library raises."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            what = f"{len(given)} bytes"
            if isinstance(given, np.ndarray):
                what = "{1}x{0} pixels".format(*given.shape)
            raise UserError(f"codec {self} failed on {what}: {error}") from error

    def stored(self, image: np.ndarray) -> tuple[int, bytes]:
        """The bits of the bitstream, and what a record keeps of the result."""
        if self._step.codec == NOISE:
            return 0, encode_lossless(self.pixels(image))
        bitstream = self.encode(image)
        if _codec(self._step.codec).pillow_decodes and self.shift == (0, 0):
            return 8 * len(bitstream), bitstream
        return 8 * len(bitstream), encode_lossless(self.decode(bitstream))


def _version(image: np.ndarray, chain: Chain, rng: np.random.Generator) -> Version:
    *before, last = (_Applied(step, rng) for step in chain)
    for step in before:
        image = step.pixels(image)
    bits, stored = last.stored(image)
    return Version(
        codec="+".join(step.label for step in (*before, last)),
        quality=chain[-1].quality,
        bits=bits,
        image=stored,
        history=" + ".join(map(str, (*before, last))),
    )


TRADITIONAL = ("jpeg 10,20,30,40", "hevc 47,42,37,32", "vvc 47,42,37,32")
LEARNED = (
    "compressai:cheng2020-attn:mse 1,2,3,4",
    "compressai:cheng2020-attn:ms-ssim 1,2,3,4",
    "hific 1,2,3",
)
PRESETS = {
    # PromptCIR's first stage: seven predefined quality factors. The paper's are not
    # known; 10..70 is a guess.
    "jpeg7": Recipe(("jpeg 10:70:10",)),
    # Blind training: a crop gets 8 of the 91 qualities, so crops that overlap, and the
    # epochs over them, see most.
    "blind-jpeg": Recipe(("jpeg 5:95:1",), draws=8),
    # Saved, cropped and saved again: half of what blind restorers meet on the web.
    "double-jpeg": Recipe(
        ("jpeg 5:95:1 shifted + jpeg 5:95:1", "jpeg 5:95:1"), draws=8
    ),
    # The 23 degradations of UCIP's data set; x265 for HM, VVenC for VTM.
    "ucsr": Recipe((*TRADITIONAL, *LEARNED)),
    "ucsr-traditional": Recipe(TRADITIONAL),
    # The all-in-one setting's three noise levels.
    "noise": Recipe(("noise 15,25,50",)),
}
OPTIONAL = {"ucsr": tuple(text.split()[0] for text in LEARNED)}
"""Codecs that a preset goes without where they are missing: they need weights that
nobody may pass on, or a program of one's own."""


def get_recipe(name: str) -> Recipe:
    """The recipe of a preset's name, or of a TOML file.

    A file holds `degradations`, a list of texts, and if wanted `weights` and `draws`,
    see `Recipe`. The mark "online:" in front is left to the caller.

    Raises:
        UserError: no such preset (names the near ones) or file, or the file is wrong.
    """
    if not name.endswith(".toml"):
        if name not in PRESETS:
            raise unknown("recipe", name, [*PRESETS, "FILE.toml"])
        return PRESETS[name]
    try:
        settings = tomllib.loads(Path(name).read_text())
    except OSError as error:
        raise UserError(f"recipe {name}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {name} is no TOML: {error}") from error
    return from_settings(settings, name)


def from_settings(settings: Mapping[str, Any], where: str = "the manifest") -> Recipe:
    """The recipe that a TOML file or a manifest describes.

    Args:
        settings: the fields of `Recipe`; lists stand for tuples.
        where: where they come from, for errors.

    Raises:
        UserError: a field is unknown, missing or of another kind.
    """
    fields = [field.name for field in dataclasses.fields(Recipe)]
    for key in settings:
        if key not in fields:
            raise unknown(f"key of recipe {where}", key, fields)
    try:
        return Recipe(
            tuple(settings["degradations"]),
            tuple(map(float, settings.get("weights", ()))),
            settings.get("draws"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"recipe {where}: give degradations, a list of texts, and if you like "
            "weights, a list of numbers, and draws, a whole number"
        ) from error


def available(recipe: Recipe, optional: tuple[str, ...]) -> tuple[Recipe, list[str]]:
    """A recipe without those of its codecs that are optional and not there.

    Returns:
        The recipe, and for each codec that was left out a sentence that says which
        versions that costs, and why.

    Raises:
        UserError: a codec that is not optional is missing; see `Recipe.check`.
    """
    left_out = []
    for codec in optional:
        if codec not in recipe.codecs:
            continue
        steps = [chain[0] for chain in recipe.chains if chain[0].codec == codec]
        try:
            for step in steps:
                _try(codec, step.quality)
        except UserError as error:
            qualities = ",".join(str(step.quality) for step in steps)
            left_out.append(
                f"{codec} {qualities} ({error}; --use {codec}=CODEC puts another in "
                "its place, such as command:FILE.toml)"
            )
            recipe = recipe.without(codec)
    recipe.check()
    return recipe, left_out


def for_reader(name: str, contents: Mapping[str, Any]) -> Recipe | None:
    """The recipe that the training reader runs, if it runs one.

    Args:
        name: `config.data.recipe`: "online:" and a preset or TOML file, or "" for what
            the records were made for.
        contents: the records' manifest.

    Raises:
        UserError: the name lacks its mark, there is no such recipe, or see
            `Recipe.check`.
    """
    if name and not name.startswith(ONLINE):
        raise UserError(
            f"config.data.recipe={name}: give {ONLINE}{name}, or nothing to train on "
            "the versions in the records"
        )
    if not name and not contents.get("online"):
        return None
    recipe = (
        get_recipe(name.removeprefix(ONLINE))
        if name
        else from_settings(contents["recipe"])
    )
    recipe.check()
    return recipe
