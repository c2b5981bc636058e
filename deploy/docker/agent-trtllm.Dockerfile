# A worker-agent on the TensorRT-LLM release image: the agent in a virtual environment of its own, beside the Python
# that holds tensorrt_llm. The two share no package: the engine wants numpy below 2 and its own protobuf. From the root:
#   docker build -f deploy/docker/agent-trtllm.Dockerfile -t hexagent-agent-trtllm:local .
#
# An agent started from it runs emulated engines unless its file of engines names real ones; the engine host then runs
# in the image's own Python (`python = "/usr/bin/python3"`) and speaks to its agent over a Unix socket.
ARG BASE=nvcr.io/nvidia/tensorrt-llm/release:1.2.1

# Built in the engine's image, so that the environment refers to the Python that is there.
# hadolint ignore=DL3006
FROM ${BASE} AS build
ARG PIP_INDEX_URL
ARG PIP_CERT
# NVIDIA's images pin their own packages for every pip that runs in them.
ENV PIP_CONSTRAINT= PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# The image's user may be anyone.
# hadolint ignore=DL3002
USER 0

WORKDIR /build
COPY requirements.lock ./
# Without pip inside: the Python of Debian and Ubuntu can make such an environment also where python3-venv is missing,
# and the pip of the image installs into it.
RUN python3 -m venv --without-pip tools \
    && python3 -m pip --python tools/bin/python download --quiet --require-hashes -r requirements.lock -d wheels

COPY pyproject.toml README.md LICENSE NOTICE ./
COPY libs libs
COPY services services
RUN python3 -m pip --python tools/bin/python install --quiet --no-index --find-links wheels hatchling \
    && tools/bin/python -m hatchling build --target wheel --directory project

RUN python3 -m venv --without-pip /opt/hexagent \
    && python3 -m pip --python /opt/hexagent/bin/python install --quiet --no-index --find-links wheels project/*.whl \
    && /opt/hexagent/bin/python -m compileall -q /opt/hexagent/lib

# hadolint ignore=DL3006
FROM ${BASE}
# hadolint ignore=DL3002
USER 0
RUN groupadd --gid 10001 hexagent \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/hexagent --shell /usr/sbin/nologin hexagent \
    && install --directory --owner 10001 --group 10001 /var/lib/hexagent
COPY --from=build /opt/hexagent /opt/hexagent
COPY LICENSE NOTICE /usr/share/doc/hexagent/
# PATH stays the image's: `python3` is the engine's Python.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HEXAGENT_DATA_DIR=/var/lib/hexagent \
    HEXAGENT_LISTEN_HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/hexagent

# In place of the image's own entry point, which looks for a GPU first.
ENTRYPOINT ["/opt/hexagent/bin/python", "-m"]
CMD ["hexagent_services.worker_agent"]
