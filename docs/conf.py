"""Configuration of the site. `make docs` builds it in docs/_build/html and fails on any warning."""

import sys
from pathlib import Path

import clipseq

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "clipseq"
version = release = clipseq.__version__
author = "the clipseq authors"
copyright = author

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    # In _ext: our docstring style, content from the code, formulas without network access.
    "docstrings",
    "from_code",
    "house",
    "mathml",
]
# The notebooks run whenever the site is built, in a folder of their own.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"

# The examples are distributions of their own, and the configs are files to train with.
exclude_patterns = ["_build", "examples", "configs"]

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

# Sphinx would turn `--` into a dash and quotes into curly ones, which would break commands.
smartquotes = False
default_role = "name"
html_math_renderer = "mathml"
autodoc_default_options = {"members": True, "no-value": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True

nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"collections\.abc\..*")]  # used in the signatures of the hooks

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = "clipseq"
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
