# The server alone on Python alone; deploy/docker/README.md says how to put a model in.
ARG PYTHON=3.13
FROM python:${PYTHON}-slim

# What else pip shall install: redis for --log, what a model imports.
ARG PACKAGES=""
# hadolint ignore=DL3013  # whoever names a package names its version
RUN useradd --uid 10001 --create-home shim \
    && install -d -o shim -m 700 /var/lib/inferless-shim \
    && if [ -n "$PACKAGES" ]; then pip install --no-cache-dir $PACKAGES; fi

COPY LICENSE server.py /opt/inferless-shim/
COPY inferless_shim /opt/inferless-shim/inferless_shim
COPY models/echo /models/echo
# Compiled now, because a container may not be able to write; readable whatever the checkout's umask was.
RUN python -m compileall -q /opt/inferless-shim && chmod -R a+rX /opt/inferless-shim /models

ENV PYTHONDONTWRITEBYTECODE=1 SHIM_HOST=0.0.0.0 SHIM_PORT=8000 SHIM_MODEL=/models/echo
EXPOSE 8000
# By number, which Kubernetes's runAsNonRoot asks for.
USER 10001:10001

# Unhealthy while it cannot take work; until a large model is loaded that is no fault.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 CMD ["python", "-c", \
    "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', os.environ['SHIM_PORT'], timeout=4); \
     c.request('GET', '/v2/health/ready'); sys.exit(c.getresponse().status != 200)"]

# No shell in between: SIGTERM reaches the server, which drains.
ENTRYPOINT ["python", "/opt/inferless-shim/server.py"]
