# The service without training: what requirements/lock.txt lists, no torch and no pandas.
# Releases name their base by its digest, which `make image` demands and the label `org.opencontainers.image.base.name` keeps:
#   make image BASE=python:3.11-slim@sha256:...
# At home the tag will do:
#   docker build -t bascule .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --user "$(id -u)" \
#       -p 127.0.0.1:8080:8080 -v "$PWD/runs/demo:/run/bascule" bascule
# It writes into /run/bascule alone, where the state and the list of forgotten users lie; with --workers also into /tmp.
# The Python packages in it, with versions and licences, in CycloneDX:
#   docker run --rm --entrypoint cat bascule /opt/bascule/sbom.json
ARG BASE=python:3.11-slim
FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml setup.py train.py README.md LICENSE ./
COPY requirements requirements
COPY configs configs
COPY bascule bascule
COPY datamodules datamodules
COPY evaluation evaluation
COPY models models
COPY serve serve
COPY service service
COPY pipeline pipeline
COPY privacy privacy
RUN python -m venv /opt/bascule \
    && /opt/bascule/bin/python -m pip install --no-cache-dir --require-hashes -r requirements/lock.txt \
    && /opt/bascule/bin/python -m pip install --no-cache-dir --no-deps . \
    && /opt/bascule/bin/python -m pip uninstall --yes setuptools pip
RUN python -m venv /opt/sbom \
    && /opt/sbom/bin/python -m pip install --no-cache-dir --require-hashes -r requirements/sbom-lock.txt \
    && /opt/sbom/bin/python -m cyclonedx_py environment --gather-license-texts --output-reproducible \
        -o /opt/bascule/sbom.json /opt/bascule

FROM ${BASE}
ARG BASE
LABEL org.opencontainers.image.base.name=${BASE}
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin bascule \
    && python -m pip uninstall --yes wheel setuptools pip \
    && rm -r /usr/local/lib/python3.11/ensurepip
COPY --from=build /opt/bascule /opt/bascule
USER 10001
WORKDIR /run/bascule
ENV PATH=/opt/bascule/bin:$PATH OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health', timeout=2)"]
# whoever runs it, user 10001 by default, must be able to write into this folder: the state lies in it
VOLUME /run/bascule
ENTRYPOINT ["python", "-m", "bascule", "serve", "--host", "0.0.0.0"]
# insecure, for the command above, which publishes the port to this machine alone: to others give --keys in its place
CMD ["--bundle", "/run/bascule/bundle", "--insecure"]
