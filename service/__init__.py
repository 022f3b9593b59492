"""The online half: a bundle, served over REST on a CPU or a GPU.

`service.app.create_app` builds the application, `python -m service` runs it. Nothing is imported
here, so that the health check of a container starts quickly.
"""

import os

# onnxruntime sends telemetry by default; it looks at this when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
