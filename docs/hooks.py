"""What mkdocs publishes beside the pages in docs/: files of the repository, and an API page for each room of the package.

The pages link to results' figures, notebooks, CONTRIBUTING and CHANGELOG where they are in the repository, so that the links work
there. On the site these files are below `repository/`, and the links are rewritten to that place.
"""

import pathlib
import re

from mkdocs.structure.files import File

_PUBLISHED = ("results/**/*.png", "results/**/*.csv", "notebooks/*.ipynb", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")
_FOLDER = "repository"
_PACKAGE = "tff_kit"
_ABOUT = """
::: {name}
    options:
      members: false
      show_root_heading: false
"""
_MODULE = """
## `{name}`

::: {name}
    options:
      show_root_heading: false
      show_root_toc_entry: false
      heading_level: 3
"""


def on_config(config):
    """Adds the pages of the API to the navigation."""
    (section,) = [entry["API reference"] for entry in config.nav if "API reference" in entry]
    section.extend({name.capitalize(): f"api/{name}.md"} for name in _rooms(_root(config)))
    return config


def on_files(files, config):
    """Adds the published files and the pages of the API."""
    root = _root(config)
    for pattern in _PUBLISHED:
        for path in sorted(root.glob(pattern)):
            place = f"{_FOLDER}/{path.relative_to(root).as_posix()}"
            files.append(File.generated(config, place, abs_src_path=str(path)))
    for name, paths in _rooms(root).items():
        modules = [_module(path.relative_to(root)) for path in paths if not path.name.startswith("_")]
        about = "" if name == "settings" else _ABOUT.format(name=f"{_PACKAGE}.{name}")
        content = f"# {name.capitalize()}\n{about}" + "".join(_MODULE.format(name=module) for module in modules)
        files.append(File.generated(config, f"api/{name}.md", content=content))
    return files


def _root(config):
    return pathlib.Path(config.config_file_path).parent


def _rooms(root):
    """Returns the modules' files of each room: the package's own, and those of each package in it."""
    package = root / _PACKAGE
    rooms = {path.parent.name: sorted(path.parent.rglob("*.py")) for path in sorted(package.glob("*/__init__.py"))}
    return {"settings": sorted(package.glob("*.py")), **rooms}


def _module(path):
    return ".".join(path.with_suffix("").parts)


def on_page_markdown(markdown, page, config, files):
    """Rewrites the links that leave docs/, and those of the published pages into docs/."""
    if page.file.src_uri.startswith(f"{_FOLDER}/"):
        return re.sub(r"\]\(docs/", "](../", markdown)
    up = "../" * page.file.src_uri.count("/")
    return re.sub(rf"\]\({re.escape(up)}\.\./(?!\.\./)", f"]({up}{_FOLDER}/", markdown)
