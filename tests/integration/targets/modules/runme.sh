#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# For `ansible-test integration`: ../../run with its ansible-core, in a user's environment instead of its own.
set -eu
collection=${ANSIBLE_COLLECTIONS_PATH%%:*}/ansible_collections/speed_limiter/ebpf # this runs in a copy of its directory
exec env -i HOME="$HOME" PATH=/usr/sbin:/usr/bin:/sbin:/bin ANSIBLE_COLLECTIONS_PATH="$ANSIBLE_COLLECTIONS_PATH" \
	"$collection/tests/integration/run" "$(python -c 'import sys; print(sys.prefix)')"
