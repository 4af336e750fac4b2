# Core and every plugin with the tested versions, and torch for CUDA. Build it in the root of a clone:
#   docker build -f docker/cuda.Dockerfile -t smollm3:cuda .
# The host has the NVIDIA driver and its container toolkit: docker run --gpus all smollm3:cuda doctor
FROM python:3.11-slim-bookworm

# The wheels of torch bring the libraries of CUDA; the driver comes from the host. hqq is built without its own kernels.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 DISABLE_CUDA=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# A compiler, for triton, gptqmodel's kernels and torch.compile. Its version is that of the Debian release in the base
# image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# What changes seldom comes first: the packages of others are a layer of their own.
COPY constraints.txt /src/
RUN pip install -c /src/constraints.txt torch transformers datasets
COPY . /src
# A trailing slash selects folders only: plugins/ has a README too.
RUN pip install -c /src/constraints.txt /src /src/plugins/*/ \
    && rm -rf /src

RUN useradd --create-home --uid 1000 smollm3
USER 1000
WORKDIR /home/smollm3
ENTRYPOINT ["smollm3"]
CMD ["train"]
