"""Breaks code on purpose: a fragment of one function's source is replaced, for as long as a context lasts.

A patch at the level of the source can break exactly one condition and leave the rest of the function as it is, which
wrapping it cannot.

Invariant: a fragment that is not there exactly once fails loudly: the code has moved on and the mutation must follow.
Invariant: at the end of the context everything is as it was; the change is seen by this process only.
"""

from __future__ import annotations

import importlib
import inspect
import linecache
import sys
import textwrap
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FunctionType, ModuleType


class StalePatch(Exception):
    """The code does not look any more as the patch expects."""


@dataclass(frozen=True, slots=True)
class Edit:
    where: str  # "package.module:function" or "package.module:Class.method"
    old: str
    new: str

    @contextmanager
    def applied(self) -> Iterator[None]:
        module_name, _, path = self.where.partition(":")
        module = importlib.import_module(module_name)
        owner: object = module
        *classes, name = path.split(".")
        for class_name in classes:
            owner = getattr(owner, class_name)
        original = inspect.getattr_static(owner, name)
        function = original.fget if isinstance(original, property) else original
        assert isinstance(function, FunctionType)
        patched = self._compiled(function, module)
        replacement = property(patched) if isinstance(original, property) else patched
        # Others may have imported the function by its name.
        holders = [(owner, name)] if classes else _holders(original)
        for holder, known_as in holders:
            setattr(holder, known_as, replacement)
        try:
            yield
        finally:
            for holder, known_as in holders:
                setattr(holder, known_as, original)

    def _compiled(self, function: FunctionType, module: ModuleType) -> FunctionType:
        source = textwrap.dedent(inspect.getsource(function))
        if source.startswith("@property\n"):
            source = source.removeprefix("@property\n")
        if source.count(self.old) != 1:
            raise StalePatch(f"{self.where}: {self.old!r} is there {source.count(self.old)} times, not once")
        broken = source.replace(self.old, self.new)
        file_name = f"<broken {self.where} {zlib.crc32(broken.encode()):x}>"
        # So that another edit of the same function, and a traceback, find the source.
        linecache.cache[file_name] = (len(broken), None, broken.splitlines(keepends=True), file_name)
        code = compile(broken, file_name, "exec", annotations.compiler_flag)
        names: dict[str, FunctionType] = {}
        exec(code, module.__dict__, names)
        return names[function.__name__]


def _holders(original: object) -> list[tuple[object, str]]:
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in ("raft", "tests")]
    return [(module, name) for module in modules for name, value in list(vars(module).items()) if value is original]


@contextmanager
def all_applied(edits: tuple[Edit, ...]) -> Iterator[None]:
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit.applied())
        yield
