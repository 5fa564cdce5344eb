"""The documentation: guides in Markdown, and a reference written from the code when it is built."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from reference import write_reference  # noqa: E402

import raylab  # noqa: E402

project = "raylab"
author = "the raylab authors"
copyright = "Apache-2.0"
version = release = raylab.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3
default_role = "code"  # docstrings mark code with single backticks
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_custom_sections = ["Returns"]  # prose: what stands before a colon is no type
copybutton_prompt_text = "$ "

html_theme = "furo"
html_title = "raylab"
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#7db4f0", "color-brand-content": "#7db4f0"},
}

linkcheck_timeout = 20
linkcheck_ignore = [r"http://localhost.*", r"http://127\.0\.0\.1.*", r"https://github\.com/you/.*"]


def setup(app):
    write_reference(HERE / "generated")
