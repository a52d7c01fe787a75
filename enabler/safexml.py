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
    """The root element of `text`. Names keep their prefix as written (``qemu:arg``).

    Raises:
        UnsafeXmlError: `text` is not well-formed, or declares a document type.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise UnsafeXmlError(f"not well-formed XML: {error}") from error
    return builder.close()


def _refuse(*_: object) -> None:
    raise UnsafeXmlError("XML with a document type declaration is refused")
