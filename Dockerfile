# Builds the worker: docker build --tag event-replay .
FROM rust:1.95-slim AS rust

# The native encoder is built on the image that it runs on, because it needs the same C library.
FROM python:3.11-slim AS native
COPY --from=rust /usr/local/cargo /usr/local/cargo
COPY --from=rust /usr/local/rustup /usr/local/rustup
ENV CARGO_HOME=/usr/local/cargo \
    PATH=/usr/local/cargo/bin:$PATH \
    RUSTUP_HOME=/usr/local/rustup
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements-native.lock ./
RUN pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r requirements-native.lock
COPY native native
RUN maturin build --release --locked --manifest-path native/Cargo.toml --out /wheels

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/replay
WORKDIR /src
# Wheels only, so this stage needs no compiler.
COPY requirements-runtime.lock ./
RUN /opt/replay/bin/pip install --no-deps --require-hashes --only-binary :all: -r requirements-runtime.lock
COPY LICENSE pyproject.toml ./
COPY replay_app replay_app
COPY --from=native /wheels /wheels
RUN /opt/replay/bin/pip install --no-deps --no-build-isolation . \
    && /opt/replay/bin/pip install --no-deps --no-index /wheels/*.whl \
    && /opt/replay/bin/pip uninstall --yes setuptools pip

FROM python:3.11-slim
# Numbers instead of names, so that Kubernetes can check runAsNonRoot.
RUN groupadd --gid 10001 replay \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin replay \
    && install -d -o replay -g replay /data
COPY --from=build /opt/replay /opt/replay
ENV PATH=/opt/replay/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    REPLAY_DATA_DIR=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
# Without REPLAY_API_TOKEN the HTTP API binds to loopback inside the container.
EXPOSE 6066
# http.client, because urllib would use HTTP_PROXY.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('REPLAY_WEB_PORT', '6066')), timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
# Exec form: the worker is process 1, so it gets SIGTERM, ends its slice and leaves the group.
STOPSIGNAL SIGTERM
ENTRYPOINT ["replay-app"]
CMD ["worker"]
