"""Another bundle in the place of the one that is served: no request is lost."""

from __future__ import annotations

import asyncio
import gc
import re
import shutil
import signal
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import State

from service.reload import reload
from service.repository import open_model
from service.server import DrainingServer, configure
from service.settings import Settings
from tests.service import tiny
from tests.service.conftest import Client, Start
from tests.service.running import server
from tests.service.test_workers import Caller
from tests.waiting import eventually, until

pytestmark = pytest.mark.anyio

SERVED = r'gate_bundle_info\{.*version="([^"]+)"\} ([\d.]+)'


@pytest.fixture
def family(bundle_path: Path, tmp_path: Path) -> Path:
    """A directory of versions, with the first of them."""
    shutil.copytree(bundle_path, tmp_path / "family" / "1")
    return tmp_path / "family"


@pytest.fixture
def add(family: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Add a version to the family."""

    def make(version: str) -> Path:
        made = tiny.publish(tmp_path / f"made-{version}" / version)
        return made.rename(family / version)

    return make


@pytest.fixture
async def served(start: Start, settings: Settings, family: Path) -> AsyncIterator[Client]:
    """A client of a service of the family, which the application opened itself."""
    chosen = settings.model_copy(update={"bundle": family})
    async with start(open_model(chosen), bundle=family) as client:
        yield client


async def version(client: httpx.AsyncClient, png: bytes) -> str:
    response = await client.post("/predict", content=png)
    assert response.status_code == 200, response.text
    return str(response.json()["model"]["version"])


async def test_a_new_version_answers_and_the_old_one_is_let_go(served, add, png):
    state = served.app.state
    old = weakref.ref(state.gate.model), weakref.ref(state.gate.model.runtime)
    assert await version(served, png) == "1"
    add("2")
    await reload(state, state.gate.settings)
    assert await version(served, png) == "2"
    told = re.findall(SERVED, (await served.get("/metrics")).text)
    assert dict(told) == {"1": "0.0", "2": "1.0"}
    gc.collect()
    assert [each() for each in old] == [None, None]


async def test_no_request_is_lost_under_load(served, add, png):
    state, versions, done = served.app.state, [], asyncio.Event()

    async def ask() -> None:
        while not done.is_set():
            versions.append(await version(served, png))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(ask())
        for each in ("2", "10"):
            await asyncio.sleep(0.05)
            add(each)
            await reload(state, state.gate.settings)
        await asyncio.sleep(0.05)
        done.set()
    assert list(dict.fromkeys(versions)) == ["1", "2", "10"]


async def test_what_has_begun_is_answered_by_the_old_one(served, add, png):
    state, arrived = served.app.state, asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield png[:20]
        await arrived.wait()
        yield png[20:]

    old = state.gate
    slow = asyncio.create_task(served.post("/predict", content=body()))
    await until(lambda: old.door.visitors == 1)
    add("2")
    reloading = asyncio.create_task(reload(state, old.settings))
    await until(lambda: state.gate is not old)
    assert await version(served, png) == "2"
    assert not reloading.done()
    assert old.scheduler.alive
    arrived.set()
    assert (await slow).json()["model"]["version"] == "1"
    await reloading
    assert not old.scheduler.alive


@pytest.mark.parametrize("fault", ["damaged", "unverified", "without the policy"])
async def test_a_bundle_that_must_not_serve_changes_nothing(
    served, add, png, caplog, monkeypatch, fault
):
    state, old = served.app.state, served.app.state.gate
    new, settings = add("2"), old.settings
    if fault == "damaged":
        (new / "golden.npz").write_bytes(b"")
    elif fault == "unverified":
        shutil.rmtree(new)
        tiny.publish(new.parent.parent / "bad" / "2", passed=False).rename(new)
    else:
        settings = settings.model_copy(update={"policy": "none"})
    await reload(state, settings)
    assert state.gate is old
    assert await version(served, png) == "1"
    assert "what was served is served on" in caplog.text


async def test_the_same_bundle_is_not_opened_in_its_own_place(served, png, caplog):
    state, old = served.app.state, served.app.state.gate
    caplog.set_level("INFO")
    await reload(state, old.settings)
    assert state.gate is old
    assert "is served already" in caplog.text


async def test_answers_of_the_cache_are_those_of_the_bundle(start, settings, family, add, png):
    chosen = settings.model_copy(update={"bundle": family})
    async with start(open_model(chosen), bundle=family, cache_images=8) as client:
        state = client.app.state
        assert await version(client, png) == await version(client, png) == "1"
        add("2")
        await reload(state, state.gate.settings)
        assert await version(client, png) == "2"
        assert len(state.gate.cache) == 1


async def test_what_is_asked_meanwhile_is_done_afterwards(served, monkeypatch):
    began, ends = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def reload(state: State, settings: Settings) -> None:
        assert state is served.app.state
        began.release()
        await ends.acquire()

    monkeypatch.setattr("service.server.reload", reload)
    served_by = DrainingServer(configure(served.app, Settings()), 0, print)
    served_by.reload()
    await served_by.on_tick(1)
    await began.acquire()
    for _ in range(3):
        served_by.reload()
        await served_by.on_tick(1)
    await asyncio.sleep(0)
    assert began.locked()
    ends.release()
    while began.locked():
        await served_by.on_tick(1)
        await asyncio.sleep(0.001)
    ends.release()
    await served_by.on_tick(1)
    await asyncio.sleep(0)
    await served_by.on_tick(1)
    await asyncio.sleep(0)
    assert began._value == 1, "three orders at once are one"


if sys.platform != "win32":

    def test_sighup_reloads_the_process(family, add, png):
        with server(family) as running:
            caller = Caller(running.url, png)
            assert versions(caller) == {"1"}
            add("2")
            running.process.send_signal(signal.SIGHUP)
            running.wait_for_line("has answered its last request")
            assert versions(caller) == {"2"}
            running.process.send_signal(signal.SIGTERM)
            assert running.finish() == 0

    def test_sighup_reloads_every_worker_and_loses_no_request(family, add, png):
        with server(family, "--workers", "2", "--drain-seconds", "0") as running:
            caller, stop = Caller(running.url, png), threading.Event()
            failures: list[BaseException] = []

            def ask() -> None:
                with httpx.Client(base_url=running.url, timeout=30) as client:
                    while not stop.is_set():
                        try:
                            assert client.post("/predict", content=png).status_code == 200
                        except BaseException as error:
                            failures.append(error)
                            return

            asking = [threading.Thread(target=ask) for _ in range(4)]
            for thread in asking:
                thread.start()
            add("2")
            running.process.send_signal(signal.SIGHUP)
            try:
                eventually(lambda: versions(caller) == {"2"})
            finally:
                stop.set()
                for thread in asking:
                    thread.join()
            assert not failures
            running.process.send_signal(signal.SIGTERM)
            assert running.finish() == 0


def versions(caller: Caller) -> set[str]:
    """Of the bundles that answered 20 requests, each a connection of its own."""
    answers = [caller.client.post("/predict", content=caller.image) for _ in range(20)]
    return {answer.json()["model"]["version"] for answer in answers}
