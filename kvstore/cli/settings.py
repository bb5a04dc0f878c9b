"""Where a node's configuration comes from: flags, then KVSTORE_* variables, then the --config file, then defaults.

`SETTINGS` is the one table: the flags of `kvstore serve`, the variables, the keys of the file and the table in
docs/operations.md are made from it or checked against it.

Invariant: `resolve` gives a valid NodeConfig or raises StartRefused with one line that names the source of the mistake.
Unknown KVSTORE_* variables are left alone: Kubernetes sets some (KVSTORE_PORT, ...) for a service named kvstore.
"""

from __future__ import annotations

import difflib
import ipaddress
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvstore.base.config import NodeConfig, ReadMode, split_address
from kvstore.base.errors import StartRefused

SECRET_BYTES_MIN = 16  # a shorter secret could be guessed offline from one recorded hello
LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """All that `kvstore serve` needs to run."""

    config: NodeConfig
    log_format: str
    log_level: str
    secret_file: Path | None = None  # to be read again when the secret is changed


def _text(raw: Any) -> str:
    if not isinstance(raw, str) or not raw:
        raise ValueError("needs a text that is not empty")
    return raw


def _path(raw: Any) -> Path:
    return Path(_text(raw)).expanduser()


def _number(raw: Any) -> int:
    try:
        if not isinstance(raw, bool | float):
            return int(raw)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{raw!r} is not a whole number")


def _switch(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(f"{raw!r} is neither true nor false")


def _names(raw: Any) -> dict[str, str]:
    """`a=x,b=y`, or a table of texts in the file."""
    if isinstance(raw, dict):
        if not all(isinstance(value, str) for value in raw.values()):
            raise ValueError("needs texts as values")
        return dict(raw)
    pairs: dict[str, str] = {}
    for part in filter(None, str(raw).split(",")):
        name, sign, value = part.strip().partition("=")
        if not sign or not name or not value:
            raise ValueError(f"{part!r} is not NAME=VALUE")
        if name in pairs:
            raise ValueError(f"{name!r} is given twice")
        pairs[name] = value
    return pairs


def _addresses(raw: Any) -> tuple[str, ...]:
    parts = raw if isinstance(raw, list) else str(raw).split(",")
    return tuple(str(part).strip() for part in parts if str(part).strip())


def _choice(*allowed: str) -> Callable[[Any], str]:
    def parse(raw: Any) -> str:
        if raw not in allowed:
            raise ValueError(f"{raw!r} is not one of {', '.join(allowed)}")
        return str(raw)

    return parse


def _read_mode(raw: Any) -> ReadMode:
    return ReadMode(_choice(*ReadMode)(raw))


def read_secrets(path: Path) -> tuple[bytes, ...]:
    """One secret, or two in two lines while it is changed. Raises ValueError."""
    try:
        lines = [line.strip() for line in path.read_bytes().split(b"\n")]
    except OSError as error:
        raise ValueError(f"can't read {path}: {error.strerror}") from None
    secrets = tuple(line for line in lines if line) or (b"",)
    if len(secrets) > 2:
        raise ValueError(f"{path} has {len(secrets)} lines: it holds one secret, or the new and the old one")
    shortest = min(map(len, secrets))
    if shortest < SECRET_BYTES_MIN:
        raise ValueError(
            f"{path} holds a secret of {shortest} bytes, which needs {SECRET_BYTES_MIN} or more "
            "(make one: head -c 32 /dev/urandom | base64 > FILE)"
        )
    return secrets


@dataclass(frozen=True, slots=True)
class Setting:
    """`name` is the flag without its dashes and, with dashes or underscores, the key in the file."""

    name: str
    field: str  # of NodeConfig, or of ServeSettings for the log's two
    parse: Callable[[Any], Any]
    metavar: str
    help: str

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        return "KVSTORE_" + self.name.upper().replace("-", "_")


SETTINGS = (
    Setting("name", "name", _text, "NAME", "This node's name, unique in the cluster."),
    Setting("data", "data", _path, "DIR", "Where it keeps everything; made if missing."),
    Setting("listen", "listen", _text, "HOST:PORT", "Address of REST, stream, peers and metrics. [127.0.0.1:7001]"),
    Setting("advertise", "advertise", _text, "HOST:PORT", "The address that others reach it by. [what --listen says]"),
    Setting("initial-cluster", "initial_cluster", _names, "n1=HOST:PORT,...",
            "The founding nodes, the same list on each. Only an empty data directory looks at it."),
    Setting("join", "join", _addresses, "HOST:PORT,...", "Any members of the cluster to join (for every later node)."),
    Setting("labels", "labels", _names, "zone=a,host=b", "Where the node stands, for the spread of replicas."),
    Setting("cluster-secret-file", "cluster_secrets", lambda raw: read_secrets(_path(raw)), "FILE",
            "Holds the secret that all nodes share, or two lines while it is changed. Needed beyond loopback."),
    Setting("insecure", "insecure", _switch, "",
            "Listen beyond loopback without a secret; anyone there may do anything."),
    Setting("read-mode", "read_mode", _read_mode, "index|lease",
            "How reads are made linearizable: asking a quorum, or trusting a lease and thus the clocks' rate. [index]"),
    Setting("max-value-bytes", "value_bytes_max", _number, "BYTES", "The largest value that is taken. [1048576]"),
    Setting("tick-ms", "tick_ms", _number, "MS", "Raft's unit of time. [50]"),
    Setting("heartbeat-ms", "heartbeat_ms", _number, "MS", "How often a leader shows itself. [100]"),
    Setting("election-ms", "election_ms", _number, "MS",
            "The shortest election timeout; the longest is twice it. [1000]"),
    Setting("flush-interval-ms", "flush_interval_ms", _number, "MS", "How often applied data goes to the disk. [5000]"),
    Setting("map-bytes", "map_bytes", _number, "BYTES", "Address space for each database file (sparse). [256 GiB]"),
    Setting("reserve-bytes", "reserve_bytes", _number, "BYTES",
            "Disk space kept for compaction when the disk is full; 0 = none. [256 MiB]"),
    Setting("start-timeout-ms", "start_timeout_ms", _number, "MS", "When founding or joining gives up. [60000]"),
    Setting("gossip-ms", "gossip_ms", _number, "MS",
            "How often a node looks after another one; other times of gossip follow. [1000]"),
    Setting("log-format", "log_format", _choice(*LOG_FORMATS), "text|json", "Form of the log lines on stderr. [text]"),
    Setting("log-level", "log_level", _choice(*LOG_LEVELS), "LEVEL", "debug, info, warning or error. [info]"),
)  # fmt: skip
_BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in SETTINGS}


