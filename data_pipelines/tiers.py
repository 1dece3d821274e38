"""The middle tier: records whose versions a briefly trained network has restored.

Perceive-IR's first stage learns to tell degraded, mediocre and clean images apart. The
mediocre ones come from a network whose training was stopped early; so that they are as
mediocre as on new images, each image is restored by weights that never saw it: one half
of the source trains the weights of the other (`cir encode --fold`).
"""

import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cir_jax import weights
from cir_jax.data import manifest, tfrecord
from cir_jax.data.records import Record, decode, encode_lossless
from cir_jax.errors import UserError
from cir_jax.files import sha256
from cir_jax.restore import Restorer
from data_pipelines import job
from data_pipelines.folds import Fold, number_of, parse_fold

FLAG = "--weights"


@dataclasses.dataclass(frozen=True)
class TierRecords:
    """The records of a folder, each version restored; see `crops.Records`.

    Attributes:
        source: the records as they were.
        contents: their manifest.
        restorers: by the fold that their weights were trained on; by None the one that
            restores all.
        made_of: the checksums of records and weights, for the manifest.
    """

    source: tfrecord.RecordSource
    contents: Mapping[str, Any]
    restorers: Mapping[Fold | None, Restorer]
    made_of: Mapping[str, Any]

    @property
    def origin(self) -> str:
        """Where the images come from."""
        return self.contents["source"]

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """What a record is called that could not be made."""
        return f"record {index}"

    def describe(self) -> dict[str, Any]:
        """What the manifest said of the records, and by what they are restored."""
        kept = {
            key: value for key, value in self.contents.items() if key not in job.RESULTS
        }
        return kept | {"tiers": self.made_of}

    def record(self, index: int) -> Record:
        """The record, with a restored image for each version.

        Raises:
            UserError: it is damaged, or the network does not know a codec.
        """
        record = Record.from_bytes(self.source[index])
        restorer = self.restorers[_unseen(list(self.restorers), record.source)]
        versions = []
        for version in record.versions:
            if restorer.known_codecs:
                restorer = restorer.telling(version.codec)
            restored = encode_lossless(restorer(decode(version.image)))
            versions.append(dataclasses.replace(version, restored=restored))
        return dataclasses.replace(record, versions=tuple(versions))


def make_tiers(folder: Path, given: Sequence[str], out: Path) -> dict[str, str]:
    """Restores every version of a folder's records, and writes them with it.

    Args:
        folder: a finished records folder, of scale 1.
        given: weights, each with the fold that they were trained on: "1/2=RUN". One
            alone without a fold restores all, which it may have seen.
        out: where the new records go; what an interrupted run began is gone on with.

    Returns:
        For every record that could not be made its name and why.

    Raises:
        UserError: the records or the weights are not fit, do not fit each other, or
            there is an image that all weights were trained on, by the folds that are
            given or by their trainings' records.
    """
    job.check_folder(out)
    source, contents = manifest.open_records(folder, f"cir encode … --out {folder}")
    _check_records(folder, contents)
    paths = _by_fold(given)
    seen = {fold: _trained_on(path) for fold, path in paths.items()}
    for image in contents["images"]:
        fold = _unseen(list(paths), image["path"])
        if fold and image["sha256"] in seen[fold]:
            raise UserError(
                f"{FLAG} {fold}={paths[fold]} would restore {image['path']}, which its "
                "training's records hold: give the fold that it was trained on"
            )
    if None in paths:
        print(
            f"{FLAG} {given[0]} restores all images, also those it was trained on: "
            "what it makes of them may be better than of new ones",
            file=sys.stderr,
        )
    restorers = {fold: Restorer(path, tile=None) for fold, path in paths.items()}
    for path, restorer in zip(given, restorers.values(), strict=True):
        if restorer.scale != 1:
            raise UserError(
                f"{FLAG} {path} enlarge by {restorer.scale}: give weights of scale 1"
            )
    made_of = {
        "records": sha256(folder / manifest.NAME),
        "weights": {str(fold or "all"): sha256(path) for fold, path in paths.items()},
    }
    return job.write(TierRecords(source, contents, restorers, made_of), out, {})


def _check_records(folder: Path, contents: Mapping[str, Any]) -> None:
    """Refuses records without versions to restore."""
    if "parts" in contents:
        raise UserError(
            f"{folder} is a mix: run `cir tiers` on each of its parts, and mix what it "
            "makes of them"
        )
    if contents.get("online"):
        raise UserError(
            f"{folder} holds clean crops alone: encode them without online:, so that "
            "there are versions to restore"
        )
    if "tiers" in contents:
        raise UserError(f"{folder} holds restored images already: give other records")
    if contents["scale"] != 1:
        raise UserError(
            f"{folder} has scale {contents['scale']}: tiers are compared at the same "
            "size, so encode with --scale 1"
        )


def _by_fold(given: Sequence[str]) -> dict[Fold | None, Path]:
    """The weights files by the fold that they were trained on."""
    paths: dict[Fold | None, Path] = {}
    for text in given:
        match = re.fullmatch(r"(\d+/\d+)=(.+)", text)
        fold = parse_fold(match[1], FLAG) if match else None
        if fold in paths:
            raise UserError(
                f"{FLAG} {text}: fold {fold} is given twice"
                if fold
                else f"{FLAG} {text}: give each weights' fold, as in 1/2={text}"
            )
        paths[fold] = weights.find(match[2] if match else text)
    counts = {fold.count if fold else 1 for fold in paths}
    if len(counts) > 1:
        raise UserError(
            f"{FLAG} {', '.join(given)}: give all of them the fold that they were "
            "trained on, of the same number of folds"
        )
    return paths


def _trained_on(path: Path) -> set[str]:
    """The checksums of the images that weights were trained on, where it can be told.

    That is so where they hold their training's config, and its records are still there.
    """
    metadata, _ = weights.read(path)
    try:
        records = json.loads(metadata["config"])["data"]["records"]
        folder = Path(records.replace("{workdir}", str(path.parent)))
        contents = manifest.read_manifest(folder, "cir encode")
    except (KeyError, TypeError, AttributeError, ValueError, UserError):
        return set()
    parts = manifest.parts(folder, contents)
    return {image["sha256"] for part in parts for image in part.contents["images"]}


def _unseen(folds: Sequence[Fold | None], key: str) -> Fold | None:
    """The fold whose weights restore an image: the next one after its own.

    Raises:
        UserError: all weights were trained on the image's own.
    """
    if folds == [None]:
        return None
    count = folds[0].count
    own = number_of(key, count)
    others = [fold for fold in folds if fold.number != own]
    if not others:
        raise UserError(
            f"{key} is in fold {own}/{count}, which all {FLAG} were trained on: give "
            "weights of another fold too"
        )
    return min(others, key=lambda fold: (fold.number - own) % count)
