# syntax=docker/dockerfile:1

FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
# Crates and compiled dependencies stay in the builder's caches, so a change compiles muster only. A cache is not part
# of the layer, hence the copy.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --bin muster && cp target/release/muster /muster

# No more packages: the root certificates are compiled into muster.
FROM debian:bookworm-slim
RUN useradd --uid 10001 --create-home --home-dir /var/lib/muster --shell /usr/sbin/nologin muster
COPY --from=build /muster /usr/local/bin/muster
# A number, so that an orchestrator can verify that it is not root.
USER 10001:10001
# Folder of the embedded store's file: mount a volume to keep it.
WORKDIR /var/lib/muster
# A container's port on the loopback address cannot be published.
ENV MUSTER_LISTEN=0.0.0.0:3000
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["/usr/local/bin/muster", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/muster"]
CMD ["serve"]
