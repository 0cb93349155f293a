"""Rows as schemathesis sends them: it has no notion of application/x-ndjson."""

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def rows(ctx, value):
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else str(value).encode()
