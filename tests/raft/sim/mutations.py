from __future__ import annotations
from collections.abc import Iterator
from contextlib import contextmanager
class M:
    @contextmanager
    def applied(self) -> Iterator[None]:
        yield
MUTATIONS: dict[str, M] = {}
