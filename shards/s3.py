"""Objects in an S3 bucket, by boto3: it works in a forked child and finds credentials as AWS tools do."""

from __future__ import annotations

import base64
import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.schema import ShardError
from shards.storage import ChangedFileError, FileInfo, MissingFileError
from shards.transport import (
    CONNECT_SECONDS,
    CONNECTIONS,
    SILENCE_SECONDS,
    Response,
    TransientError,
    range_header,
    range_of,
)

ABSENT = {"404", "NoSuchKey", "NotFound"}
PASSING = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "InternalError"}


class S3Transport:
    """``s3://bucket/prefix``. Where no credentials are found, it is asked as a public bucket is."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.bucket, _, self.prefix = self.address.partition("://")[2].partition("/")
        if not self.bucket:
            raise ShardError(f"{address}: names no bucket; expected s3://bucket/prefix")
        self._client()  # what is missing or wrong is said now

    @contextlib.contextmanager
    def open(self, name: str, start: int, stop: int | None) -> Iterator[Response]:
        answer = self._ask("get_object", name, **range_header(start, stop))
        begin, size = range_of(answer.get("ContentRange"), answer["ContentLength"])
        with answer["Body"] as body:
            yield Response(body, begin, size, answer.get("ETag", ""))

    def facts(self, name: str) -> tuple[int, str | None]:
        answer = self._ask("head_object", name, ChecksumMode="ENABLED")
        sha256 = answer.get("ChecksumSHA256", "")
        # Of an upload in parts it is no sha256 of the file, and says so by a dash.
        return answer["ContentLength"], None if not sha256 or "-" in sha256 else _hex(sha256)

    def put(self, path: Path, name: str, sha256: str) -> None:
        """One request, so that nothing half sent is left behind; the server checks the sha256 itself."""
        with path.open("rb") as file:
            checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
            self._ask("put_object", name, Body=file, ChecksumSHA256=checksum)

    def delete(self, name: str) -> None:
        self._ask("delete_object", name)

    def names(self) -> Iterator[str]:
        after = ""
        while True:
            listed, after = self.page(after, Delimiter="/")
            yield from (file.name for file in listed)
            if not after:
                return

    def page(self, after: str, **words: str) -> tuple[list[FileInfo], str]:
        folder = f"{self.prefix}/" if self.prefix else ""
        token = {"ContinuationToken": after} if after else {}
        answer = self._call("list_objects_v2", "", Prefix=folder, **token, **words)
        listed = [
            FileInfo(told["Key"][len(folder) :], told["Size"], told["ETag"].strip('"'))
            for told in answer.get("Contents", ())
            if not told["Key"].endswith("/")  # the mark of a folder: some servers list them
        ]
        return listed, answer.get("NextContinuationToken", "")

    def _ask(self, act: str, name: str, **words: Any) -> dict[str, Any]:
        return self._call(act, name, Key=f"{self.prefix}/{name}" if self.prefix else name, **words)

    def _call(self, act: str, name: str, **words: Any) -> dict[str, Any]:
        from botocore import UNSIGNED
        from botocore import exceptions as aws

        what = f"{self.address}/{name}"
        try:
            answer: dict[str, Any] = getattr(self._client(), act)(S3Transport=self.bucket, **words)
        except aws.ClientError as err:
            told = err.response.get("Error", {})
            code, status = str(told.get("Code")), err.response["ResponseMetadata"].get("HTTPStatusCode", 0)
            if code in ABSENT:
                raise MissingFileError(f"{what}: not there") from err
            if code == "BadDigest":
                raise ChangedFileError(f"{what}: came to the server as other bytes than were sent") from err
            sentence = f"{code}: {' '.join(str(told.get('Message')).split())}"
            if status >= 500 or status == 429 or code in PASSING:
                raise TransientError(sentence) from err
            anonymous = self._client().meta.config.signature_version is UNSIGNED
            hint = "; no credentials were found" if anonymous else ""
            raise ShardError(f"{what}: refused ({sentence}{hint})") from err
        except aws.BotoCoreError as err:
            passing = isinstance(err, (aws.ConnectionError, aws.HTTPClientError))
            if passing and not isinstance(err, aws.SSLError):
                raise TransientError(str(err)) from err
            raise ShardError(f"{what}: cannot be asked for ({' '.join(str(err).split())})") from err
        return answer

    def _client(self) -> Any:
        told = ((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
        try:
            return _client(os.getpid(), frozenset(told))
        except ShardError as err:
            raise ShardError(f"{self.address}: {err}") from err


@functools.lru_cache(maxsize=8)
def _client(pid: int, environment: frozenset[tuple[str, str]]) -> Any:
    """The one client of a process: a forked child must not speak into its parent's connections."""
    try:
        import boto3.session
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as err:
        raise ShardError("needs boto3; install redub[s3]") from err
    try:
        session = boto3.session.Session()
        anonymous = {"signature_version": UNSIGNED} if session.get_credentials() is None else {}
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=SILENCE_SECONDS,
            max_pool_connections=CONNECTIONS,
            retries={"total_max_attempts": 1},  # RemoteStorage's patience is the only one
            **anonymous,
        )
        return session.client("s3", config=config)
    except (BotoCoreError, ValueError) as err:
        raise ShardError(f"cannot be opened ({' '.join(str(err).split())})") from err


def _hex(base64_text: str) -> str:
    return base64.b64decode(base64_text).hex()
