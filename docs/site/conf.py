# SPDX-License-Identifier: GPL-3.0-or-later
"""Sphinx, as tools/docs runs it: on a copy of the checkout with the modules' pages in reference/."""

project = html_title = "speed_limiter.ebpf"
author = "The speed_limiter.ebpf contributors"
extensions = ["myst_parser", "sphinx_antsibull_ext"]
include_patterns = ["*.md", "docs/*.md", "roles/setup/README.md", "reference/**"]
html_theme = "sphinx_ansible_theme"
html_copy_source = False
pygments_style = "ansible"
highlight_language = "YAML+Jinja"
myst_heading_anchors = 3  # as the pages' links expect them
# Labels of ansible-core's own documentation, which is not asked: there may be no network.
suppress_warnings = ["ref.ref"]
