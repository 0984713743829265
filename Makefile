# SPDX-License-Identifier: GPL-3.0-or-later
# `make demo` and `make test` do all their set-up themselves. Run as root: the real kernel is limited and tested.
STEPS = lint sanity units packaging property kernel integration

.PHONY: setup setup-test demo test bench $(STEPS)

setup:
	@tools/setup

setup-test:
	@tools/setup --test

demo: setup
	@tests/demo/run

test: setup-test
	@tools/test $(STEPS)

$(STEPS): setup-test
	@tools/test $@

# Prints what the program costs; see bench/.
bench: setup-test
	@tests/sandbox .venv/bin/python bench/cost
