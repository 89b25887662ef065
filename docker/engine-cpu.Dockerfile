# SGLang with the KVFlow plugin on a machine without a GPU: what `make install` builds, in an image.
# Built in the checkout: docker build -f docker/engine-cpu.Dockerfile .
FROM python:3.12.12-slim-bookworm AS build
WORKDIR /opt/kvflow
COPY . .
RUN KVFLOW_CACHE_DIR=/tmp/cache python requirements/install.py --device cpu

FROM python:3.12.12-slim-bookworm
RUN useradd --uid 10001 --create-home kvflow \
    && install -d -o kvflow -g kvflow /var/cache/kvflow
COPY --from=build /opt/kvflow /opt/kvflow
ENV PATH=/opt/kvflow/.venv/bin:$PATH PYTHONUNBUFFERED=1 KVFLOW_CACHE_DIR=/var/cache/kvflow
USER 10001
WORKDIR /home/kvflow
EXPOSE 30000
VOLUME /var/cache/kvflow
# The first start converts the small model, which takes about a minute.
HEALTHCHECK --interval=5s --timeout=5s --start-period=300s --retries=5 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:30000/health', timeout=4)"]
CMD ["kvflow", "engine", "--device", "cpu", "--host", "0.0.0.0", "--port", "30000"]
