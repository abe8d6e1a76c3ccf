# docker build -t featkd .                                   CUDA: torch from PyPI brings its own CUDA libraries
# docker build -t featkd --build-arg ACCELERATOR=cpu .       CPU: a torch without them, several GB smaller
# mkdir -p work; docker run --rm -v "$PWD/work:/work" featkd    the default PoC, on your work folder (--gpus all for CUDA)
FROM python:3.12-slim-bookworm

ARG ACCELERATOR=cuda
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 featkd \
    && mkdir /app /work \
    && chown featkd:featkd /app /work
USER featkd
WORKDIR /app

COPY --chown=featkd:featkd . .

# The pin is torch==2.13.0, which the local version 2.13.0+cpu of that index satisfies and is preferred over.
RUN case "$ACCELERATOR" in \
        cuda) options= ;; \
        cpu) options="--extra-index-url $TORCH_CPU_INDEX" ;; \
        *) echo "ACCELERATOR: $ACCELERATOR must be cuda or cpu" >&2; exit 2 ;; \
    esac \
    && make .venv/.installed PIP_OPTIONS="--no-cache-dir $options"

ENV PATH=/app/.venv/bin:$PATH
WORKDIR /work
ENTRYPOINT ["featkd"]
CMD ["run", "/app/flows/specs/default.yaml"]
