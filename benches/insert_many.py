#!/usr/bin/env python3
"""Plain inserts of users into a database: `insert_many` by 1,000, with muster's indexes.

The baseline of an import of rows with a hash; prints the seconds of each tenth. Needs pymongo.

    MONGODB_URL=mongodb://… benches/insert_many.py [ROWS]
"""
import datetime
import os
import secrets
import sys
import time

import bson
import pymongo

ROWS, BATCH = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, 1000
client = pymongo.MongoClient(os.environ["MONGODB_URL"])
name = f"insert-many-{secrets.token_hex(4)}"
users = client[name].users
for key in ("emailKey", "username"):
    users.create_index(key, unique=True, partialFilterExpression={key: {"$exists": True}})
users.create_index("registrationId", unique=True)


def user(number):
    """A document as muster stores it."""
    email, now = f"row{number}@example.com", datetime.datetime.now(datetime.timezone.utc)
    return {
        "_id": bson.ObjectId(),
        "contract": "nested-name",
        "email": email,
        "emailKey": email,
        "fullname": {"firstname": "John", "lastname": "Doe"},
        "password": "$2b$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy",
        "socketId": None,
        "createdAt": now,
        "updatedAt": now,
        "registrationId": secrets.token_hex(32),
        "fingerprint": secrets.token_hex(32),
    }


tenths = []
for tenth in range(10):
    rows = [user(tenth * ROWS // 10 + n) for n in range(ROWS // 10)]
    began = time.time()
    for at in range(0, len(rows), BATCH):
        users.insert_many(rows[at : at + BATCH], ordered=False)
    tenths.append(time.time() - began)
client.drop_database(name)
print(f"{ROWS / sum(tenths):.0f} rows/s; tenths", " ".join(f"{time:.1f}" for time in tenths), "s")
