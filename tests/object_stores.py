"""Where stores lie in tests: a folder, fsspec's memory, and a bucket of a real S3 server on this machine."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import logging
import os
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

KINDS = ("local", "memory", "s3")
BUCKET = "spared-fm-tests"


@functools.cache
def start_s3() -> str:
    """Start moto's server once per test run, point this process and its children at it, make a bucket; give its endpoint."""
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    # S3 looks and puts in one step; moto's handler does it in two, and serves requests in threads.
    one_at_a_time, put_object = threading.Lock(), S3Response.put_object

    def put(self: Any) -> Any:
        with one_at_a_time:
            return put_object(self)

    S3Response.put_object = put  # type: ignore[method-assign]
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    atexit.register(server.stop)
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_SESSION_TOKEN": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    import boto3

    boto3.client("s3").create_bucket(Bucket=BUCKET)
    return os.environ["AWS_ENDPOINT_URL"]


def place(kind: str, tmp_path: Path) -> str | Path:
    """Give an empty place of ``kind`` for stores, to which ``/name`` may be added."""
    if kind == "local":
        return tmp_path
    if kind == "memory":
        return f"memory://{uuid.uuid4().hex}"
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("s3fs") is None:
        pytest.skip("moto[server] and s3fs are not installed (extra `dev`)")
    start_s3()
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
