"""Degradation recipes: which degraded versions an image gets.

A recipe is run by `cir encode`, once for each crop, or by the training reader, afresh
for each batch. It is a list of degradations as text, see degradations.py.
"""

import dataclasses
import functools
import itertools
import math
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from cir_jax.data import degradations
from cir_jax.data.degradations import NOISE, Chain
from cir_jax.data.records import Version
from cir_jax.errors import UserError, unknown

ONLINE = "online:"
"""Marks a recipe that the training reader runs, on records of clean crops."""
Kind = tuple[str, int]
"""What a degraded version is called: its label, such as "jpeg", and its quality."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Which degraded versions an image gets.

    Attributes:
        degradations: as text, see degradations.py.
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
        if not all(0 < weight < math.inf for weight in self.weights):
            raise UserError(
                f"the recipe's weights {self.weights} must be above 0 and finite"
            )
        count = len(self.chains)  # which reads the texts, so wrong ones show here
        if self.draws is not None and self.draws not in range(1, count + 1):
            raise UserError(
                f"the recipe draws {self.draws} of its {count} degradations: give a "
                "whole number from 1 to all of them"
            )

    @functools.cached_property
    def chains(self) -> tuple[Chain, ...]:
        """Every quality of every degradation."""
        return tuple(itertools.chain.from_iterable(self._choices))

    @functools.cached_property
    def _choices(self) -> tuple[tuple[Chain, ...], ...]:
        """The chains of each degradation: the product of its steps' qualities."""
        return tuple(map(degradations.parse, self.degradations))

    @property
    def changes_originals(self) -> bool:
        """Whether steps are kept, so that only the training reader can run it."""
        return any(chain[0].kept for chain in self.chains)

    @property
    def codecs(self) -> list[str]:
        """The codecs that the recipe uses, sorted."""
        used = {step.codec for chain in self.chains for step in chain}
        return sorted(used - {NOISE})

    @property
    def versions_of_codecs(self) -> dict[str, str]:
        """The version of every codec, by the name that records use."""
        made = map(degradations.codec, self.codecs)
        return {codec.name: codec.version for codec in made}

    def check(self) -> None:
        """Tries every codec at every quality, on a small image, before any work.

        Raises:
            UserError: a codec is unknown, its library or weights missing or its command
                failing, or it does not have one of the qualities.
        """
        for step in dict.fromkeys(itertools.chain.from_iterable(self.chains)):
            degradations.check(step)

    def with_codecs(self, replacements: Mapping[str, str]) -> "Recipe":
        """The recipe with codecs replaced by name.

        Raises:
            UserError: the recipe has no codec of such a name.
        """
        for name in replacements:
            if name not in self.codecs:
                raise unknown("codec of the recipe", name, self.codecs)

        def replaced(text: str) -> str:
            return " + ".join(
                shlex.join([replacements.get(name, name), *rest])
                for name, *rest in degradations.split(text)
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
        chains = self._draw(rng, self.draws) if self.draws else self.chains
        return tuple(degradations.version(image, chain, rng) for chain in chains)

    def draw(self, rng: np.random.Generator) -> Chain:
        """One degradation, drawn at random."""
        (chain,) = self._draw(rng, 1)
        return chain

    def _draw(self, rng: np.random.Generator, count: int) -> list[Chain]:
        """Different degradations, drawn at random."""
        picks = rng.choice(len(self.chains), count, replace=False, p=self._shares)
        return [self.chains[pick] for pick in picks]

    @functools.cached_property
    def _shares(self) -> Float64[np.ndarray, " chains"]:
        """How likely each chain is: its degradation's weight, shared among its own."""
        weights = self.weights or (1.0,) * len(self.degradations)
        shares = np.concatenate(
            [
                np.full(len(chains), weight / len(chains))
                for chains, weight in zip(self._choices, weights, strict=True)
            ]
        )
        return shares / shares.sum()


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
    # What pictures on the web went through; good JPEGs that were saved once more on the
    # same grid, often at the same quality, to which next to nothing happens; and some
    # that went through nothing. For the reader alone.
    "web": Recipe(
        (
            "jpeg 5:30:1",
            "jpeg 31:95:1",
            "jpeg:4:4:4 5:95:1",
            "jpeg 5:95:1 shifted + jpeg 5:95:1",
            "jpeg 90,92,95,97 kept + jpeg 90:97:1",
            "jpeg 90 kept + jpeg 90",
            "jpeg 92 kept + jpeg 92",
            "jpeg 95 kept + jpeg 95",
            "jpeg 97 kept + jpeg 97",
            "webp 5:95:5",
            "avif 20:90:5",
            "noise 0",
        ),
        weights=(28.0, 24.0, 8.0, 16.0, 12.0, 3.0, 3.0, 9.0, 3.0, 5.0, 2.0, 5.0),
    ),
    # The all-in-one setting's three noise levels.
    "noise": Recipe(("noise 15,25,50",)),
}
OPTIONAL = {"ucsr": tuple(text.split()[0] for text in LEARNED)}
"""Codecs that a preset goes without where they are missing: they need weights that
nobody may pass on, or a program of one's own."""


