"""Configuration of Sphinx for the site; build.py starts it."""

from __future__ import annotations

import os

project = "smollm3-finetune"
author = "The smollm3-finetune contributors"
version = release = os.environ["SITE_VERSION"]
ADDRESS = os.environ.get("SITE_ADDRESS", "").rstrip("/")
"""Where the versions are published; empty for a site that is read locally, which then has no list of versions."""

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = []
suppress_warnings = ["misc.highlighting_failure"]  # blocks that show output, such as JSON with an ellipsis
highlight_language = "python"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries = False

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block", "strikethrough"]
# The Markdown files are written for GitHub: what only MyST knows is text in them.
myst_disable_syntax = ["myst_role", "myst_line_comment", "myst_block_break"]

html_title = "smollm3-finetune"
html_theme = "pydata_sphinx_theme"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_use_index = False
html_domain_indices = False
html_favicon = "static/favicon.svg"
html_copy_source = False
html_show_sourcelink = False
html_baseurl = f"{ADDRESS}/{version}/" if ADDRESS else ""
html_context = {"default_mode": "auto"}
html_sidebars = {"index": []}
html_theme_options = {
    "github_url": "https://github.com/smollm3-finetune/smollm3-finetune",
    "logo": {"text": "smollm3-finetune"},
    "header_links_before_dropdown": 6,
    "navbar_align": "left",
    "navbar_end": ["theme-switcher", "navbar-icon-links"],
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "navigation_depth": 3,
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
copyright = "the smollm3-finetune contributors, Apache-2.0"
if ADDRESS:
    html_theme_options |= {
        "switcher": {"json_url": f"{ADDRESS}/switcher.json", "version_match": version},
        "navbar_end": ["version-switcher", "theme-switcher", "navbar-icon-links"],
        "show_version_warning_banner": True,
        "check_switcher": False,  # the list is written when the site is published
    }
