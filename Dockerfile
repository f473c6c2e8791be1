# One image for web, API and worker. Two stages: packages are built once and stay cached while only the code changes.
FROM python:3.11-slim-bookworm AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /philab
COPY requirements.lock ./
# The CPU build of torch; for CUDA: docker build --build-arg TORCH_INDEX=https://pypi.org/simple .
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple "$(grep '^torch==' requirements.lock)" \
 && /opt/venv/bin/pip install -r requirements.lock

FROM python:3.11-slim-bookworm
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/philab PYTHONUNBUFFERED=1 PHILAB_DATA=/data PHILAB_CONFIG=/data/config HF_HOME=/data/huggingface
RUN useradd --create-home --uid 10001 philab && install -d -o philab -g philab /data /philab
COPY --from=packages /opt/venv /opt/venv
WORKDIR /philab
COPY --chown=philab:philab . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .
USER philab
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
  CMD python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/api/health', timeout=4)"
CMD ["philab", "app", "--host", "0.0.0.0", "--port", "8000"]
