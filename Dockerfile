# selfaug with every verb, on a CPU (the default) or a GPU:
#   docker build -t selfaug .
#   docker build -t selfaug:cuda --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 --build-arg TORCH=cu128 .
#   docker run --rm selfaug demo --output_dir /tmp/demo
#   docker run --rm --gpus all -v "$PWD:/work" selfaug:cuda train --config settings.yaml
ARG BASE=ubuntu:24.04
FROM ${BASE}
# The name of PyTorch's index for the build that fits the base: cpu, cu128, ...
ARG TORCH=cpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/selfaug/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN python3 -m venv /opt/selfaug \
    && pip install --index-url "https://download.pytorch.org/whl/${TORCH}" "$(grep -E '^torch==' constraints.txt)" \
    && pip install --constraint constraints.txt '.[all]'
RUN useradd --create-home --uid 1001 user && mkdir /work && chown user /work
USER 1001
WORKDIR /work
ENTRYPOINT ["selfaug"]
CMD ["--help"]
