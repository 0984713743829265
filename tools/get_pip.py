# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands in for the get-pip script that ansible-test would download: pip comes from the interpreter's own ensurepip.

ansible-test runs it with the arguments of `pip install`, among them two options that only the real script knows.
"""

import importlib
import runpy
import subprocess
import sys

# In a process of its own, since it turns off pip's configuration, in which the package index may be named.
subprocess.run([sys.executable, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
importlib.invalidate_caches()
arguments = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
sys.argv = ["pip", "install", *arguments]
runpy.run_module("pip", run_name="__main__")
