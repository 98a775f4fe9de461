"""Configuration of the site, which `make docs` builds in docs/_build/html without a warning."""

import sys
from pathlib import Path

import clipseq

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "clipseq"
version = release = clipseq.__version__
author = "the clipseq authors"
copyright = author

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    # In _ext: docstrings in our style, what is made from the code, formulas without a network.
    "docstrings",
    "from_code",
    "house",
    "mathml",
]
# The examples are distributions of their own, and the configs are files to train with.
exclude_patterns = ["_build", "examples", "configs"]

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

# Sphinx would make an en dash of the `--` of an option, and curly quotes, which no shell reads.
smartquotes = False
default_role = "name"
html_math_renderer = "mathml"
autodoc_default_options = {"members": True, "no-value": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True

nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"collections\.abc\..*")]  # in the signature of the hook

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = "clipseq"
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
