# One image for all six services:  docker build -t ratestream .  &&  docker run ratestream --help
# Nothing in it is for one processor only: it builds for amd64 and arm64 alike.

FROM debian:13.8-slim AS python
# Debian's mirrors keep only the newest build of a package, so a version written here would soon
# not be found; which release they come from is pinned by the base image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/*


FROM python AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/ratestream
WORKDIR /ratestream
COPY requirements-build.lock requirements-image.lock ./
RUN /build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: \
        --requirement requirements-build.lock \
    && /build/bin/pip --python /opt/ratestream/bin/python install --no-cache-dir \
        --require-hashes --only-binary :all: --requirement requirements-image.lock
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /build/bin/pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /dist . \
    && /build/bin/pip --python /opt/ratestream/bin/python install --no-cache-dir --no-index \
        --no-deps /dist/*.whl


FROM python
LABEL org.opencontainers.image.title="ratestream" \
      org.opencontainers.image.description="Exchange rates as a stream: exact rolling averages and history, on HTTP." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/ratestream \
        --shell /usr/sbin/nologin ratestream \
    && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/ratestream \
    && find / -xdev -perm /6000 -type f -exec chmod a-s {} +
COPY --from=build /opt/ratestream /opt/ratestream
# Inside a container every service has an address of its own, so all of them listen on one port.
ENV PATH=/opt/ratestream/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    RATESTREAM_DATA_DIR=/var/lib/ratestream \
    RATESTREAM_DEMO_SERVER__HOST=0.0.0.0 RATESTREAM_DEMO_SERVER__PORT=8000 \
    RATESTREAM_DATA_REQUESTER__HOST=0.0.0.0 RATESTREAM_DATA_REQUESTER__PORT=8000 \
    RATESTREAM_DATA_PROCESSOR__HOST=0.0.0.0 RATESTREAM_DATA_PROCESSOR__PORT=8000 \
    RATESTREAM_DATA_AGGREGATOR__HOST=0.0.0.0 RATESTREAM_DATA_AGGREGATOR__PORT=8000 \
    RATESTREAM_DB_LOADER__HOST=0.0.0.0 RATESTREAM_DB_LOADER__PORT=8000 \
    RATESTREAM_API_GATEWAY__HOST=0.0.0.0 RATESTREAM_API_GATEWAY__PORT=8000
WORKDIR /var/lib/ratestream
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "ratestream.healthcheck", "8000"]
ENTRYPOINT ["ratestream"]
