"""Objects in an S3 bucket, by boto3: it works in a forked child and finds credentials as AWS tools do."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.places import AbsentError, Listed
from shards.remote import (
    CONNECT_SECONDS,
    CONNECTIONS,
    SILENCE_SECONDS,
    Answer,
    PassingError,
    range_header,
    range_of,
)
from shards.schema import ShardError

ABSENT = {"404", "NoSuchKey", "NotFound"}
PASSING = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "InternalError"}


class Bucket:
    """``s3://bucket/prefix``. Where no credentials are found, it is asked as a public bucket is."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.bucket, _, self.prefix = self.address.partition("://")[2].partition("/")
        if not self.bucket:
            raise ShardError(f"{address}: names no bucket; expected s3://bucket/prefix")
        self._made: tuple[int, Any] = (-1, None)
        self._client()  # what is missing or wrong is said now

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": (-1, None)}

    @contextlib.contextmanager
    def open(self, name: str, start: int, stop: int | None) -> Iterator[Answer]:
        answer = self._ask("get_object", name, **range_header(start, stop))
        begin, size = range_of(answer.get("ContentRange"), answer["ContentLength"])
        with answer["Body"] as body:
            yield Answer(body, begin, size, answer.get("ETag", ""))

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
        folder = f"{self.prefix}/" if self.prefix else ""
        token: dict[str, str] = {}
        while True:
            answer = self._call("list_objects_v2", "", Prefix=folder, Delimiter="/", **token)
            for listed in answer.get("Contents", ()):
                if listed["Key"] != folder:  # some servers list the folder itself
                    yield listed["Key"][len(folder) :]
            if not answer.get("IsTruncated"):
                return
            token = {"ContinuationToken": answer["NextContinuationToken"]}

    def page(self, after: str) -> tuple[list[Listed], str]:
        folder = f"{self.prefix}/" if self.prefix else ""
        token = {"ContinuationToken": after} if after else {}
        answer = self._call("list_objects_v2", "", Prefix=folder, **token)
        listed = [
            Listed(told["Key"][len(folder) :], told["Size"], told["ETag"].strip('"'))
            for told in answer.get("Contents", ())
            if not told["Key"].endswith("/")  # a folder that some tools leave a mark of
        ]
        return listed, answer.get("NextContinuationToken", "")

    def _ask(self, act: str, name: str, **words: Any) -> dict[str, Any]:
        return self._call(act, name, Key=f"{self.prefix}/{name}" if self.prefix else name, **words)

    def _call(self, act: str, name: str, **words: Any) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, SSLError

        what = f"{self.address}/{name}"
        try:
            answer: dict[str, Any] = getattr(self._client(), act)(Bucket=self.bucket, **words)
        except ClientError as err:
            told = err.response.get("Error", {})
            code, status = str(told.get("Code")), err.response["ResponseMetadata"].get("HTTPStatusCode", 0)
            if code in ABSENT:
                raise AbsentError(f"{what}: not there") from err
            sentence = f"{code}: {' '.join(str(told.get('Message')).split())}"
            if status >= 500 or status == 429 or code in PASSING:
                raise PassingError(sentence) from err
            raise ShardError(f"{what}: refused ({sentence})") from err
        except BotoCoreError as err:
            if isinstance(err, HTTPClientError) and not isinstance(err, SSLError):
                raise PassingError(str(err)) from err
            raise ShardError(f"{what}: cannot be asked for ({' '.join(str(err).split())})") from err
        return answer

    def _client(self) -> Any:
        """The client of this process: a forked child must not speak into its parent's connections."""
        if self._made[0] != os.getpid():
            self._made = (os.getpid(), self._new_client())
        return self._made[1]

    def _new_client(self) -> Any:
        try:
            import boto3.session
            from botocore import UNSIGNED
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError as err:
            raise ShardError(f"{self.address}: needs boto3; install redub[s3]") from err
        try:
            session = boto3.session.Session()
            anonymous = {"signature_version": UNSIGNED} if session.get_credentials() is None else {}
            config = Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=SILENCE_SECONDS,
                max_pool_connections=CONNECTIONS,
                retries={"total_max_attempts": 1},  # Remote's patience is the only one
                **anonymous,
            )
            return session.client("s3", config=config)
        except (BotoCoreError, ValueError) as err:
            raise ShardError(f"{self.address}: cannot be opened ({err})") from err


def _hex(base64_text: str) -> str:
    return base64.b64decode(base64_text).hex()
