"""The options of a request, and where it goes."""

from __future__ import annotations

from typing import Literal, TypedDict

import httpx

DEFAULT_TIMEOUT = 10.0


class Options(TypedDict, total=False):
    """Options of a request; of those that are None or not there, the choice is the service's.

    Keys:
        timeout: seconds for the whole of it, to the last byte of its answer; by default 10.
        policy: name of the policy that decides.
        alpha: false-alarm rate of the OOD flag, in place of the policy's.
        members: how many members an image is shown to, in place of the policy's.
        background: let the images of others, and your other requests, go first.
        explain: add the probabilities of each member to `Answer.raw`.
        top_k: only the most probable classes, the most probable first.
    """

    timeout: float
    policy: str | None
    alpha: float | None
    members: Literal["all", "exact", "confident"] | None
    background: bool | None
    explain: bool | None
    top_k: int | None


def endpoint(base_url: str) -> httpx.URL:
    """The address of `POST /predict` under `base_url`.

    Raises:
        ValueError: `base_url` is no http or https address.
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{base_url!r} is no address: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{base_url!r} is no http or https address")
    return url.copy_with(path=url.path.rstrip("/") + "/predict")


def with_options(url: httpx.URL, options: Options) -> httpx.URL:
    """The address with the options that the service is told."""
    told = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in options.items()
        if name != "timeout" and value is not None
    }
    return url.copy_merge_params(told) if told else url
