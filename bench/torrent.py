# SPDX-License-Identifier: GPL-3.0-or-later
"""uTP by libtorrent, which is Debian's: run it with the system's Python.

seed ADDRESS PORT DIRECTORY BYTES       makes DIRECTORY/file and DIRECTORY/torrent, and seeds it
leech ADDRESS PORT DIRECTORY SEEDER SEEDERS_PORT TORRENT    gets it from there; no others are asked
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import libtorrent

PIECE = 1 << 18


def session(address: str, port: str) -> libtorrent.session:
    off = ("enable_outgoing_tcp", "enable_incoming_tcp", "enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp")
    settings = dict.fromkeys(off, False)
    return libtorrent.session(
        {
            **settings,
            "listen_interfaces": f"{address}:{port}",
            "allow_multiple_connections_per_ip": True,
            "unchoke_slots_limit": 100,
            "connection_speed": 100,
        }
    )


def seed(address: str, port: str, directory: str, size: str) -> None:
    home = Path(directory)
    (home / "file").write_bytes(os.urandom(PIECE) * (int(size) // PIECE))
    files = libtorrent.file_storage()
    libtorrent.add_files(files, str(home / "file"))
    made = libtorrent.create_torrent(files, PIECE)
    libtorrent.set_piece_hashes(made, directory)
    (home / "torrent").write_bytes(libtorrent.bencode(made.generate()))
    seeding = session(address, port)
    info = libtorrent.torrent_info(str(home / "torrent"))
    flags = libtorrent.torrent_flags.seed_mode
    seeding.add_torrent({"ti": info, "save_path": directory, "flags": flags})
    print("ready", flush=True)
    threading.Event().wait()


def leech(address: str, port: str, directory: str, seeder: str, seeders_port: str, torrent: str) -> None:
    leeching = session(address, port)
    handle = leeching.add_torrent({"ti": libtorrent.torrent_info(torrent), "save_path": directory})
    print("ready", flush=True)
    while not handle.status().is_seeding:
        handle.connect_peer((seeder, int(seeders_port)))
        leeching.wait_for_alert(500)
        leeching.pop_alerts()


kinds: dict[str, Callable[..., None]] = {"seed": seed, "leech": leech}
kinds[sys.argv[1]](*sys.argv[2:])
