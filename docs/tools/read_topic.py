#!/usr/bin/env python3
"""Prints every record that a topic holds as JSON, one a line, and ends: key, place, headers and value.

    read_topic.py BROKERS REGISTRY TOPIC      such as  read_topic.py kafka:9092 http://registry:8081 endcap.page-published.v1

Reads as any program with Confluent's AvroDeserializer does: schemas come from the registry. A value that cannot be read so is shown in
hexadecimal as `raw`. Joins no consumer group and moves no position. Needs `pip install confluent-kafka[avro]`.
"""

import json
import signal
import sys

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient, SchemaRegistryError
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

PATIENCE_S = 30


def records(brokers, topic):
    """The committed records of every partition, up to its end."""
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "read-topic",  # wanted by the client, joined by nobody
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    partitions = consumer.list_topics(topic, timeout=PATIENCE_S).topics[topic].partitions
    if not partitions:
        sys.exit(f"topic {topic} is not there: `endcap topics apply` makes it")
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
    waiting = set(partitions)
    while waiting:
        record = consumer.poll(PATIENCE_S)
        if record is None:
            sys.exit(f"{brokers} did not answer within {PATIENCE_S} s")
        if record.error() is None:
            yield record
        elif record.error().code() == KafkaError._PARTITION_EOF:
            waiting.discard(record.partition())
        else:
            sys.exit(f"cannot read {topic}: {record.error()}")
    consumer.close()


def main(brokers, registry, topic):
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly
    read = AvroDeserializer(SchemaRegistryClient({"url": registry}))
    context = SerializationContext(topic, MessageField.VALUE)
    for record in records(brokers, topic):
        told = {
            "key": (record.key() or b"").decode(errors="replace"),
            "partition": record.partition(),
            "offset": record.offset(),
            "headers": {name: (value or b"").decode(errors="replace") for name, value in record.headers() or []},
        }
        try:
            told["value"] = read(record.value(), context)
        except Exception as error:  # foreign framing, or a damaged body: the decoder's errors have no kind in common
            if isinstance(error, SchemaRegistryError) and error.http_status_code != 404:
                raise
            told["raw"] = record.value().hex()
        print(json.dumps(told, ensure_ascii=False))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
