#!/usr/bin/env python3
"""Prints the page of a shopper as JSON, read from the store as any program may read it: one partition, one row.

    read_page.py HOST:PORT KEYSPACE USER [TENANT]      login: CQL_USER and CQL_PASSWORD in the environment

Needs `pip install cassandra-driver fastavro` (scylla-driver does as well) and the schemas of this repository.
"""

import glob
import io
import json
import os
import sys

import fastavro
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import Cluster
from fastavro.schema import fingerprint, to_parsing_canonical_form

SCHEMAS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../schemas/avro")
HEADER_BYTES = 10


def schemas():
    """Every version of the page's schema, by its fingerprint as it stands in a value: CRC-64-AVRO, little endian."""
    known = {}
    for pattern in ("endcap.page-published.v1.avsc", "past/endcap.page-published.v1.*.avsc"):
        for path in glob.glob(os.path.join(SCHEMAS, pattern)):
            with open(path, encoding="utf-8") as file:
                schema = json.load(file)
            known[bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))] = schema
    return known


def decoded(value):
    """A value in Avro's single-object encoding: C3 01, fingerprint, body."""
    if value[:2] != b"\xc3\x01":
        sys.exit("the page is in no encoding of this release")
    schema = schemas().get(value[2:HEADER_BYTES])
    if schema is None:
        sys.exit("the page was written by a newer release: use the schemas of that one")
    return fastavro.schemaless_reader(io.BytesIO(value[HEADER_BYTES:]), schema)


def main(address, keyspace, user, tenant="default"):
    host, port = address.rsplit(":", 1)
    login = PlainTextAuthProvider(os.environ.get("CQL_USER", ""), os.environ.get("CQL_PASSWORD", ""))
    times = {"connect_timeout": 30, "control_connection_timeout": 30}
    session = Cluster([host], port=int(port), auth_provider=login, **times).connect(keyspace)
    query = "SELECT stamp, versions FROM pages WHERE tenant = %s AND user_id = %s AND surface = 'home'"
    row = session.execute(query, (tenant, user)).one()
    # What counts is the greatest value among the entries of the row's stamp; without one the page was withdrawn.
    values = [value for (stamp, _), value in (row.versions or {}).items() if stamp == row.stamp] if row else []
    if not values:
        sys.exit(f"{tenant}/{user} has no page")
    print(json.dumps(decoded(max(values)), ensure_ascii=False, indent=2))


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
