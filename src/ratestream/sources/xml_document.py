"""XML from strangers, read without letting it define anything."""

from __future__ import annotations

from typing import NoReturn
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

from ratestream.sources.base import UnusableDocumentError, shown


class _NoDoctype(TreeBuilder):
    """Refuses a document type declaration before anything in it is read: entities that grow or
    fetch can only be declared there. Rate documents have none; HTML pages usually do."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise UnusableDocumentError(f"the document declares a document type, {shown(name)}")


def parse_xml(body: bytes, root: str) -> Element:
    """The root element of a document, in the encoding that the document declares.

    Raises `UnusableDocumentError` unless it is well-formed, declares no document type and has the
    root element `root` (with its namespace as `{namespace}name`).
    """
    parser = XMLParser(target=_NoDoctype())  # noqa: S314 - without a DOCTYPE nothing can expand
    try:
        parser.feed(body)
        element: Element = parser.close()
    except (ParseError, ValueError, LookupError) as error:
        raise UnusableDocumentError(f"not XML: {error}") from None
    if element.tag != root:
        raise UnusableDocumentError(f"the root element is {shown(element.tag)}, not {root}")
    return element
