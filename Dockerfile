# The astra command on Debian slim: docker build -t astra . && docker run --rm astra --help
FROM debian:bookworm-slim

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/astra

COPY . /src
RUN /opt/astra/bin/pip install --no-cache-dir "/src[fits]" && rm -rf /src

ENV PATH=/opt/astra/bin:$PATH
RUN useradd --create-home --uid 1000 astra
USER 1000
WORKDIR /home/astra
ENTRYPOINT ["astra"]
CMD ["--help"]
