"""The page that shows a history: whole, self-contained, with all data, and alive in a browser.

Method: the text of the page is parsed by Python's HTML parser; where a Chromium is installed, it runs the page and the
document that results is looked at.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from jepsen import formats
from jepsen.counterexample import explain_all
from jepsen.history import Event, History, Value, pair
from jepsen.linearizability import check
from jepsen.models import guess, model_named
from jepsen.report import embedded, page, write

DATA = Path(__file__).parent / "data" / "porcupine"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "link", "input", "br"}
NASTY = "</script><script>alert(1)</script><!-- \u2028 &lt; \" '"


def _page(history: History, **limits: Any) -> str:
    model = model_named(guess(history), history.meta.get("initial"))
    verdict = check(history, model, every_part=True, **limits)
    return page(history, verdict, explain_all(model, verdict.illegal), title="the <title>")


class Checker(HTMLParser):
    """Every element that is opened is closed, in the right order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: dict[str, str] = {}
        self._script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        self._script = dict(attrs).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.texts[self._script] = self.texts.get(self._script, "") + data


def _parsed(text: str) -> tuple[Checker, dict[str, Any]]:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert not checker.open
    data: dict[str, Any] = json.loads(checker.texts["data"])
    return checker, data


def _nasty() -> History:
    steps: list[tuple[int | str, str, str, Value]] = [
        ("nemesis", "invoke", "partition", NASTY),
        (0, "invoke", "write", NASTY),
        (0, "ok", "write", NASTY),
        (1, "invoke", "read", None),
        (1, "ok", "read", "{{DATA}} {{STYLE}}"),
        (2, "invoke", "write", "lost"),
    ]
    return pair(
        Event(line, process, kind, f, key=NASTY, value=value, time=line * 1000)
        for line, (process, kind, f, value) in enumerate(steps, 1)
    )


def test_the_page_is_well_formed_and_asks_nobody() -> None:
    checker, data = _parsed(_page(formats.read(DATA / "etcd/etcd_099.log")))
    assert not any(name in ("src", "srcset", "action") for _, name, _ in checker.attributes)
    assert {value for _, name, value in checker.attributes if name == "href"} == {"data:,"}
    policy = next(
        value for tag, name, value in checker.attributes if (tag, name) == ("meta", "content") and "src" in str(value)
    )
    assert policy is not None and policy.startswith("default-src 'none';")
    for text in (checker.texts["script"], checker.texts["style"]):
        assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttp|import\(", text.replace("file://", ""))
    assert data["verdict"] == "invalid"


def test_all_operations_and_the_contradiction_are_in_the_data() -> None:
    history = formats.read(DATA / "kv/c10-bad.txt")
    _, data = _parsed(_page(history))
    assert len(data["ops"]["text"]) == len(history.operations) == 405
    assert sorted(op for part in data["parts"] for op in part["ops"]) == list(range(405))
    answers = [part["answer"] for part in data["parts"]]
    assert answers == sorted(answers, key=["invalid", "unknown", "valid"].index), "what is wrong comes first"
    for part in data["parts"]:
        for order in part["orders"]:
            assert len(order["state"]) == len(order["ops"])
            assert set(order["ops"]) <= set(part["ops"])
        if part["answer"] == "invalid":
            assert set(part["core"]) <= set(part["ops"])
            assert all(0 <= number < len(part["orders"]) for number in part["order_of"].values())
        else:
            assert len(part["orders"][0]["ops"]) == len(part["ops"])


def test_what_operations_say_cannot_break_out_of_the_data() -> None:
    text = _page(_nasty())
    checker, data = _parsed(text)
    assert NASTY not in text
    assert text.count("<script") == 2
    assert data["marks"][0][2][:8] == NASTY[:8]
    assert "{{DATA}}" in checker.texts["data"], "what is filled in is not filled in again"
    assert json.loads(embedded({"a": NASTY})) == {"a": NASTY}
    assert "<" not in embedded(NASTY) and "\u2028" not in embedded(NASTY)


def test_a_page_for_ten_thousand_operations_is_about_a_megabyte(tmp_path: Path) -> None:
    events = []
    for number in range(10_000):
        f, value = ("write", number) if number % 2 else ("read", number - 1 if number else None)
        events += [
            Event(2 * number + end, number % 10, kind, f, "k", value) for end, kind in enumerate(("invoke", "ok"))
        ]
    history = pair(events)
    verdict = check(history, model_named("register"))
    assert verdict.valid is True
    path = tmp_path / "page.html"
    write(path, history, verdict, [], title="many")
    assert path.stat().st_size < 2_000_000


def _rendered(tmp_path: Path, text: str, fragment: str = "") -> str:
    """The document as a browser has it once the page's script has run."""
    assert BROWSER is not None
    path = tmp_path / "page.html"
    path.write_text(text, encoding="utf-8")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=2000", "--dump-dom", f"{path.as_uri()}{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=90)
    return re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed to open the page with")
def test_a_browser_shows_the_verdict_and_the_contradiction(tmp_path: Path) -> None:
    text = _page(formats.read(DATA / "kv/c10-bad.txt"))
    op = _parsed(text)[1]["parts"][0]["ops"][0]
    document = _rendered(tmp_path, text, f"#part=0&op={op}")
    assert "<title>the &lt;title&gt;: not linearizable</title>" in document
    assert document.count('class="dot"') >= 10
    assert "Contradiction · 2 of" in document
    assert "Where it ends" in document
    assert ">Operation<" in document, "the address chose one"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed to open the page with")
def test_a_browser_shows_nasty_text_as_text(tmp_path: Path) -> None:
    document = _rendered(tmp_path, _page(_nasty()))
    assert "not linearizable</title>" in document
    assert document.count("alert(1)") == document.count("alert(1)&lt;/script&gt;") + document.count(
        'alert(1)</script>"'
    )
    assert "<script>alert" not in re.sub(r'"[^"]*"', '""', document)
