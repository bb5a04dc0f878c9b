"""Goal: the README's tour works as it stands. Method: its code blocks are taken out and run in order, against a cluster
of `kvstore dev`; the `text` block behind a code block is its expected output, in which … stands for anything.

On ports 7001 to 7003 where they are free; otherwise (a developer's `make run`, say) the same text with other ports.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.test_dev import all_free, dev

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PORT = 7001


@dataclass(frozen=True)
class Step:
    """A code block and what it must print (None: anything)."""

    language: str
    code: str
    output: str | None


def tour() -> list[Step]:
    section = re.search(r"^## Five minutes\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    assert section is not None
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    steps: list[Step] = []
    for language, text in blocks:
        if language == "text":
            assert steps[-1].output is None, "two outputs behind one block"
            steps[-1] = Step(steps[-1].language, steps[-1].code, text)
        else:
            assert language in ("sh", "python"), language
            steps.append(Step(language, text, None))
    return steps


def matches(expected: str, printed: str) -> bool:
    """… is anything, also line breaks."""
    pattern = ".*".join(re.escape(part) for part in expected.strip().split("…"))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def surroundings(folder: Path) -> dict[str, str]:
    """A PATH with kvctl and python, as after `. .venv/bin/activate`, wherever this test runs."""
    scripts = folder / "bin"
    scripts.mkdir()
    kvctl = scripts / "kvctl"
    kvctl.write_text(f"#!{sys.executable}\nimport sys\nfrom kvstore.cli.main import kvctl\nsys.exit(kvctl())\n")
    kvctl.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KVCTL_", "KVSTORE_"))}
    return kept | {"PATH": f"{scripts}:{Path(sys.executable).parent}:{kept['PATH']}", "PYTHONPATH": str(ROOT)}


def run(step: Step, port: int, environment: dict[str, str]) -> str:
    """What the block prints, both streams in their order."""
    code = re.sub(r"\b700([123])\b", lambda found: str(port + int(found[1]) - 1), step.code)
    if port != PORT:
        ends = ",".join(f"http://127.0.0.1:{port + place}" for place in range(3))
        environment = environment | {"KVCTL_ENDPOINTS": ends}
    # From standard input: in the arguments the text would be found by its own pgrep.
    command = ["bash", "-e"] if step.language == "sh" else [sys.executable, "-"]
    ended = subprocess.run(
        command,
        input=code,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=60,
    )
    assert ended.returncode == 0, f"{step.code}\n{ended.stdout}"
    return ended.stdout


@pytest.mark.skipif(not shutil.which("curl") or not shutil.which("pgrep"), reason="the tour uses curl and pgrep")
def test_the_tour_works_as_it_stands(tmp_path: Path) -> None:
    steps = tour()
    assert {step.language for step in steps} == {"sh", "python"}
    assert sum(step.output is not None for step in steps) >= 6
    environment = surroundings(tmp_path)
    temporary = tmp_path / "data"
    temporary.mkdir()
    with dev(port=PORT if all_free(PORT, 3) else None, temporary=temporary) as cluster:
        cluster.wait_for("The cluster is up")
        for step in steps:
            if "activate" in step.code and not (ROOT / ".venv").exists():
                continue  # another environment; `surroundings` stands in for it
            printed = run(step, cluster.port, environment)
            if step.output is not None:
                assert matches(step.output, printed), f"{step.code}\nprinted:\n{printed}\nexpected:\n{step.output}"


def test_what_the_readme_names_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", README):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"`((?:raft|kvstore|tests)/[\w./]+)`", README):
        assert (ROOT / target).exists(), target


def test_the_two_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command
