# SPDX-License-Identifier: GPL-3.0-or-later
"""bpf/siphash.h, compiled for user space, against Python's own SipHash, whose key is 0 where it is told to."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

BPF = Path(__file__).resolve().parents[2] / "bpf"
MOST = 255

SHIM = """
#include <string.h>
#include <linux/types.h>
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#include "siphash.h"

__u64 hashed(const char *text, int length, __u64 key)
{
    struct siphash hash = siphash_begin(key);
    __u64 bytes;
    int i;

    for (i = 0; i + 8 <= length; i += 8) {
        memcpy(&bytes, text + i, 8);
        siphash_add(&hash, bytes);
    }
    bytes = (__u64)length << SIPHASH_LENGTH;
    memcpy(&bytes, text + i, length - i);
    siphash_add(&hash, bytes);
    return siphash_end(&hash);
}
"""
THEIRS = "import sys; print(*(hash(bytes.fromhex(text)) % (1 << 64) for text in sys.stdin.read().split()))"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("siphash")
    (directory / "shim.c").write_text(SHIM, encoding="ascii")
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-I", str(BPF)]
    subprocess.run([*command, "-o", str(directory / "shim.so"), str(directory / "shim.c")], check=True)
    library = ctypes.CDLL(str(directory / "shim.so"))
    library.hashed.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64]
    library.hashed.restype = ctypes.c_uint64
    return library


@pytest.fixture(scope="module")
def texts() -> list[bytes]:
    chosen = random.Random(1)
    return [chosen.randbytes(length) for length in range(1, MOST + 1) for _time in range(4)]


def test_texts_of_any_length_have_the_hash_that_python_gives_them(ours: ctypes.CDLL, texts: list[bytes]) -> None:
    assert sys.hash_info.algorithm == "siphash13"
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    given = "\n".join(text.hex() for text in texts)
    command = [sys.executable, "-c", THEIRS]
    answer = subprocess.run(command, env=environment, input=given, text=True, check=True, capture_output=True).stdout
    assert [ours.hashed(text, len(text), 0) for text in texts] == [int(number) for number in answer.split()]


def test_each_key_gives_others(ours: ctypes.CDLL, texts: list[bytes]) -> None:
    keys = [0, *(1 << bit for bit in range(64))]
    found = {ours.hashed(text, len(text), key) for text in texts[:: MOST // 8] for key in keys}
    assert len(found) == len(texts[:: MOST // 8]) * len(keys)
