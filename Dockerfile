# One image for workers and for every command: `python -m app COMMAND`, a worker by default.
#
# It holds no map. Mount one at /etc/treasure-map/map.toml, or set TREASURE_MAP_MAP_FILE.

FROM python:3.11.14-slim-bookworm AS build
WORKDIR /build
RUN python -m venv /opt/treasure-map
COPY requirements.lock ./
# The lock names every package a worker needs, so pip resolves nothing; packages below its second
# heading are for tests. All of them come as wheels: this image has no compiler.
RUN sed '/^# Only/,$d' requirements.lock > worker.lock \
    && /opt/treasure-map/bin/python -m pip install --no-cache-dir --no-deps \
       --require-hashes --only-binary :all: --requirement worker.lock
COPY pyproject.toml README.md LICENSE ./
COPY tables tables
COPY agents agents
COPY app app
COPY treasure_map treasure_map
RUN /opt/treasure-map/bin/python -m pip install --no-cache-dir --no-deps .
COPY deploy/healthcheck.py /opt/treasure-map/healthcheck.py

FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title="treasure-map" \
      org.opencontainers.image.licenses="Apache-2.0"
# A number that nobody else has, and the same in every build: volumes keep their owner. The second
# folder is for maps and certificates, which are mounted there.
RUN groupadd --gid 10001 treasure-map \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/treasure-map \
       --shell /usr/sbin/nologin treasure-map \
    && install --directory --owner=10001 --group=10001 /var/lib/treasure-map \
    && install --directory /etc/treasure-map
COPY --from=build /opt/treasure-map /opt/treasure-map
# No module is taken from the working folder, no bytecode is written beside the code, and lines of
# the log are seen when they are written.
ENV PATH=/opt/treasure-map/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    POLARS_MAX_THREADS=1 \
    TREASURE_MAP_MAP_FILE=/etc/treasure-map/map.toml \
    TREASURE_MAP_STATE_FOLDER=/var/lib/treasure-map/state \
    TREASURE_MAP_ARCHIVE_FOLDER=/var/lib/treasure-map/archive
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /var/lib/treasure-map
VOLUME /var/lib/treasure-map
EXPOSE 6066
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "/opt/treasure-map/healthcheck.py"]
# Exec form: SIGTERM reaches the worker itself, which then lets its partitions go in order.
ENTRYPOINT ["python", "-m", "app"]
CMD ["worker"]
