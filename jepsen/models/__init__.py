"""The objects whose histories can be judged, by name, and which one a history seems to be of.

A new model: subclass jepsen.model.Model with `initial` and `step`, and add it to MODELS. docs/testing.md shows one.
"""

from __future__ import annotations

from collections.abc import Callable

from jepsen.history import History, Value
from jepsen.model import Model
from jepsen.models.append import AppendStore
from jepsen.models.collections import CounterModel, QueueModel, SetModel
from jepsen.models.lock import Lock, MultiRegister
from jepsen.models.register import Register

MODELS: dict[str, Callable[[Value], Model]] = {
    "register": Register,
    "kv-append": lambda _: AppendStore(),
    "set": lambda _: SetModel(),
    "counter": CounterModel,
    "queue": lambda _: QueueModel(),
    "lock": lambda _: Lock(),
    "multi-register": MultiRegister,
}
"""Name -> a model from its initial value (None: the model's own)."""
ALIASES = {"cas-register": "register", "mutex": "lock", "append": "kv-append"}


def model_named(name: str, initial: Value = None) -> Model:
    """Raises KeyError for a name that is none."""
    return MODELS[ALIASES.get(name, name)](initial)


def guess(history: History) -> str:
    """The model that knows all functions of the history; where a set and a counter both do, the answers decide."""
    used = history.functions()
    if used <= {"read", "add"} and "add" in used:
        reads = [one.output for one in history.operations if one.f == "read" and one.known and not one.silent]
        return "counter" if reads and all(isinstance(output, int) for output in reads) else "set"
    for name in MODELS:
        if used <= MODELS[name](None).functions:
            return name
    raise ValueError(f"no model knows all of {', '.join(sorted(used))}; name one with --model")
