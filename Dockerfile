# The program alone, in an image without a shell, run by a user without rights.
#
#   docker build -t sidestream .
#   docker run -v "$PWD/routes.yaml:/etc/sidestream/routes.yaml:ro" -v sidestream-data:/data sidestream

FROM rust:1.95-bookworm AS builder
WORKDIR /build
ENV CARGO_NET_RETRY=10 \
    CARGO_PROFILE_RELEASE_DEBUG=none \
    CARGO_PROFILE_RELEASE_STRIP=symbols

# The dependencies, about an hour of processor time, are a layer of their own: only a change of these two files builds
# them anew.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
    && touch src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked --bin sidestream

# Cargo goes by time stamps, and the real files may be older than what was just built from empty ones.
COPY . .
RUN touch src/lib.rs src/main.rs \
    && cargo build --release --locked --bin sidestream \
    && mkdir /data

# `cc`, as the program needs glibc and libgcc. All else is linked into it, librdkafka and its OpenSSL too.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="sidestream" \
      org.opencontainers.image.description="One Kafka subscription, many topics: each decoded by its own schema, shaped by its own SQL, written to its own sinks." \
      org.opencontainers.image.licenses="Apache-2.0"

# Whom to trust. The OpenSSL inside librdkafka looks in /usr/local/ssl, which does not exist here, so without this no
# broker's certificate is valid; the registry's client goes by it as well. For brokers with an authority of your own, mount
# its certificate and name it in routes.yaml as `ssl.ca.location`.
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt

COPY --from=builder /build/target/release/sidestream /usr/local/bin/sidestream
# The paths of sinks are relative to this directory.
COPY --from=builder --chown=65532:65532 /data /data
WORKDIR /data
# The base image's `nonroot`, by number: of a name, Kubernetes cannot tell that it is not root (`runAsNonRoot`).
USER 65532:65532

# Metrics, health and status, if `admin: {listen: "0.0.0.0:7979"}` is in routes.yaml: by default it listens inside the
# container only. There is no HEALTHCHECK, as the image has nothing that could ask; an orchestrator asks by HTTP.
EXPOSE 7979

# Finishes what it has read, commits and ends with 0.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/sidestream"]
CMD ["run", "/etc/sidestream/routes.yaml"]
