"""Goal: what kvctl says about placement is so. Method: kvctl against a real cluster, and against canned answers."""

from __future__ import annotations

from typing import Any

from tests.cli.conftest import ClusterThread, Kvctl, all_know
from tests.cli.test_cluster import recording_server


def test_settings_are_shown_changed_and_reset(ctl: Kvctl) -> None:
    rows = {row["name"]: row for row in ctl.json("settings", "get")}
    assert rows["dead_after_seconds"] == {
        "name": "dead_after_seconds",
        "value": 300.0,
        "default": 300.0,
        "changed": False,
    }
    shown = ctl("settings", "set", "dead_after_seconds=60", "rebalance=false", "replication_factor/default=3").stdout
    assert [line.split() for line in shown.splitlines()[2:]] == [
        ["dead_after_seconds", "60", "300", "yes"],
        ["rebalance", "false", "true", "yes"],
        ["replication_factor/default", "3", "3", "yes"],
    ]
    assert ctl("settings", "get", "dead_after_seconds").stdout == "60\n"
    assert ctl.json("settings", "get", "rebalance")["value"] is False
    ctl("settings", "set", "dead_after_seconds=default", "rebalance=default", "replication_factor/default=default")
    assert not any(row["changed"] for row in ctl.json("settings", "get"))


def test_settings_that_are_not_possible(ctl: Kvctl) -> None:
    assert "replication_factor" in ctl.error("settings", "set", "replication_factor=0", exit_code=1)
    assert "there is no setting" in ctl.error("settings", "set", "nonsense=1", exit_code=1)
    assert "there is no keyspace" in ctl.error("settings", "set", "replication_factor/nowhere=1", exit_code=1)
    assert ctl.error("settings", "get", "nonsense", exit_code=3).startswith("kvctl: NOT_FOUND: ")
    for wrong in ("dead_after_seconds", "dead_after_seconds=soon", "=1"):
        assert "Error: " in ctl("settings", "set", wrong, exit_code=2).stderr
    assert not any(row["changed"] for row in ctl.json("settings", "get"))


def test_a_node_is_drained_and_takes_part_again() -> None:
    with ClusterThread() as thread:
        ctl = Kvctl(thread.endpoints)
        driver = thread.ask(lambda running: running.leader(1))  # its history of operators goes with it
        name = next(one for one in ("n1", "n2", "n3") if one != driver)
        assert ctl("node", "drain", name).stdout.startswith(f"{name} is being drained; ")
        assert ctl("node", "undrain", name).stdout == f"{name} takes part again\n"
        thread.ask(lambda running: running.add("n4"))
        thread.ask(lambda running: running.until(lambda: all_know(running, 4)))
        done = ctl("node", "drain", name, "--wait")
        assert done.stdout == f"{name} is empty\n"
        assert done.stderr  # how far it was
        assert all(name not in str(row["replicas"]) for row in ctl.json("shards"))
        assert ctl.json("node", "drain", name, "--wait")["done"] is True
        shown = ctl("operators").stdout
        assert f"{name} is drained" in shown
        assert f"swap n4 for {name}" in shown
        assert ctl.json("node", "undrain", name) == {"draining": None, "node": name}


def test_what_is_not_there(ctl: Kvctl) -> None:
    assert ctl.error("node", "drain", "n9", exit_code=3).startswith("kvctl: NOT_FOUND: ")
    assert ctl.error("node", "undrain", "n9", exit_code=3).startswith("kvctl: NOT_FOUND: ")
    assert ctl.error("operators", "cancel", "1", exit_code=3).startswith("kvctl: NOT_FOUND: ")


def test_the_table_of_operators() -> None:
    row: dict[str, Any] = {
        "id": 3_000_001, "kind": "repair", "shard": 7, "reason": "n3 is down for too long", "state": "running",
        "error": "no quorum", "age_seconds": 63.0, "seconds": 63.0, "history": [],
        "steps": [
            {"kind": "add learner", "node": "n4", "done": True},
            {"kind": "swap", "node": "n4", "other": "n3", "done": False},
        ],
    }  # fmt: skip
    with recording_server([row]) as (url, _):
        lines = [" ".join(line.split()) for line in Kvctl(url)("operators").stdout.splitlines()]
    assert lines[2] == (
        "3000001 repair 7 running 1m 3s 1m 3s add learner n4 (done) > swap n4 for n3 n3 is down for too long: no quorum"
    )
    with recording_server(row) as (url, asked):
        assert Kvctl(url)("operators", "cancel", "3000001").stdout == "cancelled operator 3000001\n"
    assert asked == [("DELETE", "/v1/operators/3000001", b"")]


def test_what_blocks_a_drain_is_told() -> None:
    progress = {
        "node": "n2", "draining": True, "ready": True, "done": True, "leaders": 0, "replicas": 3, "bytes": 1_536,
        "moving": 1, "blocked": [{"shard": 7, "reason": "no node can take its replica: n4: it is down"}],
        "seconds_left": 61.0,
    }  # fmt: skip
    from kvstore.cli.placement import _progress_text

    assert _progress_text(progress) == (
        "0 leaderships and 3 replicas (1.5 KiB) left, 1 moving, about 1m 1s\n"
        "  shard 7: no node can take its replica: n4: it is down"
    )
    assert "hears the nodes first" in _progress_text({**progress, "ready": False})
