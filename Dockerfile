# syntax=docker/dockerfile:1

FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
# Crates and compiled dependencies stay in caches of the builder's: a changed line of muster's own
# compiles muster alone. A cache is no part of the layer, hence the copy.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --bin muster && cp target/release/muster /muster

# No packages on top: the root certificates are compiled into muster.
FROM debian:bookworm-slim
RUN useradd --uid 10001 --create-home --home-dir /var/lib/muster --shell /usr/sbin/nologin muster
COPY --from=build /muster /usr/local/bin/muster
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
# The embedded store's file lies here: mount a volume to keep it.
WORKDIR /var/lib/muster
# On the loopback address a container's port cannot be published.
ENV MUSTER_LISTEN=0.0.0.0:3000
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["/usr/local/bin/muster", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/muster"]
CMD ["serve"]
