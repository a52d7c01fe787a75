"""XML from outside, read without the parts of XML that can be turned against the reader.

Libvirt's documents have no document type declaration. One that has is refused before anything in it
is acted on, so no entity is ever defined, expanded or fetched. What is longer or deeper than any of
libvirt's is refused as well: a domain's metadata may be its owner's text.
"""

from __future__ import annotations

from xml.etree.ElementTree import XML, Element, ParseError
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
    # Read twice, both times in C: that is several times as fast as once with handlers in Python.
    gate = expat.ParserCreate()
    gate.StartDoctypeDeclHandler = _refuse
    try:
        gate.Parse(text, True)
        root = XML(text)
    except (expat.ExpatError, ParseError) as error:
        raise UnsafeXmlError(f"not well-formed XML: {error}") from error
    level = [root]
    for _ in range(DEEPEST):
        level = [child for element in level for child in element]
        if not level:
            return root
    raise UnsafeXmlError(f"XML more than {DEEPEST} elements deep is refused")


def _refuse(*_: object) -> None:
    raise UnsafeXmlError("XML with a document type declaration is refused")
