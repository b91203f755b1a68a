"""Objects in an S3 bucket, by boto3: it works in forked children and finds credentials as AWS tools do."""

from __future__ import annotations

import base64
import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.schema import ShardError
from shards.storage import ChangedFileError, FileInfo, MissingFileError, strip_address
from shards.transport import (
    CONNECT_SECONDS,
    MAX_CONNECTIONS,
    SILENCE_SECONDS,
    Response,
    TransientError,
    make_range_header,
    parse_content_range,
)

MISSING_CODES = {"404", "NoSuchKey", "NotFound"}
TRANSIENT_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "InternalError"}


class S3Transport:
    """``s3://bucket/prefix``. Without credentials it is read as a public bucket."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.bucket, _, self.prefix = self.address.partition("://")[2].partition("/")
        if not self.bucket:
            raise ShardError(f"{strip_address(address)}: names no bucket; expected s3://bucket/prefix")
        self._client()  # raise now what is missing or wrong

    @contextlib.contextmanager
    def open(self, name: str, start: int, stop: int | None) -> Iterator[Response]:
        response = self._call_for_file("get_object", name, **make_range_header(start, stop))
        begin, size = parse_content_range(response.get("ContentRange"), response["ContentLength"])
        with response["Body"] as body:
            yield Response(body, begin, size, response.get("ETag", ""))

    def stat(self, name: str) -> tuple[int, str | None]:
        response = self._call_for_file("head_object", name, ChecksumMode="ENABLED")
        sha256 = response.get("ChecksumSHA256", "")
        # With a dash it is the checksum of a multipart upload, which is not the sha256 of the file.
        return response["ContentLength"], None if not sha256 or "-" in sha256 else _convert_to_hex(sha256)

    def upload(self, path: Path, name: str, sha256: str) -> None:
        """Upload in one request, so that no partial upload is left behind. The server checks the sha256."""
        with path.open("rb") as file:
            checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
            self._call_for_file("put_object", name, Body=file, ChecksumSHA256=checksum)

    def delete(self, name: str) -> None:
        self._call_for_file("delete_object", name)

    def list_page(self, after: str) -> tuple[list[FileInfo], str]:
        folder = f"{self.prefix}/" if self.prefix else ""
        token = {"ContinuationToken": after} if after else {}
        response = self._call("list_objects_v2", "", Prefix=folder, **token)
        page = [
            FileInfo(item["Key"][len(folder) :], item["Size"], item["ETag"].strip('"'))
            for item in response.get("Contents", ())
            if not item["Key"].endswith("/")  # some servers list an object that stands for a folder
        ]
        return page, response.get("NextContinuationToken", "")

    def _call_for_file(self, operation: str, name: str, **arguments: Any) -> dict[str, Any]:
        return self._call(operation, name, Key=f"{self.prefix}/{name}" if self.prefix else name, **arguments)

    def _call(self, operation: str, name: str, **arguments: Any) -> dict[str, Any]:
        from botocore import UNSIGNED
        from botocore import exceptions as aws

        path = f"{self.address}/{name}"
        try:
            response: dict[str, Any] = getattr(self._client(), operation)(Bucket=self.bucket, **arguments)
        except aws.ClientError as err:
            error = err.response.get("Error", {})
            code, status = str(error.get("Code")), err.response["ResponseMetadata"].get("HTTPStatusCode", 0)
            if code in MISSING_CODES:
                raise MissingFileError(f"{path}: not there") from err
            if code == "BadDigest":
                raise ChangedFileError(f"{path}: the server received other bytes than were sent") from err
            message = f"{code}: {' '.join(str(error.get('Message')).split())}"
            if status >= 500 or status == 429 or code in TRANSIENT_CODES:
                raise TransientError(message) from err
            is_anonymous = self._client().meta.config.signature_version is UNSIGNED
            hint = "; no credentials were found" if is_anonymous else ""
            raise ShardError(f"{path}: refused ({message}{hint})") from err
        except aws.BotoCoreError as err:
            is_transient = isinstance(err, (aws.ConnectionError, aws.HTTPClientError))
            if is_transient and not isinstance(err, aws.SSLError):
                raise TransientError(str(err)) from err
            raise ShardError(f"{path}: request failed ({' '.join(str(err).split())})") from err
        return response

    def _client(self) -> Any:
        variables = ((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
        try:
            return _make_client(os.getpid(), frozenset(variables))
        except ShardError as err:
            raise ShardError(f"{self.address}: {err}") from err


@functools.lru_cache(maxsize=8)
def _make_client(pid: int, environment: frozenset[tuple[str, str]]) -> Any:
    """The client of a process; a forked child must not use the connections of its parent."""
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
            max_pool_connections=MAX_CONNECTIONS,
            retries={"total_max_attempts": 1},  # RemoteStorage repeats requests itself
            **anonymous,
        )
        return session.client("s3", config=config)
    except (BotoCoreError, ValueError) as err:
        raise ShardError(f"cannot be opened ({' '.join(str(err).split())})") from err


def _convert_to_hex(base64_text: str) -> str:
    return base64.b64decode(base64_text).hex()
