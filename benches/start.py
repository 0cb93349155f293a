#!/usr/bin/env python3
"""Time from the start of the process until /ready responds with 200, with in-process queue and embedded store.

Each start has an empty directory, so it includes the creation of the store. The hash kernel's self-test is part
of every start. Prints every start, the median, and the machine's load before and after: other work on the
processors counts as start-up time.

    cargo build --release && benches/start.py [STARTS] [MUSTER]
"""
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

STARTS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
MUSTER = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "target/release/muster").resolve()
TIMEOUT = 30


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_ready(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as connection:
            connection.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(12) == b"HTTP/1.1 200"
    except ConnectionError:
        return False


def start():
    """Milliseconds of one start."""
    with tempfile.TemporaryDirectory() as directory:
        port = free_port()
        # No other variable, so that every setting has its default.
        env = {"MUSTER_LISTEN": f"127.0.0.1:{port}"}
        began = time.monotonic()
        muster = subprocess.Popen(
            [MUSTER], cwd=directory, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while not is_ready(port):
                if muster.poll() is not None or time.monotonic() - began > TIMEOUT:
                    sys.exit(f"{MUSTER} did not become ready on port {port}; start it by hand to see why")
                time.sleep(0.0005)
            return 1000 * (time.monotonic() - began)
        finally:
            muster.send_signal(signal.SIGTERM)
            muster.wait()


before = os.getloadavg()[0]
times = [start() for _ in range(STARTS)]
print("ready after, ms:", " ".join(f"{ms:.1f}" for ms in times))
print(f"median {statistics.median(times):.1f} ms of {STARTS} starts")
print(f"load average (1 minute): {before:.2f} before, {os.getloadavg()[0]:.2f} after")
