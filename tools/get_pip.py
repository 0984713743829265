# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands in for the get-pip script that ansible-test would download: pip comes from the interpreter's own ensurepip.

ansible-test sets GET_PIP to the path of this file and runs its `quiet_pip.py`, which executes this file with the arguments
of `pip install`: nothing but packages, pip itself among them, and options that only the real script knows.
"""

import ensurepip
import importlib
import runpy
import sys

ensurepip.bootstrap()
importlib.invalidate_caches()
arguments = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
sys.argv = ["pip", "install", *arguments]
runpy.run_module("pip", run_name="__main__")
