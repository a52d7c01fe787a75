"""XML from outside, read without the parts of XML that can be turned against the reader.

Libvirt's documents have no document type declaration. One that has is refused before anything in it
is acted on, so no entity is ever defined, expanded or fetched.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat


class UnsafeXmlError(ValueError):
    """Not well-formed, or with a document type declaration."""


def parse(text: str) -> Element:
    """The root element of `text`. Names in a namespace are ``{URI}name``, as ElementTree has them.

    Raises:
        UnsafeXmlError: `text` is not well-formed, or declares a document type.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="}")
    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler = lambda tag, attributes: builder.start(
        _name(tag), {_name(key): value for key, value in attributes.items()}
    )
    parser.EndElementHandler = lambda tag: builder.end(_name(tag))
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
