# detkit, for the CPU or a GPU:
#   docker build -t detkit .
#   docker build -t detkit --build-arg TORCH_BACKEND=cu130 .      then: docker run --gpus all --shm-size 4g ...
#   docker run --rm -v "$PWD:/work" detkit fit --config faster_rcnn/laptop --data data/my_photos
FROM python:3.13-slim

# Which build of PyTorch: cpu, or CUDA's version as uv names it (cu126, cu130, ...).
ARG TORCH_BACKEND=cpu

RUN pip install --no-cache-dir uv
WORKDIR /src
COPY pyproject.toml README.md LICENSE CHANGELOG.md requirements.lock ./
COPY detkit detkit
COPY configs configs
# The locked versions, but for CUDA's own libraries: PyTorch brings those of its build.
RUN grep -vE '^(nvidia|cuda|triton)' requirements.lock > constraints.txt \
 && uv pip install --system --no-cache --torch-backend "$TORCH_BACKEND" -c constraints.txt '.[export,timm]'

RUN useradd --create-home user
USER user
WORKDIR /work
ENTRYPOINT ["detkit"]
CMD ["--help"]
