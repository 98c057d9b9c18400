# syntax=docker/dockerfile:1
# Experiments in a container, on a CPU or on an NVIDIA GPU:
#
#   docker build --target cpu --tag vae_research:cpu .
#   mkdir -p runs
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD/runs:/research/runs" \
#       vae_research:cpu experiments/vae_mnist.py --epochs=3
#
#   docker build --target gpu --tag vae_research:gpu .
#   docker run --rm --gpus all ...
#
# The target gpu needs a driver and the NVIDIA Container Toolkit on the host. The CUDA libraries are
# those that TensorFlow installs, so that both targets have the same base.

FROM python:3.11-slim AS base
ENV HOME=/tmp \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 \
    TF_CPP_MIN_LOG_LEVEL=3
WORKDIR /research
COPY . .
RUN mkdir --mode=777 runs
# An experiment of your own: --volume "$PWD/mine.py:/research/mine.py", then mine.py and its flags.
ENTRYPOINT ["python"]
CMD ["experiments/vae_mnist.py", "--help"]

FROM base AS gpu
# The package is in this folder, and setup.cfg has the versions of what it needs.
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/tmp/.cache/pip pip install ".[figures,gpu]"
USER 1000:1000

# Last, so that it is what `docker build` makes without --target.
FROM base AS cpu
# The package is in this folder, and setup.cfg has the versions of what it needs.
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/tmp/.cache/pip pip install ".[figures]"
USER 1000:1000
