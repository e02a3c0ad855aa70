"""What mkdocs publishes from outside of docs/: results' figures and data, notebooks, CONTRIBUTING and CHANGELOG.

The sources link to these files where they are in the repository, so that links work there. On the site they are below
`repository/`, and the links are rewritten to that place.
"""

import pathlib
import re

from mkdocs.structure.files import File

_PUBLISHED = ("results/**/*.png", "results/**/*.csv", "notebooks/*.ipynb", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")
_FOLDER = "repository"


def on_files(files, config):
    """Adds the published files."""
    root = pathlib.Path(config.config_file_path).parent
    for pattern in _PUBLISHED:
        for path in sorted(root.glob(pattern)):
            place = f"{_FOLDER}/{path.relative_to(root).as_posix()}"
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrites the links that leave docs/, and those of the published pages into docs/."""
    if page.file.src_uri.startswith(f"{_FOLDER}/"):
        return re.sub(r"\]\(docs/", "](../", markdown)
    up = "../" * page.file.src_uri.count("/")
    return re.sub(rf"\]\({re.escape(up)}\.\./(?!\.\./)", f"]({up}{_FOLDER}/", markdown)
