"""Clean images from tensorflow-datasets, read without TensorFlow."""

import dataclasses
import functools
import os
import re
from typing import Any

from cir_jax.errors import UserError, unknown

MARK = "tfds:"
FORM = f"{MARK}NAME[/CONFIG][:VERSION][:SPLIT[:FEATURE]]"
"""How a data set is named; it lies below the environment's TFDS_DATA_DIR."""


@dataclasses.dataclass(frozen=True)
class TensorFlowDataset:
    """A prepared tensorflow-datasets data set, read without TensorFlow.

    Attributes:
        name: with config and version as wanted, such as "div2k/bicubic_x4".
        split: such as "train" or "train[:10%]".
        feature: the image feature to take; "" for the only one, or for "hr" where
            there is one (super-resolution sets hold the small image as well).
        data_dir: where prepared data sets are; tensorflow-datasets' own default when
            None.
    """

    name: str
    split: str = "train"
    feature: str = ""
    data_dir: str | None = None

    def __str__(self) -> str:
        feature = f":{self.feature}" if self.feature else ""
        return f"{MARK}{self.name}:{self.split}{feature}"

    def keys(self) -> list[str]:
        """The images' numbers.

        Raises:
            UserError: see `_open`.
        """
        return [f"{number:07d}" for number in range(len(_open(self)[0]))]

    def read(self, key: str) -> bytes:
        """The image as it is encoded in the data set."""
        data, feature = _open(self)
        try:
            return data[int(key)][feature]
        except RuntimeError as error:  # array_record's for a lost or damaged file
            raise UserError(f"{key} cannot be read ({error})") from error


@functools.lru_cache(maxsize=1)
def _open(source: TensorFlowDataset) -> tuple[Any, str]:
    """Opens a data set, once a process; returns its elements and the image feature.

    Raises:
        UserError: tensorflow-datasets is not installed, the data set is not prepared,
            not stored as array_record, or has no such split or image feature.
    """
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder
    except ImportError as error:
        raise UserError(
            f"--source {source} needs tensorflow-datasets: pip install 'cir_jax[tfds]'"
        ) from error
    # Not tfds.builder: that imports the data set's own code, which needs TensorFlow.
    try:
        builder = read_only_builder.builder_from_files(
            source.name, data_dir=source.data_dir
        )
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"--source {source}: no prepared data set {source.name} below "
            f"{source.data_dir or tfds.core.constants.DATA_DIR}: with tensorflow "
            f"installed run `tfds build {source.name} --file_format=array_record`, or "
            "set TFDS_DATA_DIR"
        ) from error
    except Exception as error:  # a wrong name or damaged files: each as its parser says
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(
            f"--source {source} cannot be opened ({reason}): give {FORM}, or "
            "build the data set again"
        ) from error
    array_record = tfds.core.FileFormat.ARRAY_RECORD
    if array_record not in builder.info.available_file_formats():
        # Beside itself in another format tfds does not build a data set.
        raise UserError(
            f"--source {source} is stored as {builder.info.file_format.value}, which "
            "takes TensorFlow to read: with tensorflow installed run `tfds build "
            f"{source.name} --file_format=array_record --data_dir=DIR`, DIR a new "
            "folder, and set TFDS_DATA_DIR=DIR"
        )
    images = sorted(
        name
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    )
    if not images:
        raise UserError(f"--source {source} has no image feature: give another one")
    feature = source.feature or (images[0] if len(images) == 1 else "hr")
    if not source.feature and feature not in images:
        raise UserError(
            f"--source {source} has the image features {', '.join(images)}: "
            f"give one of them, as in {source}:{images[0]}"
        )
    if feature not in images:
        raise unknown(f"image feature of {source.name}", feature, images)
    try:
        data = builder.as_data_source(
            source.split,
            decoders=dict.fromkeys(images, tfds.decode.SkipDecoding()),
            file_format=array_record,
        )
    except ValueError as error:  # also slices that are empty or go too far
        raise unknown(
            f"split, or slice of one, of {source.name}",
            source.split,
            builder.info.splits,
        ) from error
    return data, feature


def parse(text: str) -> TensorFlowDataset:
    """The data set that a text of `FORM` means.

    Raises:
        UserError: the text has another form.
    """
    parts = text.removeprefix(MARK)
    name, *rest = re.split(r":(?![^\[]*\])", parts)  # not the colon of train[:10%]
    if rest and re.fullmatch(r"[\d*]+(\.[\d*]+){2}", rest[0]):
        name = f"{name}:{rest.pop(0)}"
    if not name or len(rest) > 2:
        raise UserError(f"--source {text}: give it as {FORM}")
    split, feature = [*rest, "", ""][:2]
    # tfds reads the variable only when it is imported, and does not expand "~".
    data_dir = os.environ.get("TFDS_DATA_DIR")
    return TensorFlowDataset(
        name, split or "train", feature, data_dir and os.path.expanduser(data_dir)
    )
