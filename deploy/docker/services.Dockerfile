# The image of every service, of the emulated agents and of nats-server. From the root of the repository:
#   docker build -f deploy/docker/services.Dockerfile -t hexagent-services:local .
# BASE is any image with Python 3.11 or 3.12, venv and CA certificates. Behind a private package mirror, the build
# arguments PIP_INDEX_URL and PIP_CERT mean what pip's variables of that name mean.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE} AS build
ARG PIP_INDEX_URL
ARG PIP_CERT
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

# The lock before the sources, so that a change of code does not fetch the packages again. Every file is checked
# against its hash here; what is installed below comes from this folder only.
WORKDIR /build
COPY requirements.lock ./
RUN python3 -m venv tools && tools/bin/pip download --quiet --require-hashes -r requirements.lock -d wheels

COPY pyproject.toml README.md LICENSE NOTICE ./
COPY libs libs
COPY services services
RUN tools/bin/pip install --quiet --no-index --find-links wheels hatchling \
    && tools/bin/python -m hatchling build --target wheel --directory project

# The lock also pins the tools of development. Resolving against nothing but the locked files installs the few that the
# services need, each in its locked version.
RUN python3 -m venv /opt/hexagent \
    && /opt/hexagent/bin/pip install --quiet --no-index --find-links wheels project/*.whl \
    && /opt/hexagent/bin/python -m compileall -q /opt/hexagent/lib \
    && /opt/hexagent/bin/pip uninstall --quiet --yes pip setuptools

# hadolint ignore=DL3006
FROM ${BASE}
# A fixed number, so that volumes and a cluster's security rules can name it.
RUN groupadd --gid 10001 hexagent \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/hexagent --shell /usr/sbin/nologin hexagent \
    && install --directory --owner 10001 --group 10001 /var/lib/hexagent /var/lib/nats
COPY --from=build /opt/hexagent /opt/hexagent
COPY LICENSE NOTICE /usr/share/doc/hexagent/
ENV PATH=/opt/hexagent/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HEXAGENT_DATA_DIR=/var/lib/hexagent \
    HEXAGENT_LISTEN_HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/hexagent

# The module follows: hexagent_services.scheduler, hexagent_services.worker_agent, hexagent.runtime.publish_cluster...
ENTRYPOINT ["/opt/hexagent/bin/python", "-m"]
CMD ["hexagent_services.dag_tracker"]
