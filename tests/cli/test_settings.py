"""Goal: a node's configuration comes from where it should, and mistakes name their source. Method: tables."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from kvstore.base.config import NodeConfig, ReadMode
from kvstore.base.errors import StartRefused
from kvstore.cli.settings import SETTINGS, ServeSettings, resolve

BASE = {"name": "n1", "data": "/d"}


def settings(
    tmp_path: Path, *, flags: dict[str, Any] | None = None, variables: dict[str, str] | None = None, toml: str = ""
) -> ServeSettings:
    file = tmp_path / "node.toml"
    file.write_text(toml)
    return resolve(flags=flags or {}, variables=variables or {}, config_file=file if toml else None)


@pytest.mark.parametrize(
    ("flag", "variable", "toml", "expected"),
    [
        (None, None, None, 1_048_576),
        (None, None, "3", 3),
        (None, "2", "3", 2),
        ("1", "2", "3", 1),
        ("1", None, "3", 1),
        ("1", "2", None, 1),
    ],
)
def test_a_flag_beats_a_variable_beats_the_file(
    tmp_path: Path, flag: str | None, variable: str | None, toml: str | None, expected: int
) -> None:
    found = settings(
        tmp_path,
        flags=BASE | {"max-value-bytes": flag},
        variables={"KVSTORE_MAX_VALUE_BYTES": variable} if variable else {},
        toml=f"max-value-bytes = {toml}" if toml else "",
    )
    assert found.config.value_bytes_max == expected


def test_a_switch_can_be_taken_back_by_a_stronger_source(tmp_path: Path) -> None:
    toml = "insecure = true\n"
    assert settings(tmp_path, flags=BASE, toml=toml).config.insecure
    assert not settings(tmp_path, flags=BASE, variables={"KVSTORE_INSECURE": "no"}, toml=toml).config.insecure
    assert settings(tmp_path, flags=BASE | {"insecure": True}, variables={"KVSTORE_INSECURE": "0"}).config.insecure


def test_everything_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"0123456789abcdef\n")
    found = settings(
        tmp_path,
        toml=f"""
        name = "n2"
        data = "/var/lib/kvstore"
        listen = "0.0.0.0:7002"
        advertise = "10.0.0.2:7002"
        labels = {{zone = "a", host = "b"}}
        cluster_secret_file = "{secret}"
        read-mode = "lease"
        max_value_bytes = 4096
        tick-ms = 20
        heartbeat-ms = 40
        election-ms = 400
        flush-interval-ms = 1000
        map-bytes = 1073741824
        reserve-bytes = 0
        start-timeout-ms = 5000
        gossip-ms = 200
        log-format = "json"
        log-level = "debug"
        [initial-cluster]
        n1 = "10.0.0.1:7001"
        n2 = "10.0.0.2:7002"
        """,
    )
    assert found == ServeSettings(
        config=NodeConfig(
            name="n2",
            data=Path("/var/lib/kvstore"),
            listen="0.0.0.0:7002",
            advertise="10.0.0.2:7002",
            initial_cluster={"n1": "10.0.0.1:7001", "n2": "10.0.0.2:7002"},
            labels={"zone": "a", "host": "b"},
            cluster_secrets=(b"0123456789abcdef",),
            read_mode=ReadMode.LEASE,
            value_bytes_max=4096,
            tick_ms=20,
            heartbeat_ms=40,
            election_ms=400,
            flush_interval_ms=1000,
            map_bytes=1 << 30,
            reserve_bytes=0,
            start_timeout_ms=5000,
            gossip_ms=200,
        ),
        log_format="json",
        log_level="debug",
        secret_file=secret,
    )


def test_everything_from_variables_and_what_kubernetes_sets_is_left_alone(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        variables={
            "KVSTORE_NAME": "n1",
            "KVSTORE_DATA": "/d",
            "KVSTORE_LISTEN": "127.0.0.1:7009",
            "KVSTORE_JOIN": "10.0.0.1:7001, 10.0.0.2:7001",
            "KVSTORE_LABELS": "zone=a",
            "KVSTORE_PORT": "tcp://10.0.0.9:7001",
            "KVSTORE_SERVICE_HOST": "10.0.0.9",
        },
    )
    assert found.config.join == ("10.0.0.1:7001", "10.0.0.2:7001")
    assert found.config.labels == {"zone": "a"}
    assert found.config.listen == "127.0.0.1:7009"


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text('name = "n7"\ndata = "/d"\n')
    assert resolve(flags={}, variables={"KVSTORE_CONFIG": str(file)}, config_file=None).config.name == "n7"


@pytest.mark.parametrize(
    ("flags", "variables", "toml", "says"),
    [
        ({"data": "/d"}, {}, "", r"--name is missing \(or KVSTORE_NAME"),
        ({"name": "n1"}, {}, "", r"--data is missing"),
        ({"name": "-x", "data": "/d"}, {}, "", r"--name '-x'"),
        (BASE | {"max-value-bytes": "many"}, {}, "", r"--max-value-bytes: 'many' is not a whole number"),
        (BASE, {"KVSTORE_MAX_VALUE_BYTES": "x"}, "", r"KVSTORE_MAX_VALUE_BYTES: 'x' is not a whole number"),
        (BASE, {}, "max-value-bytes = 1.5", r"max-value-bytes in .*node.toml: 1.5 is not a whole number"),
        (BASE, {}, "tick-ms = true", r"tick-ms in .*: True is not a whole number"),
        (BASE, {}, 'labels = "zone"', r"labels in .*: 'zone' is not NAME=VALUE"),
        (BASE | {"labels": "a=1,a=2"}, {}, "", r"--labels: 'a' is given twice"),
        (BASE, {}, "labels = {a = 1}", r"labels in .*: needs texts"),
        (BASE, {}, "lisen = 'x'", r"unknown key 'lisen'; did you mean 'listen'\?"),
        (BASE, {}, "= 1", r"not TOML"),
        (BASE | {"read-mode": "magic"}, {}, "", r"--read-mode: 'magic' is not one of index, lease"),
        (BASE | {"log-level": "loud"}, {}, "", r"--log-level: 'loud' is not one of debug"),
        (BASE, {"KVSTORE_INSECURE": "maybe"}, "", r"KVSTORE_INSECURE: 'maybe' is neither true nor false"),
        (BASE | {"listen": "7001"}, {}, "", r"'7001' is not HOST:PORT"),
        (BASE | {"cluster-secret-file": "/nonexistent"}, {}, "", r"can't read /nonexistent: No such file"),
        (BASE | {"listen": "0.0.0.0:7001", "insecure": True}, {}, "", r"--advertise is missing"),
        (BASE | {"listen": "10.0.0.1:7001"}, {}, "", r"open to the network: give --cluster-secret-file"),
        (BASE | {"listen": "[::]:7001", "advertise": "h:1"}, {}, "", r"open to the network"),
        (BASE | {"listen": "node1:7001"}, {}, "", r"open to the network"),
        (BASE | {"initial-cluster": "n2=127.0.0.1:7002"}, {}, "", r"must contain n1=127.0.0.1:7001"),
        (BASE | {"initial-cluster": "n1=127.0.0.1:7001", "join": "h:1"}, {}, "", r"exclude each other"),
    ],
)
def test_mistakes_are_refused_in_one_line_that_names_their_source(
    tmp_path: Path, flags: dict[str, Any], variables: dict[str, str], toml: str, says: str
) -> None:
    with pytest.raises(StartRefused, match=says) as caught:
        settings(tmp_path, flags=flags, variables=variables, toml=toml)
    assert "\n" not in str(caught.value)


def test_a_value_that_is_overruled_is_not_looked_at(tmp_path: Path) -> None:
    assert settings(tmp_path, flags=BASE, toml='name = ""').config.name == "n1"


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1"])
def test_loopback_needs_no_secret(tmp_path: Path, listen: str) -> None:
    assert settings(tmp_path, flags=BASE | {"listen": listen}).config.listen == listen


def test_beyond_loopback_with_a_secret_or_insecure(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"short")
    flags = BASE | {"listen": "10.0.0.1:7001", "cluster-secret-file": str(secret)}
    with pytest.raises(StartRefused, match="a secret of 5 bytes, which needs 16"):
        settings(tmp_path, flags=flags)
    secret.write_bytes(b"long enough a secret")
    assert settings(tmp_path, flags=flags).config.cluster_secrets == (b"long enough a secret",)
    assert settings(tmp_path, flags=BASE | {"listen": "10.0.0.1:7001", "insecure": True}).config.insecure


@pytest.mark.parametrize(
    ("content", "secrets"),
    [
        (b"a secret of some bytes", (b"a secret of some bytes",)),
        (
            b"\n  the new secret of mine \r\n\nthe old secret of mine\n",
            (b"the new secret of mine", b"the old secret of mine"),
        ),
        (b"", "a secret of 0 bytes"),
        (b"long enough a secret\nshort", "a secret of 5 bytes"),
        (b"long enough a secret\n" * 3, "has 3 lines"),
    ],
)
def test_a_secret_file_has_one_line_or_two_while_it_is_changed(
    tmp_path: Path, content: bytes, secrets: tuple[bytes, ...] | str
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    flags = BASE | {"cluster-secret-file": str(file)}
    if isinstance(secrets, str):
        with pytest.raises(StartRefused, match=secrets):
            settings(tmp_path, flags=flags)
        return
    found = settings(tmp_path, flags=flags)
    assert found.config.cluster_secrets == secrets
    assert found.secret_file == file


def test_who_listens_everywhere_advertises_what_the_founders_list_says(tmp_path: Path) -> None:
    flags = BASE | {"listen": "0.0.0.0:7001", "insecure": True, "initial-cluster": "n1=10.0.0.1:7001,n2=10.0.0.2:7001"}
    assert settings(tmp_path, flags=flags).config.advertise == "10.0.0.1:7001"


def test_every_field_of_a_node_can_be_set_and_is_documented() -> None:
    assert {setting.field for setting in SETTINGS} == {field.name for field in fields(NodeConfig)} | {
        "log_format",
        "log_level",
    }
    operations = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    documented = set(re.findall(r"^\| `--([a-z-]+)", operations, re.MULTILINE))
    assert documented - {"config"} == {setting.name for setting in SETTINGS}
