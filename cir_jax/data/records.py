"""What one record holds: a clean crop and all its compressed versions.

On disk a record is a `tf.train.Example`, readable by TensorFlow and written without
it: the three message types are declared here from their published field numbers, in a
descriptor pool of their own so that TensorFlow may be loaded beside.

Keys: `clean` (the crop, lossless), `source` (path below the source folder), `origin`
(row and column of the crop in its photograph, pixels), `scale` (clean size over
compressed size), and per version `codec`, `quality`, `bits` (coded size), `history`
(all that was done to it, in words) and `image`: the bitstream where Pillow can decode
it, else the decoded pixels, lossless. Records of clean crops have no version. Those of
`cir tiers` have per version also `restored`: what a network made of it, lossless.
"""

import dataclasses
import io
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from jaxtyping import UInt8
from PIL import Image

from cir_jax.errors import UserError

READ_FORMATS = ("WEBP", "JPEG", "AVIF")
"""Pillow's parsers that records may use; its rarely used ones stay closed."""


def _example_class() -> Any:
    """Builds tensorflow.Example (tensorflow/core/example/{example,feature}.proto)."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="cir_jax/example.proto", package="tensorflow", syntax="proto3"
    )

    def message(name, *fields):
        new = file.message_type.add(name=name)
        for number, (field, kind, label, type_name) in enumerate(fields, start=1):
            new.field.add(
                name=field, number=number, type=kind, label=label, type_name=type_name
            )
        return new

    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    message("BytesList", ("value", kinds.TYPE_BYTES, many, None))
    message("FloatList", ("value", kinds.TYPE_FLOAT, many, None))
    message("Int64List", ("value", kinds.TYPE_INT64, many, None))
    feature = message(
        "Feature",
        ("bytes_list", kinds.TYPE_MESSAGE, one, ".tensorflow.BytesList"),
        ("float_list", kinds.TYPE_MESSAGE, one, ".tensorflow.FloatList"),
        ("int64_list", kinds.TYPE_MESSAGE, one, ".tensorflow.Int64List"),
    )
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = message(
        "Features",
        ("feature", kinds.TYPE_MESSAGE, many, ".tensorflow.Features.FeatureEntry"),
    )
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=one)
    entry.field.add(
        name="value",
        number=2,
        type=kinds.TYPE_MESSAGE,
        label=one,
        type_name=".tensorflow.Feature",
    )
    message("Example", ("features", kinds.TYPE_MESSAGE, one, ".tensorflow.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("tensorflow.Example")
    )


Example = _example_class()


@dataclasses.dataclass(frozen=True)
class Version:
    """One compressed version of a crop."""

    codec: str
    """Where there were several in a row, all of them: "jpeg+jpeg"."""
    quality: int
    """The codec's; the last one's where there were several."""
    bits: int
    """Size of the codec's bitstream, also where `image` holds pixels instead; 0 where
    it is not known."""
    image: bytes
    """An encoded image that Pillow opens to the decoded pixels."""
    history: str = ""
    """All steps and their random choices, such as "jpeg 30 at 3,5 + jpeg 80"."""
    restored: bytes = b""
    """The encoded image that a network made of it; empty where there is none."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One clean crop with its compressed versions; images are encoded bytes."""

    clean: bytes
    source: str
    origin: tuple[int, int]
    scale: int
    versions: tuple[Version, ...]

    def to_bytes(self) -> bytes:
        """Serialises to a `tf.train.Example`, the same bytes for the same record."""
        example = Example()
        feature = example.features.feature
        feature["clean"].bytes_list.value.append(self.clean)
        feature["source"].bytes_list.value.append(self.source.encode())
        feature["origin"].int64_list.value.extend(self.origin)
        feature["scale"].int64_list.value.append(self.scale)
        for version in self.versions:
            feature["codec"].bytes_list.value.append(version.codec.encode())
            feature["quality"].int64_list.value.append(version.quality)
            feature["bits"].int64_list.value.append(version.bits)
            feature["image"].bytes_list.value.append(version.image)
            feature["history"].bytes_list.value.append(version.history.encode())
        if any(version.restored for version in self.versions):
            restored = (version.restored for version in self.versions)
            feature["restored"].bytes_list.value.extend(restored)
        return example.SerializeToString(deterministic=True)

    @classmethod
    def from_bytes(cls, payload: bytes) -> "Record":
        """Parses a `tf.train.Example`.

        Raises:
            UserError: the payload is no such message, or lacks a key.
        """
        try:
            feature = Example.FromString(payload).features.feature
            names = feature["codec"].bytes_list.value
            versions = zip(
                (name.decode() for name in names),
                feature["quality"].int64_list.value,
                feature["bits"].int64_list.value,
                feature["image"].bytes_list.value,
                (text.decode() for text in feature["history"].bytes_list.value),
                feature["restored"].bytes_list.value or [b""] * len(names),
                strict=True,
            )
            return cls(
                clean=feature["clean"].bytes_list.value[0],
                source=feature["source"].bytes_list.value[0].decode(),
                origin=tuple(feature["origin"].int64_list.value),
                scale=feature["scale"].int64_list.value[0],
                versions=tuple(Version(*version) for version in versions),
            )
        except (DecodeError, IndexError, ValueError) as error:
            raise UserError(
                "a record does not hold a clean crop with its compressed versions: "
                "were these shards written by `cir encode`?"
            ) from error


def encode_lossless(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encodes RGB pixels so that `decode` returns them exactly.

    WebP at its fastest lossless effort: seven times faster than PNG and 5 % smaller on
    photographs, where the slower efforts save 2 % more for ten times the time.
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


def decode(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image of a record, a bitstream or lossless pixels, to RGB."""
    with Image.open(io.BytesIO(data), formats=READ_FORMATS) as image:
        return np.asarray(image.convert("RGB"))
