#!/usr/bin/env python3
"""A proxy for the connections between the nodes of a test cluster, which tests cut.

Each node has its own Erlang port mapper (epmd), and this program is all of them. A node that asks its mapper for another
node gets a port of this program, which forwards to that node. So a cut needs neither root nor a network namespace: while
a node is cut off, its connections stay open and carry no data, as when packets are dropped. Its clients are not affected.

    wires.py CONTROL_PORT NAME@HOST:MAPPER_PORT:DISTRIBUTION_PORT ...

A line `cut NAME@HOST` or `heal` to the control port is answered with `done`.
"""

import asyncio
import random
import struct
import sys

ALIVE2, ALIVE2_X_RESPONSE = 120, 118
PORT_PLEASE2, PORT2_RESPONSE = 122, 119
NAMES = 110


class Wires:
    """The nodes that are cut off."""

    def __init__(self):
        self.cut = set()
        self.changed = asyncio.Condition()

    async def set(self, cut):
        async with self.changed:
            self.cut = cut
            self.changed.notify_all()

    async def whole(self, one, other):
        if not self.cut & {one, other}:
            return
        async with self.changed:
            await self.changed.wait_for(lambda: not self.cut & {one, other})


class Mapper:
    """The port mapper of one node."""

    def __init__(self, name, port, distribution, routes):
        self.name, self.port, self.own = name, port, distribution
        # This program's ports that forward to the other nodes.
        self.routes = routes
        # Other registered programs, such as rabbitmqctl.
        self.registered = {}

    def port_of(self, name):
        return self.registered.get(name) or self.routes.get(name)

    async def serve(self, reader, writer):
        registered = None
        try:
            length = struct.unpack(">H", await reader.readexactly(2))[0]
            request = await reader.readexactly(length)
            kind, rest = request[0], request[1:]
            if kind == ALIVE2:
                port, size = struct.unpack(">H", rest[:2])[0], struct.unpack(">H", rest[8:10])[0]
                registered = rest[10 : 10 + size].decode()
                self.registered[registered] = port
                writer.write(struct.pack(">BBI", ALIVE2_X_RESPONSE, 0, random.randrange(4, 2**32)))
                await writer.drain()
                # As long as the connection.
                await reader.read()
            elif kind == PORT_PLEASE2:
                name = rest.decode()
                port = self.port_of(name)
                if port is None:
                    writer.write(struct.pack(">BB", PORT2_RESPONSE, 1))
                else:
                    encoded = name.encode()
                    writer.write(
                        struct.pack(">BBHBBHHH", PORT2_RESPONSE, 0, port, 77, 0, 6, 5, len(encoded))
                        + encoded
                        + b"\0\0"
                    )
            elif kind == NAMES:
                lines = [f"name {name} at port {port}\n" for name, port in self.registered.items()]
                writer.write(struct.pack(">I", self.port) + "".join(lines).encode())
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            if registered:
                self.registered.pop(registered, None)
            writer.close()


async def pump(reader, writer, wires, one, other):
    try:
        while data := await reader.read(65536):
            await wires.whole(one, other)
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        # An end is news too: it stays unknown as long as the connection is cut.
        await wires.whole(one, other)
        writer.close()


async def route(wires, one, other, port):
    """A port that leads from one node to another."""

    async def forward(reader, writer):
        await wires.whole(one, other)
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            writer.close()
            return
        await asyncio.gather(
            pump(reader, there_writer, wires, one, other),
            pump(there_reader, writer, wires, one, other),
        )

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    return server.sockets[0].getsockname()[1]


async def main():
    control_port, nodes = int(sys.argv[1]), [node.split(":") for node in sys.argv[2:]]
    wires = Wires()
    for name, mapper_port, distribution in nodes:
        routes = {}
        for other, _, port in nodes:
            if other != name:
                routes[other.split("@")[0]] = await route(wires, name, other, int(port))
        mapper = Mapper(name, int(mapper_port), int(distribution), routes)
        await asyncio.start_server(mapper.serve, "127.0.0.1", int(mapper_port))

    async def control(reader, writer):
        words = (await reader.readline()).decode().split()
        known = [name for name, _, _ in nodes]
        if words == ["heal"]:
            await wires.set(set())
            answer = "done"
        elif len(words) == 2 and words[0] == "cut" and words[1] in known:
            await wires.set(wires.cut | {words[1]})
            answer = "done"
        else:
            answer = f"unknown: {' '.join(words)}"
        writer.write(f"{answer}\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(control, "127.0.0.1", control_port)
    await server.serve_forever()


asyncio.run(main())
