"""Registers three users through the bulk queue and reads the three replies. Needs pika.

AMQP_URL is the broker's URL. JOB is part of each message id: run again with the same value, it registers no user
twice and gets the same replies.
"""

import json
import os

import pika

NAMESPACE = os.environ.get("NAMESPACE", "registration")
JOB = os.environ.get("JOB", "example")
REPLIES = "amq.rabbitmq.reply-to"  # replies to this channel, without a queue

connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
channel = connection.channel()
channel.confirm_delivery()  # basic_publish now raises if the broker rejects or returns a message

waiting = {f"{JOB}-{name}": name for name in ("ann", "bob", "eve")}


def on_reply(_channel, _method, properties, body):
    outcome = json.loads(body)
    name = waiting.pop(properties.message_id)
    if outcome["outcome"] == "registered":
        print(name, "registered", outcome["user"]["_id"])
    else:
        print(name, outcome["outcome"], outcome["code"], outcome.get("errors", []))


channel.basic_consume(REPLIES, on_reply, auto_ack=True)

for message_id, name in waiting.items():
    user = {
        "fullname": {"firstname": name.capitalize()},
        "email": f"{message_id}@example.com",
        "password": f"secret-of-{name}",
    }
    channel.basic_publish(
        exchange=NAMESPACE,
        routing_key="bulk",
        mandatory=True,
        body=json.dumps(user),
        properties=pika.BasicProperties(
            type="register",
            message_id=message_id,
            content_type="application/json",
            delivery_mode=pika.DeliveryMode.Persistent,
            reply_to=REPLIES,
            headers={"contract": "register"},
        ),
    )

while waiting:
    connection.process_data_events(time_limit=None)

connection.close()
