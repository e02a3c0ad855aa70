"""Lists the public names of tff_kit that have no docstring; exit code 1 if there are any. Runs in the environment of `make docs`.

A method that overrides one of a class from another package is documented there.
"""

import pathlib
import sys

import griffe

_BARE = ("Exception", "Generic", "Protocol", "RuntimeError", "ValueError", "object", "typing.Protocol")
ROOT = pathlib.Path(__file__).resolve().parent.parent


def undocumented(package: str, folder: pathlib.Path) -> list[str]:
    """Returns the names of the modules, classes, functions and methods of `package` in `folder` that have no docstring."""
    module = griffe.load(package, search_paths=[folder], allow_inspection=False)
    return sorted(_missing(module))


def _missing(of: griffe.Object):
    if not of.has_docstring:
        yield of.path
    for member in of.members.values():
        if member.is_alias or member.name.startswith("_"):
            continue
        if member.is_class or member.is_module or (member.is_function and not _is_override(member)):
            yield from _missing(member)


def _is_override(function: griffe.Function) -> bool:
    return function.parent.is_class and any(_may_have(base, function.name) for base in function.parent.bases)


def _may_have(base, name: str) -> bool:
    """Returns whether a base class, or one of its own, has a method of this name. A class from elsewhere may have any."""
    if str(base).partition("[")[0] in _BARE:
        return False
    found = getattr(base, "resolved", None)
    if found is None or not found.is_class:
        return True
    return name in found.members or any(_may_have(its, name) for its in found.bases)


if __name__ == "__main__":
    found = undocumented("tff_kit", ROOT)
    for name in found:
        print(f"error: Expected a docstring on the public name {name}, found none.", file=sys.stderr)
    sys.exit(bool(found))
