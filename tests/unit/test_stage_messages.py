"""Errors of other programs in short, readable words."""

from __future__ import annotations

import pytest

from pytest_vllm_stage.stage.observe import messages, runbook

XML = (
    '<?xml version="1.0" encoding="UTF-8"?> <Error><Code>AccessDenied</Code><Message>Access Denied.</Message>'
    "<BucketName>models</BucketName><RequestId>18"
)
EXEC = (
    "Readiness probe errored and resulted in unknown state: rpc error: code = Unknown desc = failed to exec in "
    'container: failed to start exec "0a1b": OCI runtime exec failed: exec failed: unable to start container process: '
    'exec: "nope": executable file not found in $PATH: unknown'
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"bucket models: HTTP 403 {XML}", "bucket models: HTTP 403 AccessDenied: Access Denied."),
        ("a <Error><Code>SlowDown</Code></Error> b", "a SlowDown b"),
        (
            "HTTP 502 <html><head><title>502 Bad Gateway</title></head></html>",
            "HTTP 502 an HTML page (502 Bad Gateway)",
        ),
        ("HTTP 502 <!DOCTYPE html><html><body>x", "HTTP 502 an HTML page"),
        ("1 < 2 and <none>", "1 < 2 and <none>"),
    ],
)
def test_markup_is_reduced_to_its_meaning(text: str, expected: str) -> None:
    assert runbook.cut(text) == expected


def test_the_cause_of_a_scripts_error_holds_no_markup() -> None:
    assert runbook.cause_of([f"error: bucket models could not be created: HTTP 403 {XML}"]) == (
        "bucket models could not be created: HTTP 403 AccessDenied: Access Denied."
    )


def test_a_traceback_is_reduced_to_its_last_line() -> None:
    log = [
        "starting",
        "Traceback (most recent call last):",
        '  File "/app/push.py", line 9, in <module>',
        "    client.put_object(Bucket=b)",
        'botocore.exceptions.EndpointConnectionError: Could not connect to the endpoint URL: "http://minio:9000/b"',
        "cleaning up",
    ]
    assert messages.last_error(log) == log[4]


def test_a_log_without_a_traceback_gives_its_last_error_line() -> None:
    assert messages.last_error(["error: first", "cannot open /x: permission denied", "bye"]).startswith("cannot open")
    assert messages.last_error(["all is well"]) == ""
    assert len(messages.last_error(["error " + "x" * 900])) == 240


def test_the_innermost_error_of_a_probes_command_is_found() -> None:
    assert messages.innermost(EXEC) == 'exec: "nope": executable file not found in $PATH'
