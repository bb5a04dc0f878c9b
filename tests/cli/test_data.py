"""Goal: what the commands on keys print, and how they exit. Method: kvctl against a real cluster."""

from __future__ import annotations

import pytest

from kvstore.base.errors import Timeout, Unavailable
from kvstore.cli.target import Target
from tests.cli.conftest import ClusterThread, Kvctl


def test_put_get_delete(ctl: Kvctl) -> None:
    assert ctl("put", "fruit", "apple").stdout.startswith("ok, revision ")
    assert ctl("get", "fruit").stdout == "apple\n"
    assert ctl("delete", "fruit").stdout == "deleted\n"
    assert ctl("delete", "fruit").stdout == "nothing to delete\n"
    assert ctl.error("get", "fruit", exit_code=3) == "kvctl: NOT_FOUND: there is no key fruit"


def test_json_shapes(ctl: Kvctl) -> None:
    put = ctl.json("put", "fruit", "apple")
    assert put == {"key": "fruit", "revision": put["revision"]}
    revision = put["revision"]
    assert ctl.json("get", "fruit") == {
        "key": "fruit",
        "value": "apple",
        "mod_revision": revision,
        "create_revision": revision,
        "version": 1,
    }
    assert ctl.json("cas", "fruit", "pear", "--revision", str(revision)) == {"key": "fruit", "revision": revision + 1}
    items = ctl.json("scan")
    assert items["more"] is False
    assert [(item["key"], item["value"], item["version"]) for item in items["items"]] == [("fruit", "pear", 2)]
    assert ctl.json("delete", "fruit") == {"key": "fruit", "deleted": True}
    assert ctl.json("delete", "fruit") == {"key": "fruit", "deleted": False}
    assert ctl.json("delete-range", "--prefix", "f", "--yes") == {"deleted": 0}


def test_binary_values_and_keys(ctl: Kvctl) -> None:
    value = bytes(range(256))
    ctl("put", "@base64:AP8=", "-", stdin=value)
    assert ctl("get", "@base64:AP8=", "--raw").stdout_bytes == value
    shown = ctl("get", "@base64:AP8=").stdout
    assert shown.startswith("\\x00\\x01")
    assert shown.removesuffix("\n").isprintable()
    assert ctl.json("get", "@base64:AP8=")["key_base64"] == "AP8="
    assert "\\x00\\xff" in ctl("scan").stdout
    ctl("put", "empty", "")
    assert ctl("get", "empty", "--raw").stdout_bytes == b""


def test_cas_conditions(ctl: Kvctl) -> None:
    ctl("cas", "lock", "me", "--absent")
    line = ctl.error("cas", "lock", "you", "--absent", exit_code=4)
    assert line.startswith("kvctl: CONFLICT: the value is me at revision ")
    assert "(hint: Read the current value" in line
    ctl("cas", "lock", "you", "--expect", "me")
    ctl.error("cas", "lock", "they", "--expect", "me", exit_code=4)
    revision = ctl.json("get", "lock")["mod_revision"]
    ctl("cas", "lock", "they", "--revision", str(revision))
    ctl.error("cas", "lock", "we", "--revision", str(revision), exit_code=4)
    assert ctl("get", "lock").stdout == "they\n"
    assert ctl.error("cas", "none", "x", "--expect", "y", exit_code=4).startswith(
        "kvctl: CONFLICT: there is no such key (hint:"
    )


def test_a_conflict_in_json_carries_the_current_record(ctl: Kvctl) -> None:
    import orjson

    ctl("put", "a", "1")
    failure = orjson.loads(ctl.error("cas", "a", "2", "--absent", "-o", "json", exit_code=4))
    assert failure["error"] == "CONFLICT"
    assert failure["unknown_outcome"] is False
    assert (failure["current"]["key"], failure["current"]["value"]) == ("a", "1")
    missing = orjson.loads(ctl.error("-o", "json", "cas", "b", "2", "--expect", "1", exit_code=4))
    assert missing["current"] is None


def test_scan_ranges(ctl: Kvctl) -> None:
    for key in ("a1", "a2", "b1", "b2", "c1"):
        ctl("put", key, f"of {key}")

    def keys(*options: str) -> list[str]:
        return [item["key"] for item in ctl.json("scan", *options)["items"]]

    assert keys() == ["a1", "a2", "b1", "b2", "c1"]
    assert keys("--prefix", "b") == ["b1", "b2"]
    assert keys("--start", "a2", "--end", "b2") == ["a2", "b1"]
    assert keys("--reverse") == ["c1", "b2", "b1", "a2", "a1"]
    assert keys("--limit", "2", "--reverse", "--end", "b2") == ["b1", "a2"]
    cut = ctl("scan", "--limit", "2")
    assert [line.split()[:2] for line in cut.stdout.splitlines()[2:]] == [["a1", "of"], ["a2", "of"]]
    assert "more follow" in cut.stderr
    assert ctl.json("scan", "--limit", "2")["more"] is True
    assert ctl.json("scan", "--limit", "5")["more"] is False
    nothing = ctl("scan", "--prefix", "zzz")
    assert (nothing.stdout, nothing.stderr) == ("", "no keys there\n")


