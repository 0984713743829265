# SPDX-License-Identifier: GPL-3.0-or-later
# `make demo` and `make test` do all their set-up themselves. Run as root: the real kernel is limited and tested.
STEPS = lint sanity units packaging property simulation integration kernel traffic held-up

.PHONY: setup setup-test setup-ansible setup-docs setup-kernels setup-bench setup-browser demo docs guide dashboard pictures browser test test-ansible kernels test-kernels test-userlands soak fuzz bench bench-quick $(STEPS)

setup:
	@tools/setup

setup-test:
	@tools/setup --test

# And every ansible-core that is supported and that a Python here runs, each in a virtual environment.
setup-ansible:
	@tools/setup --ansible

# And Sphinx.
setup-docs:
	@tools/setup --docs

# And QEMU.
setup-kernels:
	@tools/setup --kernels

# And servers and clients whose traffic is measured.
setup-bench:
	@tools/setup --bench

# And Chromium, with what drives it.
setup-browser:
	@tools/setup --browser

demo: setup
	@tests/demo/run

# All documentation as pages, in .docs/html.
docs: setup-docs
	@tools/docs

# The outputs in docs/troubleshooting.md, and pictures of `limiter top`, from a host that is limited.
guide: setup-test
	@tests/sandbox .venv/bin/python tools/guide

# The panels of the dashboard for Grafana, from the metrics of a host that is limited.
dashboard: setup-test
	@tests/sandbox .venv/bin/python tools/dashboard

# The page of the playbook `report` in a real browser.
browser: setup-browser
	@.venv/bin/python tools/test browser

# The pictures in docs/pictures, of that page.
pictures: setup-browser
	@.venv/bin/python tests/browser/pictures docs/pictures

test: setup-kernels
	@.venv/bin/python tools/test $(STEPS) harness kernels

$(STEPS): setup-test
	@.venv/bin/python tools/test $@

# Random tasks on a host that is limited; an hour of it with MINUTES=60, and SEED=NUMBER for the steps of another run.
MINUTES ?= 3
soak: setup-test
	@tests/sandbox .venv/bin/python tests/soak/run --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# The BPF headers under libFuzzer, in user space.
RUNS ?= 1000000
fuzz: setup-test
	@.venv/bin/python tests/property/fuzz --runs $(RUNS)

# The oldest and the newest kernel of KERNELS in virtual machines, with less of everything than test-kernels.
kernels: setup-kernels
	@.venv/bin/python tools/test harness kernels

# Every kernel that is supported, in virtual machines: "suite:series" of Debian, the oldest first. Writes docs/kernels.md. Takes hours
# without KVM.
KERNELS ?= bullseye:5.10 bookworm:6.1 trixie:6.12 sid:7.2
test test-kernels kernels: export KERNELS := $(KERNELS)
test-kernels: setup-kernels setup-bench
	@.venv/bin/python tests/vm/run

# sanity and the modules with every ansible-core that is supported: 5 minutes for each on two processors that do nothing else.
test-ansible: setup-ansible
	@.venv/bin/python tools/test ansible

# Debian 11, 12 and 13 as managed hosts, and the newest ansible-core of all: 15 minutes of CPU time, and the first time debootstrap's.
test-userlands: setup-test
	@.venv/bin/python tools/test userlands

# Measures beside htb, tbf and others, and writes docs/benchmarks.md: about 75 minutes, on a machine that does nothing else.
bench: setup-bench
	@tests/sandbox .venv/bin/python bench/run docs

# The same with fewer and shorter measurements, about 6 minutes; writes .bench/benchmarks.md.
bench-quick: setup-bench
	@tests/sandbox .venv/bin/python bench/run --quick .bench
