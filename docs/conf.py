"""The settings of Sphinx for the site of these pages: `make docs` builds it."""

import pathlib
import sys

from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

DOCS = pathlib.Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

project = "Treasure Map"
project_copyright = "Treasure Map contributors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}

# Anchors of headings are those of the code host, so that a link works in both.
myst_heading_anchors = 4
highlight_language = "none"

html_theme = "furo"
html_title = project

autodoc_member_order = "bysource"


class FolderLinks(SphinxPostTransform):
    """Makes links to folders of the clone, which the site does not have, plain text."""

    default_priority = 8  # before myst_parser looks for their targets

    def run(self) -> None:
        """Replace each such link by its text."""
        for node in list(self.document.findall(addnodes.pending_xref)):
            if node["reftype"] == "myst":
                folder = (DOCS / node["refdoc"]).parent / node["reftarget"]
                if folder.is_dir():
                    node.replace_self(node.children)


def setup(app: Sphinx) -> None:
    """Add the transform to the build."""
    app.add_post_transform(FolderLinks)
