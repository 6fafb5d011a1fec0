"""Secrets in texts and data: passwords and tokens are replaced by `***` before anything is printed, logged or reported."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"

# A key names a secret if it ends with one of these words. Words of the second list must be whole: `design` is no `sig`.
_ANYWHERE = r"password|passwd|passphrase|passfile|secret|credentials?"
_WHOLE = r"token|pwd|sig|signature|access[_-]?key(?:[_-]?id)?|(?:api|private|secret|account|encryption)[_-]?key"
_WORD = rf"[\w.-]{{0,80}}(?i:{_ANYWHERE})s?|(?:[\w.-]{{0,80}}(?:[_.-]|(?<=[a-z])(?=[A-Z])))?(?i:{_WHOLE})"
_SECRET_KEY = re.compile(_WORD)

# Every repetition is bounded, since these run over whole reports: an unbounded one takes quadratic time on long words.
_USER = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]{0,30}://)[^\s/?#'\"<>]{0,1000}@")
# In SQLAlchemy's addresses (`make_url`), a password may contain any character. Digits and a slash after a host are a port. A
# bracket begins the host of an IPv6 address.
_PASSWORD = re.compile(
    r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]{0,30}://)(?!\[)[^\s:/?#@'\"<>]{0,200}:(?!\d{1,5}[/?#])[^\s'\"<>]{1,1000}@"
)
# A text that is an address and nothing else, such as a value of the spec: its password may contain spaces and quotes too.
_ONE_ADDRESS = re.compile(
    r"(?P<scheme>\s{0,40}(?:[\w.\[\]-]{1,200}=)?\s{0,40}[a-zA-Z][a-zA-Z0-9+.-]{0,30}://)(?!\[)"
    r"[^\s:/?#@'\"<>]{0,200}:(?!\d{1,5}(?:[/?#\s]|$))"
    r"[^\n]{1,1000}@(?=[^\s@/]{1,300}(?:[/?#][^\s]{0,4000})?$)"
)
_QUERY = re.compile(
    rf"(?P<key>[?&;][\w.-]{{0,40}}(?i:{_ANYWHERE}|{_WHOLE})[\w.-]{{0,40}}=)[^&;\s'\"<>]{{1,4000}}",
)
_BARE = r"(?!(?i:true|false|none|null)\b)[^\s&;,'\"\\<>(){}\[\]*]{1,4000}"
_QUOTED = r"(?P<quote>\\{0,4}['\"])[^'\"\n]{1,4000}?(?P=quote)"
_SETTING = re.compile(rf"(?<![\w.-])(?P<key>(?:{_WORD})\s?=\s?)(?:{_QUOTED}|{_BARE})")
_OPTION = re.compile(rf"(?<![\w-])(?P<key>--(?:{_WORD})\s)(?:{_QUOTED}|(?!-){_BARE})")
# In JSON and YAML. Numbers stay, so that the document can still be parsed.
_ENTRY = re.compile(
    rf"(?P<key>(?:(?:^|[{{,])[ \t]{{0,40}}(?:{_WORD})|(?P<around>\\{{0,4}}['\"])(?:{_WORD})(?P=around))[ \t]?:[ \t]{{1,2}})"
    rf"(?:{_QUOTED}|(?![-\d.]+(?:[\s,}}\]]|$)){_BARE})",
    re.MULTILINE,
)
_AUTHORIZATION = re.compile(r"(?P<key>\b(?i:bearer|basic)\s)[A-Za-z0-9._~+/-]{8,4000}={0,2}")


def mask_text(text: str) -> str:
    """`text` without secrets: in addresses (user part, query), `key=value`, `--option value`, JSON, YAML and HTTP headers."""
    if found := _ONE_ADDRESS.match(text):
        text = f"{found.group('scheme')}{HIDDEN}@{text[found.end() :]}"
    for pattern in (_PASSWORD, _USER):
        text = pattern.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _QUERY.sub(rf"\g<key>{HIDDEN}", text)
    for pattern in (_SETTING, _OPTION, _ENTRY):
        text = pattern.sub(_hide_value, text)
    return _AUTHORIZATION.sub(rf"\g<key>{HIDDEN}", text)


def mask_data(value: Any) -> Any:
    """Plain data without secrets: texts masked, and the values of keys that name a secret (`password`, `api_key`) hidden."""
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Mapping):
        return {
            mask_data(key): _hide(item) if isinstance(key, str) and names_secret(key) else mask_data(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [mask_data(item) for item in value]
    return value


def mask_command(arguments: Sequence[str]) -> str:
    """A command line as text that a shell reads back, without secrets in its arguments."""
    masked: list[str] = []
    follows_secret = False
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if follows_secret and not argument.startswith("-"):
            masked.append(HIDDEN)
        elif equals and names_secret(key):
            masked.append(f"{key}={HIDDEN}")
        else:
            masked.append(mask_text(argument))
        follows_secret = argument.startswith("--") and not equals and names_secret(argument)
    return shlex.join(masked)


def names_secret(key: str) -> bool:
    """Whether the value of this key is a secret: `tracking.password`, `AWS_SECRET_ACCESS_KEY`, `--token`."""
    return _SECRET_KEY.fullmatch(key.strip()) is not None


def user_part(uri: str) -> str | None:
    """The user part of an address with its `@`, which must not be shown; None if there is none."""
    found = _ONE_ADDRESS.match(uri) or _PASSWORD.search(uri) or _USER.search(uri)
    return found.group().removeprefix(found.group("scheme")) if found else None


def _hide_value(found: re.Match[str]) -> str:
    quote = found.group("quote") or ""
    return f"{found.group('key')}{quote}{HIDDEN}{quote}"


def _hide(value: Any) -> Any:
    """The same data with every text and number in it hidden."""
    if isinstance(value, Mapping):
        return {key: _hide(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hide(item) for item in value]
    return value if value in (None, "") or isinstance(value, bool) else HIDDEN
