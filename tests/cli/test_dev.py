"""Goal: `kvstore dev` runs real nodes, tells what happens to them, and leaves nothing behind. Method: real processes,
looked at through psutil."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from kvstore.cli import dev_processes
from kvstore.cli.dev_processes import describe_exit, environment, plan_nodes, temporary_data

WAIT_SECONDS = 60.0


class DevProcess:
    """`kvstore dev` and its lines, read as they come."""

    def __init__(self, *arguments: str, temporary: Path, port: int | None) -> None:
        self.port = port or free_ports(3)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kvstore.cli", "dev", "--port", str(self.port), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"TMPDIR": str(temporary)},
        )
        self.seen: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The next line that matches; the lines before it are passed over."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left)
            except queue.Empty:
                break
            assert line is not None, f"it ended; no line matched {pattern!r} in {self.seen}"
            self.seen.append(line)
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"no line matched {pattern!r} in {self.seen}")

    def nodes(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


def free_ports(count: int) -> int:
    """The first of `count` free ports in a row."""
    return next(port for port in range(21_000 + os.getpid() % 8_000, 32_000) if all_free(port, count))


def all_free(port: int, count: int) -> bool:
    """Whether nobody listens on `count` ports from `port` on."""
    with ExitStack() as probes:
        try:
            for place in range(count):
                probe = probes.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port + place))
        except OSError:
            return False
    return True


@contextmanager
def dev(*arguments: str, temporary: Path, port: int | None = None) -> Iterator[DevProcess]:
    """`port` None = free ones are found."""
    run = DevProcess(*arguments, temporary=temporary, port=port)
    try:
        yield run
    finally:
        run.close()


def all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=WAIT_SECONDS)
    return not alive


def test_it_runs_shows_a_kill_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with dev(temporary=tmp_path) as run:
        run.wait_for("The cluster is up")
        run.wait_for("Metrics ")
        nodes = run.nodes()
        assert len(nodes) == 3
        victim = next(node for node in nodes if "n2" in node.cmdline())
        victim.kill()
        run.wait_for("^n2 is down: killed by SIGKILL$")
        assert "serve --name n2" in run.wait_for("to start it again: (.*)$")[1]
        run.process.send_signal(signal.SIGINT)
        run.wait_for("^stopped$")
        assert run.process.wait(WAIT_SECONDS) == 0
        assert all_gone(nodes)
        assert list(tmp_path.iterdir()) == []
        for name in ("n1", "n2", "n3"):
            assert any(line.startswith(f"{name} is up at http://127.0.0.1:") for line in run.seen)
        assert any(re.fullmatch(r"n\d leads shard 2 in term \d+", line) for line in run.seen)


def test_data_can_be_kept(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for _ in range(2):
        with dev("--nodes", "1", "--data", str(data), temporary=tmp_path) as run:
            run.wait_for("The cluster is up")
            run.process.terminate()
            assert run.process.wait(WAIT_SECONDS) == 0
    assert sorted(path.name for path in data.iterdir()) == ["n1", "n1.log"]
    assert (data / "n1.log").read_text().count("serve: serving") == 2


def test_nodes_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with dev("--nodes", "2", temporary=tmp_path) as run:
        run.wait_for("The cluster is up")
        nodes = run.nodes()
        run.process.kill()
        assert all_gone(nodes)


def test_it_ends_when_every_node_has_ended(tmp_path: Path) -> None:
    """Here the one node refuses to start: its directory is a file."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "n1").write_text("in the way")
    with dev("--nodes", "1", "--data", str(tmp_path / "data"), temporary=tmp_path) as run:
        run.wait_for("^n1 is down: exit code 2$")
        run.wait_for("its last words: kvstore: ")
        run.wait_for("^every node has ended$")
        assert run.process.wait(WAIT_SECONDS) == 1


def test_a_busy_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "-m", "kvstore.cli", "dev", "--nodes", "1", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            env=os.environ | {"TMPDIR": str(tmp_path)},
        )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"kvstore dev: port {port} is not free")
    assert ended.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_plan_founds_one_cluster(tmp_path: Path) -> None:
    first, second = plan_nodes(nodes=2, port=8001, data=tmp_path, log_level="info")
    founders = "n1=127.0.0.1:8001,n2=127.0.0.1:8002"
    assert (first.name, first.url, second.name, second.url) == (
        "n1",
        "http://127.0.0.1:8001",
        "n2",
        "http://127.0.0.1:8002",
    )
    for node in (first, second):
        assert node.command[node.command.index("--initial-cluster") + 1] == founders
        assert node.command[node.command.index("--data") + 1] == str(tmp_path / node.name)


def test_settings_of_the_caller_do_not_reach_the_nodes() -> None:
    kept = environment({"KVSTORE_LISTEN": "0.0.0.0:1", "PYTHONOPTIMIZE": "1", "PATH": "/bin"})
    assert kept == {"PATH": "/bin", "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize(
    ("exit_code", "text"),
    [(0, "exit code 0"), (2, "exit code 2"), (-9, "killed by SIGKILL"), (-99, "killed by signal 99")],
)
def test_exits_in_words(exit_code: int, text: str) -> None:
    assert describe_exit(exit_code) == text


def test_what_a_killed_parent_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stale = tmp_path / f"{dev_processes.TEMPORARY_PREFIX}stale"
    young = tmp_path / f"{dev_processes.TEMPORARY_PREFIX}young"
    other = tmp_path / "something-else"
    for folder in (stale, young, other):
        folder.mkdir()
        (folder / ".in-use").touch()
    old = time.time() - 3_600
    os.utime(stale, (old, old))
    os.utime(other, (old, old))
    with temporary_data() as mine:
        os.utime(mine, (old, old))
        assert not stale.exists()
        with temporary_data() as another:
            assert mine.exists()
            assert another != mine
    assert sorted(tmp_path.iterdir()) == sorted([young, other])
