"""How docstrings become pages: sections in numpy's style, types as they were written, and names under any path.

Napoleon reads the sections, but takes the first line of "Returns", and what stands before a colon in the docstring of a
property, for a type. Here both are sentences.
"""

from __future__ import annotations

import importlib
import sys
import typing
from typing import Any

from sphinx.domains.python import PyObject
from sphinx.ext.autodoc.typehints import record_typehints
from sphinx.ext.napoleon import Config, NumpyDocstring
from sphinx.util.typing import stringify_annotation

CONFIG = Config(napoleon_use_ivar=True)
PACKAGE = "cellrank_velot"


class Docstring(NumpyDocstring):
    """A docstring of this package."""

    def _parse_returns_section(self, section: str) -> list[str]:
        return [*self._format_block(":returns: ", self._dedent(self._consume_to_next_section())), ""]

    def _parse_attributes_section(self, section: str) -> list[str]:
        lines, types = [], typing.get_type_hints(self._obj)
        for name, _, description in self._consume_fields(multiple=True):
            lines += self._format_block(f":ivar {name}: ", description)
            if name in types:
                lines.append(f":vartype {name}: " + stringify_annotation(types[name], "smart").replace("_]", r"\_]"))
        return [*lines, ""]


def read(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring into what Sphinx understands."""
    what = "object" if what in ("attribute", "data", "property") else what
    lines[:] = Docstring(lines, CONFIG, app, what, name, obj, options).lines()


def types_of_class(app: Any, what: str, name: str, obj: Any, options: Any, *signature: Any) -> None:
    """Take the types of a class from its ``__init__``: Sphinx looks at the class, where they are strings."""
    if what == "class":
        record_typehints(app, what, name, obj.__init__, options, *signature)
        app.env.temp_data["annotations"][name].pop("return", None)


def find_documented(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Find what is spoken of by another path than the one it is documented by, or from outside of its class."""
    target, domain = node.get("reftarget", ""), env.get_domain("py")
    if node.get("refdomain") != "py":
        return None
    of_kernels = [f"{PACKAGE}.{kernel}.{target}" for kernel in app.config.autosummary_context["kernels"]]
    known = next((name for name in of_kernels if name in domain.objects), None)
    known = known or same_object(target, domain.objects)
    if known is not None:
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", known, node, content)
    return content if has_no_page(target) or target in app.config.autosummary_context["from_cellrank"] else None


def has_no_page(target: str) -> bool:
    """Return whether a name is in the package: a helper, which is spoken of, but has no page to lead to."""
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == PACKAGE]
    by_itself = target.isidentifier() and any(hasattr(module, target) for module in modules)
    return by_itself or (target.startswith(f"{PACKAGE}.") and imported(target) is not None)


def same_object(target: str, names: Any) -> str | None:
    """Return the name by which an object of the package is documented."""
    wanted = imported(target) if target.startswith(f"{PACKAGE}.") else None
    last = target.rpartition(".")[2]
    same = (name for name in names if name.rpartition(".")[2] == last and imported(name) is wanted)
    return None if wanted is None else next(same, None)


def imported(name: str) -> Any:
    """Return the object of a dotted name, or nothing."""
    parts = name.split(".")
    for n_parts in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n_parts]))
        except ImportError:
            continue
        for part in parts[n_parts:]:
            found = getattr(found, part, None)
        return found
    return None


def setup(app: Any) -> dict[str, bool]:
    """Register the readers."""
    app.setup_extension("sphinx.ext.autodoc")
    for field in PyObject.doc_field_types:
        field.label = "Attributes" if field.name == "variable" else field.label
    app.connect("autodoc-process-docstring", read)
    app.connect("autodoc-process-signature", types_of_class, priority=600)
    app.connect("missing-reference", find_documented)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