Reading = Recipe | tuple[Recipe | None, ...] | None
"""What the training reader runs: a recipe, or None to take the versions in the records;
for a mix one or the other for each part."""


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
    """
    left_out = []
    for codec in optional:
        if codec not in recipe.codecs:
            continue
        steps = [chain[0] for chain in recipe.chains if chain[0].codec == codec]
        try:
            for step in steps:
                degradations.check(step)
        except UserError as error:
            qualities = ",".join(str(step.quality) for step in steps)
            left_out.append(
                f"{codec} {qualities} ({error}; --use {codec}=CODEC puts another in "
                "its place, such as command:FILE.toml)"
            )
            recipe = recipe.without(codec)
    return recipe, left_out


def for_reader(name: str, contents: Mapping[str, Any]) -> Reading:
    """What the training reader runs.

    Args:
        name: `config.data.recipe`: "online:" and a preset or TOML file, or "" for what
            the records were made for.
        contents: the records' manifest.

    Raises:
        UserError: the name lacks its mark, or is given for a mix; there is no such
            recipe; or see `Recipe.check`.
    """
    if name and not name.startswith(ONLINE):
        raise UserError(
            f"config.data.recipe={name}: give {ONLINE}{name}, or nothing to train on "
            "the versions in the records"
        )
    if "parts" in contents:
        if name:
            raise UserError(
                f"config.data.recipe={name}, but the records are a mix, each of whose "
                "parts has its own: set it to ''"
            )
        return tuple(for_reader("", part.contents) for part in contents["parts"])
    if not name and not contents.get("online"):
        return None
    recipe = (
        get_recipe(name.removeprefix(ONLINE))
        if name
        else from_settings(contents["recipe"])
    )
    recipe.check()
    return recipe


def kinds(
    reading: Reading, contents: Mapping[str, Any], qualities: Sequence[int] = ()
) -> set[Kind]:
    """What degraded versions a training can meet.

    Args:
        reading: what the reader runs, see `for_reader`.
        contents: the records' manifest.
        qualities: those of the records that are used; all when empty.
    """
    if isinstance(reading, tuple):
        each = zip(reading, contents["parts"], strict=True)
        found = (kinds(recipe, part.contents, qualities) for recipe, part in each)
        return set().union(*found)
    if reading:
        return {
            (degradations.label(chain), chain[-1].quality) for chain in reading.chains
        }
    versions = (version.rsplit(" ", 1) for version in contents["versions"])
    return {
        (label, int(quality))
        for label, quality in versions
        if not qualities or int(quality) in qualities
    }


def labels(
    reading: Reading, contents: Mapping[str, Any], qualities: Sequence[int] = ()
) -> set[str]:
    """What the degraded versions are called, such as "jpeg"; arguments of `kinds`."""
    return {label for label, _ in kinds(reading, contents, qualities)}
