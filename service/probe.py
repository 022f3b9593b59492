"""A health check from outside the process, with nothing but the standard library."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request


def is_ready(url: str, timeout: float) -> tuple[bool, str]:
    """Whether the service at `url` says that it is ready, and what to tell the user.

    Args:
        url: its address, such as http://127.0.0.1:8000.
        timeout: seconds.
    """
    address = url.rstrip("/") + "/readyz"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(address, timeout=timeout):
            return True, "ready"
    except urllib.error.HTTPError as error:
        error.close()
        return False, f"{address}: not ready, status {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        return False, f"{address}: {reason}"
