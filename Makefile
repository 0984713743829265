# SPDX-License-Identifier: GPL-3.0-or-later
# `make demo` and `make test` do all their set-up themselves. Run as root: the real kernel is limited and tested.
STEPS = lint sanity units packaging property simulation kernel integration

.PHONY: setup setup-test demo test bench bench-quick $(STEPS)

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

# Measures beside htb, tbf and others, and writes docs/benchmarks.md: under 40 minutes, on a machine that does nothing else.
bench: setup-test
	@tests/sandbox .venv/bin/python bench/run docs

# The same with fewer and shorter measurements, under 3 minutes; writes .bench/benchmarks.md.
bench-quick: setup-test
	@tests/sandbox .venv/bin/python bench/run --quick .bench
