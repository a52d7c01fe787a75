"""XML from outside, read without the parts of XML that can be turned against the reader.

Libvirt's documents have no document type declaration. One that has is refused before anything in it
is acted on, so no entity is ever defined, expanded or fetched. What is longer or deeper than any of
libvirt's is refused as well: a domain's metadata may be its owner's text.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

LONGEST = 2 * 1024 * 1024
"""Characters. The capabilities of a machine with a thousand processors have some 200,000."""

DEEPEST = 64
"""Elements within one another; libvirt's own go down to about ten."""


class UnsafeXmlError(ValueError):
    """Not well-formed, with a document type declaration, too long or too deep."""


def parse(text: str) -> Element:
    """The root element of `text`. Names in a namespace are ``{URI}name``, as ElementTree has them.

    Raises:
        UnsafeXmlError: `text` is not well-formed, declares a document type, is longer than
            `LONGEST` or deeper than `DEEPEST`.
    """
    if len(text) > LONGEST:
        raise UnsafeXmlError(f"XML of {len(text)} characters is refused; {LONGEST} may be")
    builder = TreeBuilder()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise UnsafeXmlError(f"XML more than {DEEPEST} elements deep is refused")
        builder.start(_name(tag), {_name(key): value for key, value in attributes.items()})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_name(tag))

    parser = expat.ParserCreate(namespace_separator="}")
    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise UnsafeXmlError(f"not well-formed XML: {error}") from error
    return builder.close()


def _name(expat_name: str) -> str:
    return "{" + expat_name if "}" in expat_name else expat_name


def _refuse(*_: object) -> None:
    raise UnsafeXmlError("XML with a document type declaration is refused")
