"""Where log lines go."""

from __future__ import annotations

import logging


def log_to_stderr(level: str, who: str = "") -> None:
    """Send the log of this process to stderr, from `level` on; `who` begins the text of a line."""
    # It warns of every malformed form, which is the client's fault and told to the client.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.basicConfig(
        level=level.upper(), format=f"%(asctime)s %(levelname)s {who}%(name)s: %(message)s"
    )
