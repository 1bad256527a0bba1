"""Somebody who has credentials of a bucket, and tries everything to destroy what lies there."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from tests.support.s3_policy import policies_in

PREFIX = "volume"
OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"
MUTABLE = ("lease", "scratch/")
GARBAGE = b"garbage"

Versions = dict[str, list[tuple[str, str]]]
"""Of every immutable object (version, entity tag), the newest first."""


def policy_of_the_pc(*buckets: str) -> dict[str, Any]:
    """What docs/operations.md lets the credentials of the practice's PC do, in each of these buckets."""
    text = json.dumps(policies_in(OPERATIONS.read_text())[0]).replace("PREFIX", PREFIX)
    found: dict[str, Any] = json.loads(text)
    found["Statement"] = [
        statement
        for bucket in buckets
        for statement in json.loads(text.replace("BUCKET", bucket))["Statement"]
    ]
    return found


def versions(client: Any, bucket: str) -> Versions:
    """All that a bucket holds, but what is meant to change."""
    found: Versions = {}
    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
        for one in page.get("Versions", []):
            key = one["Key"].removeprefix(f"{PREFIX}/")
            if not key.startswith(MUTABLE):
                found.setdefault(key, []).append((one["VersionId"], one["ETag"]))
    return found


class Thief:
    """Tries everything that a client can ask for."""

    def __init__(self, client: Any, bucket: str) -> None:
        self.client = client
        self.bucket = bucket
        self.tried = 0
        self.done: dict[str, int] = {}

    def attempt(self, call: str, **arguments: Any) -> None:
        self.tried += 1
        with contextlib.suppress(ClientError):
            getattr(self.client, call)(Bucket=self.bucket, **arguments)
            self.done[call] = self.done.get(call, 0) + 1

    def run(self, known: Versions) -> None:
        soon = {"Mode": "COMPLIANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(seconds=1)}
        late = {"Mode": "COMPLIANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(days=36500)}
        self.attempt("put_bucket_versioning", VersioningConfiguration={"Status": "Suspended"})
        self.attempt("put_object", Key=f"{PREFIX}/lease", Body=GARBAGE)
        for key, of_key in known.items():
            name = f"{PREFIX}/{key}"
            for version, _ in of_key:
                place = {"Key": name, "VersionId": version}
                self.attempt("put_object_retention", **place, Retention=soon, BypassGovernanceRetention=True)
                self.attempt("put_object_retention", **place, Retention=soon)
                self.attempt("put_object_retention", **place, Retention=late)
                self.attempt("delete_object", **place, BypassGovernanceRetention=True)
                self.attempt("delete_object", **place)
            self.attempt("put_object", Key=name, Body=GARBAGE)
            self.attempt("put_object", Key=name, Body=GARBAGE, IfNoneMatch="*")
            if len(key) % 2:
                self.attempt("delete_object", Key=name)
            delete = {"Objects": [{"Key": name, "VersionId": of_key[-1][0]}]}
            self.attempt("delete_objects", Delete=delete, BypassGovernanceRetention=True)
        for planted in ("segments/0000000000000001-00000001-ffffffffffffffff",
                        "heads/7fffffffffffffff-ffffffff-ffffffffffffffff",
                        f"header/fffffff0-{'f' * 32}"):  # fmt: skip
            self.attempt("put_object", Key=f"{PREFIX}/{planted}", Body=GARBAGE, IfNoneMatch="*")
