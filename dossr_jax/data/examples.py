"""Records of a TFDS data set: tf.train.Example messages whose features are byte strings.

The message types are declared here, field by field as TensorFlow publishes them (its
example.proto and feature.proto), so that neither reading nor writing needs TensorFlow. A map is a
repeated key-value message on the wire and is declared as that.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

# Message -> its fields as (name, number, type, repeated); a type is "bytes", "string" or a message.
_MESSAGES = {
    "BytesList": [("value", 1, "bytes", True)],
    "Feature": [("bytes_list", 1, "BytesList", False)],
    "FeatureEntry": [("key", 1, "string", False), ("value", 2, "Feature", False)],
    "Features": [("feature", 1, "FeatureEntry", True)],
    "Example": [("features", 1, "Features", False)],
}


@functools.cache
def _example_class() -> type[Any]:
    # Imported here: command lines show their help without the extra that brings protobuf.
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    Field = descriptor_pb2.FieldDescriptorProto
    scalars = {"bytes": Field.TYPE_BYTES, "string": Field.TYPE_STRING}
    file = descriptor_pb2.FileDescriptorProto(name="example", package="e", syntax="proto3")
    for message, fields in _MESSAGES.items():
        kind = file.message_type.add(name=message)
        for name, number, of, repeated in fields:
            kind.field.add(
                name=name,
                number=number,
                type=scalars.get(of, Field.TYPE_MESSAGE),
                type_name=None if of in scalars else f".e.{of}",
                label=Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL,
            )
    # A separate pool: the types must not clash with TensorFlow's if it is imported.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("e.Example"))


def serialize(features: Mapping[str, bytes]) -> bytes:
    """A record of `features`; equal features in equal order give equal bytes."""
    example = _example_class()()
    for key, value in features.items():
        entry = example.features.feature.add(key=key)
        entry.value.bytes_list.value.append(value)
    return example.SerializeToString(deterministic=True)


def parse(record: bytes) -> dict[str, bytes]:
    """The byte features of a record; features of other kinds are left out.

    Raises:
      google.protobuf.message.DecodeError: `record` is no such message.
    """
    example = _example_class().FromString(record)
    return {
        entry.key: entry.value.bytes_list.value[0]
        for entry in example.features.feature
        if entry.value.bytes_list.value
    }
