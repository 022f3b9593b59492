ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS base
ENV HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app

FROM base AS build-service
# cpu: ONNX Runtime alone. torch: PyTorch's CPU build beside it. gpu: PyTorch's CUDA build beside it.
ARG RUNTIME=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements/service.lock requirements/torch.lock requirements/torch.txt requirements/
RUN case "$RUNTIME" in \
      cpu) lock=service.lock ;; \
      torch|gpu) lock=torch.lock ;; \
      *) echo "RUNTIME is cpu, torch or gpu, not '$RUNTIME'" >&2; exit 1 ;; \
    esac \
    && if [ "$RUNTIME" = gpu ]; then TORCH_INDEX=; fi \
    && python -m venv /venv \
    && pip install --no-cache-dir --no-deps --require-hashes -r "requirements/$lock" \
    && if [ "$RUNTIME" != cpu ]; then \
         pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements/torch.txt; \
       fi

FROM base AS service
COPY --from=build-service /venv /venv
COPY models/ models/
COPY service/ service/
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-m", "service", "health", "--url", "http://127.0.0.1:8000"]
CMD ["python", "-m", "service", "serve", "--host", "0.0.0.0"]

# The training stages come last: the classic builder builds every stage above its target.
FROM base AS build-training
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements/train.lock requirements/torch.txt requirements/
RUN python -m venv /venv \
    && pip install --no-cache-dir --no-deps --require-hashes -r requirements/train.lock \
    && pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements/torch.txt

FROM base AS training
COPY --from=build-training /venv /venv
COPY models/ models/
COPY training/ training/
USER 10001:10001
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]
