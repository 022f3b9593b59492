"""The peers: their venvs, their commands, and the settings that are tried."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.servers import ROOT, Server, ServerError, last_line

HERE = Path(__file__).parent
SERVICE = ROOT / "requirements" / "service.lock"
APPS = __package__
INSTALL_SECONDS = 900


@dataclass(frozen=True)
class Setting:
    """Largest batch, and for how long one may wait to fill; BentoML takes its aim for latency."""

    batch: int
    wait_ms: int

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.wait_ms} ms"


@dataclass(frozen=True)
class Peer:
    """A program of its venv with its arguments, and the settings to try."""

    name: str
    command: Sequence[str]
    grid: Sequence[Setting]

    def server(self, setting: Setting, venv: Path, bundle: Path) -> Server:
        program, *arguments = self.command
        environment = {
            "PEER_BUNDLE": str(bundle),
            "PEER_PORT": "{0}",
            "PEER_BATCH": str(setting.batch),
            "PEER_WAIT_MS": str(setting.wait_ms),
            # MLServer reads its own names.
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": "{0}",
            "MLSERVER_GRPC_PORT": "{1}",
            "MLSERVER_METRICS_PORT": "{2}",
            "MLSERVER_DEBUG": "false",
            "MLSERVER_PARALLEL_WORKERS": "0",
            "MLSERVER_MODEL_NAME": "ensemble",
            "MLSERVER_MODEL_IMPLEMENTATION": f"{APPS}.mlserver_app.Predict",
            "MLSERVER_MODEL_MAX_BATCH_SIZE": str(setting.batch),
            "MLSERVER_MODEL_MAX_BATCH_TIME": str(setting.wait_ms / 1000),
        }
        command = [str(venv.absolute() / "bin" / program), *arguments]
        return Server(self.name, command, environment=environment, settings=str(setting))


def _settings(*pairs: tuple[int, int]) -> tuple[Setting, ...]:
    return tuple(Setting(batch, wait) for batch, wait in pairs)


BATCHERS = _settings((32, 1), (64, 1), (16, 1), (64, 5))
PEERS = {
    peer.name: peer
    for peer in (
        Peer("mosec", ("python", "-m", f"{APPS}.mosec_app"), BATCHERS),
        Peer(
            "litserve",
            ("python", "-m", f"{APPS}.litserve_app"),
            _settings((32, 0), (64, 0), (16, 0), (64, 5)),
        ),
        Peer(
            "bentoml",
            ("bentoml", "serve", f"{APPS}.bentoml_app:Predict", "--host", "127.0.0.1", "-p", "{0}"),
            _settings((64, 1000), (32, 1000), (100, 60000), (64, 100)),
        ),
        Peer("mlserver", ("mlserver", "start", "."), BATCHERS),
        Peer("ray", ("python", "-m", f"{APPS}.ray_app"), BATCHERS),
    )
}


OURS = "langevin-gate"


def install(name: str, venvs: Path, python: str) -> Path:
    """The venv of a peer, or of `OURS`, made if its requirements are not those it was made of.

    Args:
        name: a peer's, or `OURS`.
        venvs: the folder of all.
        python: the interpreter of all.

    Raises:
        ServerError: it cannot be made.
    """
    requirements = SERVICE if name == OURS else HERE / f"{name}.txt"
    venv, made_of = venvs.absolute() / name, f"{python}\n{requirements.read_text()}"
    mark = venv / "made-of.txt"
    if mark.exists() and mark.read_text() == made_of:
        return venv
    pip = [str(venv / "bin" / "python"), "-m", "pip"]
    for command in (
        [python, "-m", "venv", "--clear", str(venv)],
        [*pip, "install", "--quiet", "-r", str(requirements)],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ServerError(f"cannot install: {error}") from error
        if done.returncode:
            raise ServerError(f"cannot install: {last_line(done.stderr)}")
    mark.write_text(made_of)
    return venv