def read_file(path: Path) -> dict[str, Any]:
    """The settings of a TOML file, by setting name. Raises StartRefused."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartRefused(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartRefused(f"--config {path}: not TOML: {error}") from None
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("_", "-")
        if name not in _BY_NAME:
            close = difflib.get_close_matches(name, _BY_NAME, n=1)
            guess = f"; did you mean {close[0]!r}?" if close else ""
            raise StartRefused(f"--config {path}: unknown key {key!r}{guess}")
        values[name] = value
    return values


def resolve(*, flags: Mapping[str, Any], variables: Mapping[str, str], config_file: Path | None) -> ServeSettings:
    """What the three sources say together. `flags` are by setting name, None = not given. Raises StartRefused."""
    if config_file is None and variables.get("KVSTORE_CONFIG"):
        config_file = Path(variables["KVSTORE_CONFIG"])
    from_file = read_file(config_file) if config_file else {}
    chosen: dict[str, Any] = {}
    secret_file: Path | None = None
    for setting in SETTINGS:
        if flags.get(setting.name) is not None:
            raw, source = flags[setting.name], setting.flag
        elif setting.variable in variables:
            raw, source = variables[setting.variable], setting.variable
        elif setting.name in from_file:
            raw, source = from_file[setting.name], f"{setting.name} in {config_file}"
        else:
            continue
        try:
            chosen[setting.field] = setting.parse(raw)
        except ValueError as error:
            raise StartRefused(f"{source}: {error}") from None
        if setting.field == "cluster_secrets":
            secret_file = _path(raw)
    for name in ("name", "data"):
        if name not in chosen:
            raise StartRefused(f"--{name} is missing (or KVSTORE_{name.upper()}, or {name} in the --config file)")
    log_format, log_level = chosen.pop("log_format", "text"), chosen.pop("log_level", "info")
    _fill_advertise(chosen)
    config = NodeConfig(**chosen)
    _refuse_open_door(config)
    return ServeSettings(config=config, log_format=log_format, log_level=log_level, secret_file=secret_file)


def _fill_advertise(chosen: dict[str, Any]) -> None:
    """A node that listens everywhere has no address in --listen; the founders' list may name it."""
    host, _ = split_address(chosen.get("listen", NodeConfig.__dataclass_fields__["listen"].default))
    if host not in ("0.0.0.0", "::") or "advertise" in chosen:
        return
    own = chosen.get("initial_cluster", {}).get(chosen["name"])
    if own is None:
        raise StartRefused(f"--advertise is missing: others can't reach a node at {host}")
    chosen["advertise"] = own


def is_loopback(host: str) -> bool:
    """Names other than localhost count as foreign: what they resolve to may change."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_open_door(config: NodeConfig) -> None:
    if config.cluster_secrets or config.insecure:
        return
    host, _ = split_address(config.listen)
    if not is_loopback(host):
        raise StartRefused(
            f"--listen {config.listen} is open to the network: give --cluster-secret-file FILE (the same on all "
            "nodes), or --insecure to do without"
        )
