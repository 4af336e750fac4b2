# Core and every plugin with the tested versions, and torch for CPUs. Build it in the root of a clone:
#   docker build -f docker/cpu.Dockerfile -t smollm3:cpu .
FROM python:3.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 DISABLE_CUDA=1
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# A compiler, for gptqmodel's kernels and torch.compile. Its version is that of the Debian release in the base image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# What changes seldom comes first: the packages of others are a layer of their own.
COPY constraints.txt /src/
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu -c /src/constraints.txt torch transformers datasets
COPY . /src
# A trailing slash selects folders only: plugins/ has a README too.
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu -c /src/constraints.txt /src /src/plugins/*/ \
    && rm -rf /src

RUN useradd --create-home --uid 1000 smollm3
USER 1000
WORKDIR /home/smollm3
ENTRYPOINT ["smollm3"]
CMD ["train"]
