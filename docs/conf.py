from importlib.metadata import version as installed_version

project = "microtome"
author = "The microtome authors"
copyright = author
release = installed_version("microtome")
version = release

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = f"microtome {release}"
