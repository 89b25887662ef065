# The KVFlow service.  Built in the checkout: docker build -f docker/service.Dockerfile .
FROM python:3.12.12-slim-bookworm AS build
COPY . /src
# The same versions as in a checkout; those of the engine that the service does not need stay out.
ENV PIP_CONSTRAINT="/src/requirements/engine-cpu.txt /src/requirements/dev.txt" \
    PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/kvflow \
    && /opt/kvflow/bin/pip install "/src[cli,mqtt,otel,server,valkey]"

FROM python:3.12.12-slim-bookworm
RUN useradd --uid 10001 --create-home kvflow \
    && install -d -o kvflow -g kvflow /var/lib/kvflow
COPY --from=build /opt/kvflow /opt/kvflow
ENV PATH=/opt/kvflow/bin:$PATH PYTHONUNBUFFERED=1 \
    KVFLOW_HOST=0.0.0.0 KVFLOW_PORT=8100
USER 10001
EXPOSE 8100
VOLUME /var/lib/kvflow
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=5 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8100/ready', timeout=2)"]
CMD ["kvflow", "serve"]
