import dataclasses

import numpy as np
import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
)

from cir_jax.data.records import Record, Version, decode, encode_lossless
from cir_jax.errors import UserError

RECORD = Record(
    clean=b"clean bytes",
    source="folder/ünïcode.png",
    origin=(128, 64),
    scale=1,
    versions=(
        Version("jpeg", 10, 1234, b"a bitstream"),
        Version("jpeg:4:4:4", 37, 99, b"another", "jpeg 10 at 3,5 + jpeg:4:4:4 37"),
    ),
)

# tensorflow/core/example, in protobuf's own text form: written independently of ours.
EXAMPLE_PROTO = """
name: "example.proto" package: "tensorflow" syntax: "proto3"
message_type { name: "BytesList"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "FloatList"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT
          options { packed: true } } }
message_type { name: "Int64List"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64
          options { packed: true } } }
message_type { name: "Feature"
  field { name: "bytes_list" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE
          type_name: ".tensorflow.BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE
          type_name: ".tensorflow.FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 label: LABEL_OPTIONAL type: TYPE_MESSAGE
          type_name: ".tensorflow.Int64List" oneof_index: 0 }
  oneof_decl { name: "kind" } }
message_type { name: "Features"
  field { name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE
          type_name: ".tensorflow.Features.FeatureEntry" }
  nested_type { name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE
            type_name: ".tensorflow.Feature" } } }
message_type { name: "Example"
  field { name: "features" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE
          type_name: ".tensorflow.Features" } }
"""


def test_a_record_survives_the_way_through_its_bytes():
    assert Record.from_bytes(RECORD.to_bytes()) == RECORD
    assert RECORD.to_bytes() == Record.from_bytes(RECORD.to_bytes()).to_bytes()


def test_an_independent_example_message_reads_it():
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(EXAMPLE_PROTO, descriptor_pb2.FileDescriptorProto()))
    message = message_factory.GetMessageClass(
        pool.FindMessageTypeByName("tensorflow.Example")
    )
    feature = message.FromString(RECORD.to_bytes()).features.feature
    assert feature["clean"].bytes_list.value == [b"clean bytes"]
    assert feature["source"].bytes_list.value == ["folder/ünïcode.png".encode()]
    assert feature["origin"].int64_list.value == [128, 64]
    assert feature["codec"].bytes_list.value == [b"jpeg", b"jpeg:4:4:4"]
    assert feature["quality"].int64_list.value == [10, 37]
    assert feature["bits"].int64_list.value == [1234, 99]
    assert feature["image"].bytes_list.value == [b"a bitstream", b"another"]
    history = [b"", b"jpeg 10 at 3,5 + jpeg:4:4:4 37"]
    assert feature["history"].bytes_list.value == history


def test_restored_images_are_kept_beside_the_versions():
    first, second = RECORD.versions
    versions = (first, dataclasses.replace(second, restored=b"pixels"))
    record = dataclasses.replace(RECORD, versions=versions)
    assert Record.from_bytes(record.to_bytes()) == record
    # Without any the record is what it was before there could be some.
    assert b"restored" in record.to_bytes() and b"restored" not in RECORD.to_bytes()


@pytest.mark.parametrize("payload", [b"no protobuf at all", b""])
def test_what_is_no_record_is_refused(payload):
    with pytest.raises(UserError, match="cir encode"):
        Record.from_bytes(payload)


def test_lossless_is_lossless(photographs):
    noise = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    for image in (photographs["coffee"], noise):
        np.testing.assert_array_equal(decode(encode_lossless(image)), image)
