# SPDX-License-Identifier: GPL-3.0-or-later
"""QUIC by aioquic, which paces itself and is not TCP:

serve ADDRESS PORT CERTIFICATE KEY    as many bytes as it is asked for
fetch ADDRESS PORT CONNECTIONS BYTES  of each connection; prints "ready" before
"""

from __future__ import annotations

import asyncio
import ssl
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration

PROTOCOL = ["bench"]
WINDOW = 1 << 24  # bytes: what the receiver allows is never what limits


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes(int(await reader.readline())))
    writer.write_eof()


async def serving(address: str, port: int, certificate: str, key: str) -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=PROTOCOL)
    configuration.load_cert_chain(certificate, key)
    tasks = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(answer(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await serve(address, port, configuration=configuration, stream_handler=begin)
    await asyncio.Event().wait()


async def fetch(address: str, port: int, size: int) -> None:
    configuration = QuicConfiguration(
        alpn_protocols=PROTOCOL, verify_mode=ssl.CERT_NONE, max_data=WINDOW, max_stream_data=WINDOW
    )
    async with connect(address, port, configuration=configuration) as connection:
        reader, writer = await connection.create_stream()
        writer.write(b"%d\n" % size)
        while await reader.read(1 << 20):
            pass


async def fetching(address: str, port: int, connections: int, size: int) -> None:
    print("ready", flush=True)
    await asyncio.gather(*(fetch(address, port, size) for _connection in range(connections)))


def main(mode: str, address: str, port: str, *rest: str) -> None:
    if mode == "serve":
        asyncio.run(serving(address, int(port), *rest))
    else:
        asyncio.run(fetching(address, int(port), *map(int, rest)))


main(*sys.argv[1:])
