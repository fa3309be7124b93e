"""Keep secrets out of scripts, logs, reports and messages."""

import os
import re
from urllib.parse import quote, unquote

from astra.errors import ConfigError

#: What the name of a secret has in it; no other list of such words is kept. What ends in _FILE
#: names the place of one.
_WORD = (
    r"(?i:passw|passphrase|pgpass(?!file)|secret|token(?!i[sz])|credential|jwt|[_-]pat\b"
    r"|(?<=[_'\"-])pwd\b|(?:my|db|sql)pwd\b"
    r"|(?:api|access|account|auth|encryption|master|private|signing|storage)[_-]?key)"
    r"(?!\w*_(?i:file|path|dir)\b)"
)

_SECRET_NAME = re.compile(_WORD)

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]*")

_WHOLE_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.*", re.DOTALL)

# user:password@, also where the password holds / ? # or @, which a URL should not: everything
# up to the last @ that stands before a proper ?key=value part. host:5432/db?... is none.
_USERINFO = re.compile(
    r"(?P<user>://[^:/?#@]*):(?!\d*/[^@?]*\?[\w.%-]+=).*@(?=[^@]*$|[^@?]*\?[\w.%-]+=)", re.DOTALL
)

_IN_QUERY = re.compile(r"(?<=[?&;])(?P<key>[\w%.-]+)=(?P<value>[^&;#\s'\"]*)")

# password=geheim, PGPASSWORD="ge heim", 'password': 'geheim', whatever a shell or Python quotes.
_VALUE = r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|\\.|[^\s'"\\,;)}\]&|])+"""

#: Where secrets stand in a text: an assignment, an option of a command, the header of a request,
#: the user of curl, what others take as -p. What comes before the value is the key.
_IN_WORDS = re.compile(
    r"(?P<key>\b\w*" + _WORD + r"\w*(?:\s*=\s*|['\"]\s*:\s*)"
    r"|--[\w-]*" + _WORD + r"[\w-]*(?:=|\s+)(?!-)"
    r"|\bsetenv\s+\w*" + _WORD + r"\w*\s+"
    r"|\b(?i:[\w-]*passw[\w-]*|[\w-]*[_-]" + _WORD + r"|" + _WORD + r"[_-][\w-]*):\s*(?=[^\s*])"
    r"|\b(?i:authorization)\s*:\s*(?!(?i:bearer|basic)\s)(?:(?i:token)\s+)?"
    r"|\b(?i:bearer|basic)\s+(?=[\w.~+/=-]{8})"
    r"|\bsshpass\s+-p\s*|\b(?:mysql|mysqldump|mariadb)\b[^|;&\n]*?\s-p(?=\S)"
    r"|\b(?:docker|podman|apptainer|singularity|helm)\b[^|;&\n]*?\blogin\b[^|;&\n]*?\s-p[=\s]*"
    r"|\bcurl\b[^|;&\n]*?\s(?:-u|--user)[=\s]*['\"]?[^\s:'\"$]+:)(?P<value>" + _VALUE + ")",
    re.DOTALL,
)

#: What is a secret by its own form, wherever it stands: tokens of services, and private keys.
_SHAPES = re.compile(
    r"\b(?:gh[opsru]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|xox[abeoprs]-[\w-]{10,}"
    r"|hf_\w{20,}|sk-[\w-]{20,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{5,})"
    r"|(?<=PRIVATE KEY-----)(?!\Z).*?(?=-----END|\Z)",
    re.DOTALL,
)

#: A password shorter than this is not looked for by itself: it may be any word.
_LEAST_KNOWN = 8

_known: set[str] = set()


def know_secret(text: str | None) -> None:
    """Have a password of this process hidden wherever it would be shown, by itself too."""
    if text and len(text) >= _LEAST_KNOWN:
        _known.update({text, quote(text), quote(text, safe=""), repr(text)[1:-1]})


def know_url(url: str) -> None:
    """Learn the password of a URL, in the form it has there and as it is meant."""
    for found in [_USERINFO.search(url), *_IN_QUERY.finditer(url)]:
        if found is None:
            continue
        if "user" in found.re.groupindex:
            value = found[0][len(found["user"]) + 1 : -1]
        elif _SECRET_NAME.search(unquote(found["key"])):
            value = found["value"]
        else:
            continue
        know_secret(value)
        know_secret(unquote(value))


def hide(text: str) -> str:
    """`text` without any password: those of URLs and assignments, and this process's own."""
    know_secret(os.environ.get("PGPASSWORD"))
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, "***")
    return hide_password(text)


def holds_known(text: str) -> bool:
    """Return whether a text holds a password of this process."""
    know_secret(os.environ.get("PGPASSWORD"))
    return any(secret in text for secret in _known)


def holds_secret(text: str) -> bool:
    """Whether a shell line or an option holds a password itself, and not only names its place."""
    if holds_known(text) or _SHAPES.search(text):
        return True
    if any(has_userinfo(found[0]) for found in _URL.finditer(text)):
        return True
    # $(cat ~/.token) and ${TOKEN} are no secrets: they say where one is.
    values = (found["value"].lstrip("\"'") for found in _IN_WORDS.finditer(text))
    return any(not value.startswith(("$", "`")) for value in values)


def has_userinfo(url: str) -> bool:
    """Whether a URL holds a password, which is not the name of a variable."""
    found = _USERINFO.search(url)
    return bool(found and not found[0][len(found["user"]) + 1 :].startswith("$"))


def check_quoting(url: str) -> None:
    """Refuse a URL whose password libpq would take apart, and repeat parts of in its messages."""
    found = _USERINFO.search(url)
    password = found[0][len(found["user"]) + 1 : -1] if found else ""
    if any(c in password for c in "/?#@ ") or re.search(r"%(?![0-9A-Fa-f]{2})", password):
        raise ConfigError(
            f"the database URL {hide_password(url)!r}: its password holds characters that a URL "
            "must quote (@ is %40, / is %2F, ? is %3F, # is %23, % is %25, a blank %20); or leave "
            "it to ~/.pgpass, which quotes only : and \\"
        )


def hide_password(text: str) -> str:
    """`text` with the passwords of all database URLs and connection strings in it hidden.

    >>> hide_password("postgresql://me:geheim@host/db?password=x")
    'postgresql://me:***@host/db?password=***'
    >>> hide_password("host=db password='ge heim' user=me")
    'host=db password=*** user=me'
    """
    if _WHOLE_URL.fullmatch(text) and "\n" not in text:
        return _hide_in_url(text)
    hidden = _URL.sub(lambda found: _hide_in_url(found[0]), text)
    return _SHAPES.sub("***", _IN_WORDS.sub(r"\g<key>***", hidden))


def _hide_in_url(url: str) -> str:
    def query(found: re.Match[str]) -> str:
        secret = _SECRET_NAME.search(unquote(found["key"]))
        return f"{found['key']}=***" if secret and found["value"] else found[0]

    return _SHAPES.sub("***", _IN_QUERY.sub(query, _USERINFO.sub(r"\g<user>:***@", url)))


def has_password(url: str) -> bool:
    """Whether a database URL, or a connection string, carries a password."""
    return hide_password(url) != url


def hide_secret(name: str, value: object) -> str:
    """`value` as it is shown under `name`: hidden if the name or the value looks secret."""
    if value is None or value == "":
        return ""
    if _SECRET_NAME.search(name):
        return "***"
    if isinstance(value, list | tuple):
        return "; ".join(hide(str(item)) for item in value)
    return str(value).lower() if isinstance(value, bool) else hide(str(value))
