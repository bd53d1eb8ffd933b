# The service without training: numpy, onnxruntime, faiss, pyarrow and the extra [http].
#   docker build -t bascule .
#   docker run --user "$(id -u)" -p 127.0.0.1:8080:8080 -v "$PWD/runs/demo:/run/bascule" bascule
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY datamodules datamodules
COPY evaluation evaluation
COPY models models
COPY serve serve
COPY pipeline pipeline
RUN python -m venv /opt/bascule && /opt/bascule/bin/pip install --no-cache-dir ".[http]"

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 bascule
COPY --from=build /opt/bascule /opt/bascule
USER bascule
WORKDIR /home/bascule
ENV PATH=/opt/bascule/bin:$PATH OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/ready', timeout=2)"]
# the folder must be writable for whoever runs it, user 10001 by default: the state lies in it
ENTRYPOINT ["python", "-m", "serve", "http", "--host", "0.0.0.0"]
CMD ["--bundle", "/run/bascule/bundle"]
