"""Tests with sockets run on both loops, and leave nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from tests.transport.conftest import nothing_left_behind

__all__ = ["nothing_left_behind"]
WITH_SOCKETS = ("test_driver", "test_push_pull")


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.path.stem in WITH_SOCKETS:
        factories["uvloop"] = uvloop.new_event_loop
    return factories