def test_scan_crosses_pages(ctl: Kvctl) -> None:
    lines = b"".join(b'{"key": "k%05d", "value": ""}\n' % number for number in range(2_500))
    ctl("import", "-", stdin=lines)
    assert len(ctl.json("scan", "--limit", "2400")["items"]) == 2_400
    assert ctl.json("delete-range", "--start", "k00100", "--end", "k02400", "--yes") == {"deleted": 2_300}
    assert len(ctl.json("scan", "--limit", "1000")["items"]) == 200


def test_delete_range_asks_first(ctl: Kvctl) -> None:
    ctl("put", "a", "1")
    refused = ctl("delete-range", "--prefix", "a", stdin=b"n\n", exit_code=1)
    assert "Delete all keys that begin with a?" in refused.stderr
    assert ctl("get", "a").stdout == "1\n"
    assert ctl("delete-range", "--prefix", "a", stdin=b"y\n").stdout == "deleted 1 keys\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("get",),
        ("put", "a"),
        ("nonsense",),
        ("cas", "a", "b"),
        ("cas", "a", "b", "--absent", "--expect", "c"),
        ("cas", "a", "b", "--revision", "0"),
        ("scan", "--prefix", "a", "--start", "b"),
        ("scan", "--limit", "0"),
        ("delete-range", "--yes"),
        ("get", "@base64:%"),
        ("--endpoints", "ftp://x:1", "get", "a"),
        ("get", "a", "--endpoints", "nowhere"),
        ("get", "a", "-o", "xml"),
        ("shards", "transfer", "two", "n1"),
        ("bench", "--workload", "ycsb-z"),
    ],
)
def test_wrong_usage_is_exit_code_2(ctl: Kvctl, arguments: tuple[str, ...]) -> None:
    result = ctl(*arguments, exit_code=2)
    assert "Usage: kvctl" in result.stderr
    assert "Error: " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("put", "", "x"), "INVALID"), (("get", "k" * 481), "TOO_LARGE"), (("put", "k", "v" * 1_048_577), "TOO_LARGE")],
)
def test_what_the_store_refuses_is_one_line_and_exit_code_1(ctl: Kvctl, arguments: tuple[str, ...], code: str) -> None:
    assert ctl.error(*arguments, exit_code=1).startswith(f"kvctl: {code}: ")


def test_an_unknown_keyspace(ctl: Kvctl) -> None:
    line = ctl.error("--keyspace", "nobody", "get", "a", exit_code=3)
    assert "nobody" in line


def test_options_may_stand_before_and_after_and_the_later_counts(cluster: ClusterThread, ctl: Kvctl) -> None:
    ctl("put", "a", "1")
    nowhere = Kvctl("http://127.0.0.1:1")
    assert nowhere("--endpoints", cluster.endpoints, "get", "a").stdout == "1\n"
    assert nowhere("get", "a", "--endpoints", cluster.endpoints).stdout == "1\n"
    assert ctl("-o", "json", "get", "a", "-o", "table").stdout == "1\n"
    assert ctl("-o", "json", "get", "a").stdout == ctl("get", "a", "-o", "json").stdout
    one = cluster.endpoints.split(",")[1].removeprefix("http://")
    assert nowhere("--endpoints", one, "get", "a").stdout == "1\n"


def test_no_cluster_there() -> None:
    nowhere = Kvctl("http://127.0.0.1:1")
    line = nowhere.error("--timeout", "0.3", "get", "a", exit_code=1)
    assert line.startswith("kvctl: UNAVAILABLE: ")
    assert "(hint: " in line
    for command in ("status", "members", "shards", "routes", "operators"):
        line = nowhere.error(command, exit_code=1)
        assert line.startswith("kvctl: UNREACHABLE: no node answers at http://127.0.0.1:1 (hint: ")


class Failing:
    """A client whose every call fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def __aenter__(self) -> Failing:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def put(self, key: bytes, value: bytes) -> int:
        raise self._error

    get_record = delete = put


def test_an_unknown_outcome_is_exit_code_5(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write whose answer was lost may have happened; a read that was not answered can't have done anything."""
    ctl = Kvctl("http://127.0.0.1:1")
    monkeypatch.setattr(Target, "client", lambda _: Failing(Timeout("no answer in 10 s")))
    line = ctl.error("put", "a", "1", exit_code=5)
    assert line.startswith("kvctl: TIMEOUT: no answer in 10 s (hint: ")
    monkeypatch.setattr(Target, "client", lambda _: Failing(Unavailable("no leader", definite=False)))
    assert '"unknown_outcome":true' in ctl.error("put", "a", "1", "-o", "json", exit_code=5)
    monkeypatch.setattr(Target, "client", lambda _: Failing(Unavailable("no leader")))
    ctl.error("put", "a", "1", exit_code=1)
