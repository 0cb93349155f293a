#!/bin/sh
# Registers three users through the bulk queue and reads the three replies, with curl and the HTTP API of RabbitMQ's
# management plugin (rabbitmqadmin does the same). For a few users: every message is a request, and the API has no
# confirms, only "routed".
#
# MANAGEMENT_URL is the API's URL, with user and password (http://guest:guest@localhost:15672).
# VHOST is the virtual host, percent-encoded. JOB is part of each message id: run again with the same
# value, it registers no user twice. muster has to allow the reply queue: queue.allowed_reply_prefix = "example."
set -eu

api=$MANAGEMENT_URL/api vhost=${VHOST:-%2F}
exchange=${NAMESPACE:-registration} job=${JOB:-example}
account=${MANAGEMENT_URL#*://} account=${account%%:*}
replies=example.$account.$job # queue.allowed_reply_prefix, then the account

call() { # call METHOD PATH JSON
    curl --silent --show-error --fail --request "$1" --header 'Content-Type: application/json' \
        --data "$3" "$api/$2"
}

call PUT "queues/$vhost/$replies" '{"durable":true,"auto_delete":false,"arguments":{"x-expires":3600000}}'

for name in Ann Bob Eve; do
    user='{\"fullname\":{\"firstname\":\"'$name'\"},\"email\":\"'$job-$name'@example.com\",\"password\":\"secret-of-'$name'\"}'
    routed=$(call POST "exchanges/$vhost/$exchange/publish" '{
        "routing_key": "bulk",
        "properties": {
            "type": "register",
            "message_id": "'"$job-$name"'",
            "content_type": "application/json",
            "delivery_mode": 2,
            "user_id": "'"$account"'",
            "reply_to": "'"$replies"'",
            "headers": { "contract": "register" }
        },
        "payload": "'"$user"'",
        "payload_encoding": "string"
    }')
    [ "$routed" = '{"routed":true}' ] || { echo "$name was not routed: is muster running?" >&2; exit 1; }
done

replied=0
while [ "$replied" -lt 3 ]; do
    reply=$(call POST "queues/$vhost/$replies/get" '{"count":1,"ackmode":"ack_requeue_false","encoding":"auto"}')
    if [ "$reply" = '[]' ]; then
        sleep 1
    else
        replied=$((replied + 1))
        echo "$reply"
    fi
done
call DELETE "queues/$vhost/$replies" ''
