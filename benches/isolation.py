#!/usr/bin/env python3
"""Response times of signups during a flood of bulk rows, with the producer in its own process.

Signs up over HTTP at a constant rate: alone, right after ROWS rows were published, and five seconds later. Start a
front on 127.0.0.1:3950 and a worker first, at cost 10, in their own namespace; needs pika.

    AMQP_URL=amqp://… NAMESPACE=… benches/isolation.py PER_SECOND ROWS
"""
import http.client
import json
import os
import secrets
import sys
import threading
import time
import uuid

import pika

ADDRESS, CLIENTS, SECONDS = "127.0.0.1:3950", 32, 10
PER_SECOND, ROWS = float(sys.argv[1]), int(sys.argv[2])
QUEUE = os.environ["NAMESPACE"]


def document(email):
    name = {"firstname": "John", "lastname": "Doe"}
    return json.dumps({"fullname": name, "email": email, "password": "securePassword123"})


def load(what):
    """The times of all signups from when they were due, so that one that is late counts as late."""
    times, other, start = [], [], time.time()

    def client(number):
        connection, turn = http.client.HTTPConnection(ADDRESS), 0
        while (due := start + (turn * CLIENTS + number) / PER_SECOND) < start + SECONDS:
            time.sleep(max(0, due - time.time()))
            email, turn = f"{secrets.token_hex(8)}@example.com", turn + 1
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/users/register", document(email), headers)
            answer = connection.getresponse()
            answer.read()
            (times if answer.status == 201 else other).append(1000 * (time.time() - due))

    clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    [thread.start() for thread in clients]
    [thread.join() for thread in clients]
    times.sort()
    p50, p95, p99 = (round(times[int(len(times) * part)]) for part in (0.5, 0.95, 0.99))
    print(f"{what}: {len(times)} signups, p50 {p50}, p95 {p95}, p99 {p99} ms; not 201: {len(other)}")


def waiting():
    return channel.queue_declare(f"{QUEUE}.bulk", passive=True).method.message_count


def load_with_rows(what):
    before, start = waiting(), time.time()
    load(what)
    print(f"  rows a second in addition: {(before - waiting()) / (time.time() - start):.1f}")


load("alone")
connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
channel = connection.channel()
for row in range(ROWS):
    properties = pika.BasicProperties(
        type="register",
        message_id=str(uuid.uuid4()),
        delivery_mode=2,
        content_type="application/json",
        headers={"contract": "nested-name"},
    )
    body = document(f"{secrets.token_hex(8)}@example.com")
    channel.basic_publish(QUEUE, "bulk", body, properties)
    if row % 500 == 0:
        connection.process_data_events(0)
load_with_rows("right after the rows")
time.sleep(5)
load_with_rows("five seconds later")
