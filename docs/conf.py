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


# The atlas is made anew from the records at every build; its pages stand beside the site's own.
html_extra_path = ["_generated"]
exclude_patterns.append("_generated")


def setup(app):
    from pathlib import Path

    from microtome.atlas import write

    write(Path(app.srcdir) / "_generated" / "atlas")  # before Sphinx asks whether the folder is there
