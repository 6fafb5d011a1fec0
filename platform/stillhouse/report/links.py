"""Which addresses a page may link to."""

from collections.abc import Mapping
from urllib.parse import urlsplit

_SCHEMES = ("http", "https")


def web_addresses(addresses: Mapping[str, str]) -> dict[str, str]:
    """Those of the addresses that lead to a web page. Any other scheme, such as `javascript:`, could run code in a click."""
    return {name: address for name, address in addresses.items() if _is_web(address)}


def _is_web(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    # Browsers ignore control characters and spaces at the beginning of an address, and tabs and line breaks in it.
    plain = address.isprintable() and not any(letter.isspace() for letter in address)
    return plain and parts.scheme in _SCHEMES and bool(parts.hostname)
