"""HTML as elements, so that no text can ever become markup."""

from xml.etree.ElementTree import Element, tostring

__all__ = ["Element", "element", "html_of"]


def element(tag: str, *children: "Element | str", **attributes: str) -> Element:
    """Return an element with texts and elements in it.

    Args:
        tag: name of the element.
        children: in order; texts are shown as they are.
        attributes: an underscore stands for a hyphen, one at the end for nothing (`class_`).
    """
    made = Element(
        tag, {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    )
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            made.append(child)
            last = child
        elif last is None:
            made.text = (made.text or "") + child
        else:
            last.tail = (last.tail or "") + child
    return made


def html_of(root: Element) -> str:
    """Return a whole document as text that UTF-8 can hold."""
    text = "<!doctype html>\n" + tostring(root, encoding="unicode", method="html") + "\n"
    # A model's answer may hold half of a surrogate pair.
    return text.encode("utf-8", "replace").decode("utf-8")
