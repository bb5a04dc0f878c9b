"""Goal: `kvstore serve` refuses clearly, serves, and ends as it should. Method: real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from tests.ports import free_port

WAIT_SECONDS = 30.0
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("KVSTORE_")}


def serve(*arguments: str, python: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *python, "-m", "kvstore.cli", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | variables,
    )


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A node that answers, and its URL."""
    port = free_port()
    process = serve("--listen", f"127.0.0.1:{port}", *arguments)
    try:
        url = f"http://127.0.0.1:{port}"
        _until_ready(process, url)
        yield process, url
    finally:
        process.kill()
        process.communicate()


def _until_ready(process: subprocess.Popen[str], url: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=1) as answer:
                answer.read()
                return
        except OSError:
            time.sleep(0.02)
    raise AssertionError("the node did not get ready")


def refusal(process: subprocess.Popen[str]) -> str:
    """The one line of a process that refused to start."""
    out, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 2, err
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    return lines[0]


def test_python_without_asserts_is_refused(tmp_path: Path) -> None:
    asked = ("--name", "n1", "--data", str(tmp_path))
    assert refusal(serve(*asked, python=("-O",))).startswith("kvstore: python -O")
    assert refusal(serve(*asked, PYTHONOPTIMIZE="1")).startswith("kvstore: python -O")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "kvstore: --name is missing"),
        (
            ("--name", "n1", "--data", "{}", "--listen", "0.0.0.0:1", "--advertise", "h:1"),
            "kvstore: --listen 0.0.0.0:1 is open",
        ),
        (("--name", "n1", "--data", "{}", "--config", "/nonexistent"), "kvstore: --config /nonexistent: No such file"),
        (("--name", "n1", "--data", "/dev/null/x"), "kvstore: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    assert refusal(serve(*(part.format(tmp_path) for part in arguments))).startswith(says)


def test_a_directory_in_use_or_of_another_node_is_refused(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "d"))
    with running("--name", "n1", *data):
        assert str(tmp_path) in refusal(serve("--name", "n1", *data, "--listen", f"127.0.0.1:{free_port()}"))
    line = refusal(serve("--name", "n2", *data, "--listen", f"127.0.0.1:{free_port()}"))
    assert "belongs to node n1, not n2" in line


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        line = refusal(serve("--name", "n1", "--data", str(tmp_path), "--listen", f"127.0.0.1:{port}"))
    assert str(port) in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_gracefully_and_the_data_is_there_again(tmp_path: Path, number: signal.Signals) -> None:
    arguments = ("--name", "n1", "--data", str(tmp_path / "d"))
    with running(*arguments) as (process, url):
        put = urllib.request.Request(f"{url}/v1/kv/default/a", data=b"1", method="PUT")
        with urllib.request.urlopen(put, timeout=10) as answer:
            assert answer.status == 200
        process.send_signal(number)
        _, err = process.communicate(timeout=WAIT_SECONDS)
        assert process.returncode == 0, err
        assert f"stopping signal={number.name}" in err
        assert err.splitlines()[-1].endswith("n1 serve: stopped")
    with running(*arguments) as (_, url), urllib.request.urlopen(f"{url}/v1/kv/default/a", timeout=10) as answer:
        assert answer.read() == b"1"


def test_a_node_that_waits_for_its_founders_can_be_stopped(tmp_path: Path) -> None:
    port, absent = free_port(), free_port()
    founders = f"n1=127.0.0.1:{port},n2=127.0.0.1:{absent}"
    process = serve(
        "--name", "n1", "--data", str(tmp_path), "--listen", f"127.0.0.1:{port}", "--initial-cluster", founders
    )
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.02)
    process.terminate()
    _, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0, err


def test_log_lines_in_json(tmp_path: Path) -> None:
    with running("--name", "n1", "--data", str(tmp_path / "d"), "--log-format", "json") as (process, _):
        process.terminate()
        _, err = process.communicate(timeout=WAIT_SECONDS)
    lines = [orjson.loads(line) for line in err.splitlines()]
    assert all(line["node"] == "n1" and line["level"] and line["message"] for line in lines)
    serving = next(line for line in lines if line["message"] == "serving")
    assert serving["address"].startswith("127.0.0.1:")


FAKE_NODE = """
import asyncio, os, signal, sys
import kvstore.node

class FakeNode:
    '''Starts at once; its stop never ends. With "fatal" it breaks a moment after it began.'''
    def __init__(self, config):
        self.fatal = asyncio.get_running_loop().create_future()
    async def start(self):
        if sys.argv[1] == "fatal":
            asyncio.get_running_loop().call_later(0.01, self.fatal.set_result, OSError("fsync failed"))
        else:
            asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGTERM)
    async def stop(self):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

kvstore.node.Node = FakeNode
from kvstore.cli.main import kvstore as command
command(["serve", "--name", "n1", "--data", "/d"])
"""


@pytest.mark.parametrize(
    ("how", "exit_code", "says"),
    [("fatal", 1, "OSError: fsync failed"), ("signals", 128 + signal.SIGTERM, "second signal: ending at once")],
)
def test_a_fatal_error_and_a_second_signal_end_at_once(how: str, exit_code: int, says: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FAKE_NODE, how], capture_output=True, text=True, timeout=WAIT_SECONDS, env=ENVIRONMENT
    )
    assert ended.returncode == exit_code, ended.stderr
    assert says in ended.stderr
