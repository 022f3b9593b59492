"""Every option of the service. A flag overrules GATE_*, which overrules the TOML file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from service.errors import SettingsError

ENV_PREFIX = "GATE_"
CONFIG_VARIABLE = "GATE_CONFIG"
EMBEDDED_BUNDLE = Path(__file__).resolve().parent.parent / "models" / "pretrained" / "mnist"


class Settings(BaseSettings):
    """The options, with their defaults and limits."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    bundle: Path = Field(
        EMBEDDED_BUNDLE, description="Bundle to serve; its highest version if it holds versions."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to compute: auto takes a GPU when there is one."
    )
    runtime: Literal["auto", "onnx", "torch"] = Field(
        "auto", description="Engine: auto prefers onnxruntime."
    )
    workers: int = Field(
        1, ge=1, description="Processes that serve the port, each with its own model and limits."
    )
    threads: int = Field(
        0, ge=0, description="CPU threads of a worker's engine; 0 shares out the CPUs there are."
    )
    policy: str = Field("default", description="Policy of a request that names none.")
    allow_unverified: bool = Field(
        False, description="Serve a bundle whose sampler diagnostics did not pass."
    )
    max_batch_images: int = Field(64, ge=1, description="Images in one inference step.")
    max_queue_images: int = Field(
        512, ge=1, description="Images, and requests, that may be under way; beyond it 503."
    )
    max_images_per_request: int = Field(256, ge=1, description="Images in one request.")
    max_body_bytes: int = Field(32 * 2**20, ge=1, description="Bytes of one request's body.")
    max_buffered_bytes: int = Field(
        128 * 2**20, ge=1, description="Bytes of all bodies held at a time; beyond it 503."
    )
    max_pixels: int = Field(25_000_000, ge=1, description="Pixels of one image.")
    cache_images: int = Field(
        0, ge=0, description="Images whose evidence is kept for when they come again; 0 keeps none."
    )
    request_timeout_seconds: float = Field(
        10.0, gt=0, le=3600, description="Time to read a body, and again to answer it."
    )
    drain_seconds: float = Field(
        2.0, ge=0, le=600, description="After SIGTERM: how long /readyz says 503 while serving."
    )
    shutdown_timeout_seconds: float = Field(
        7.0, gt=0, le=600, description="After the drain: how long open requests may take."
    )
    access_log: bool = Field(False, description="Log a line for every request.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )

    @model_validator(mode="after")
    def _limits_do_not_hide_each_other(self) -> Self:
        for smaller, larger in (
            ("max_images_per_request", "max_queue_images"),
            ("max_batch_images", "max_queue_images"),
            ("max_body_bytes", "max_buffered_bytes"),
        ):
            low, high = getattr(self, smaller), getattr(self, larger)
            if low > high:
                raise ValueError(
                    f"{smaller} ({low}) must not exceed {larger} ({high}), or it is never reached"
                )
        return self


def load_settings(flags: Mapping[str, Any] | None = None, config: Path | None = None) -> Settings:
    """Read the settings from `flags`, the environment and the TOML file `config`.

    Without `config` the file that GATE_CONFIG names is read, if it names one.

    Raises:
        SettingsError: an option is unknown or invalid, or the file cannot be read.
    """
    if config is None and (named := os.environ.get(CONFIG_VARIABLE)):
        config = Path(named)
    from_file = _read_file(config) if config is not None else {}

    class Sources(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, from_file)

    try:
        chosen = Sources(**(flags or {}))
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from error
    return Settings(**chosen.model_dump())


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not TOML: {error}") from error
    if unknown := sorted(set(content) - set(Settings.model_fields)):
        known = ", ".join(Settings.model_fields)
        raise SettingsError(f"{path}: unknown option {unknown[0]!r}; known are {known}")
    return content


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    return f"{first['loc'][0]}: {message} (got {first['input']!r})"
