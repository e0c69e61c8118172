"""Records of a TFDS data set: tf.train.Example messages whose features are byte strings.

The message types are declared here as TensorFlow publishes them (example.proto, feature.proto), so
that neither reading nor writing needs TensorFlow.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

_MESSAGES = """
name: "example" package: "e" syntax: "proto3"
message_type { name: "BytesList"
  field { name: "value" number: 1 type: TYPE_BYTES label: LABEL_REPEATED } }
message_type { name: "Feature"
  field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: ".e.BytesList" } }
message_type { name: "Features"
  field { name: "feature" number: 1 type: TYPE_MESSAGE type_name: ".e.Features.FeatureEntry"
    label: LABEL_REPEATED }
  nested_type { name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING }
    field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".e.Feature" } } }
message_type { name: "Example"
  field { name: "features" number: 1 type: TYPE_MESSAGE type_name: ".e.Features" } }
"""


@functools.cache
def _example_class() -> type[Any]:
    # Imported here: command lines show their help without the extra that brings protobuf.
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    # A separate pool: the types must not clash with TensorFlow's if it is imported.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_MESSAGES, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("e.Example"))


def serialize(features: Mapping[str, bytes]) -> bytes:
    """A record of `features`; equal features give equal bytes."""
    example = _example_class()()
    for key, value in features.items():
        example.features.feature[key].bytes_list.value.append(value)
    return example.SerializeToString(deterministic=True)


def parse(record: bytes) -> dict[str, bytes]:
    """The byte features of a record; features of other kinds are left out.

    Raises:
      google.protobuf.message.DecodeError: `record` is no such message.
    """
    example = _example_class().FromString(record)
    return {
        key: feature.bytes_list.value[0]
        for key, feature in example.features.feature.items()
        if feature.bytes_list.value
    }
