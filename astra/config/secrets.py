"""Keep secrets out of scripts, logs, reports and messages."""

import os
import re
from urllib.parse import quote, unquote

from astra.errors import ConfigError

#: Parts of the names of secrets; this is the only list of them. A name that ends in _FILE is that
#: of a path.
_WORD = (
    r"(?i:passw|passphrase|pgpass(?!file)|secret|token(?!i[sz])|credential|jwt|[_-]pat\b"
    r"|(?<=[_'\"-])pwd\b|(?:my|db|sql)pwd\b"
    r"|(?:admin|database|db|ftp|http|ldap|mail|mongo|pg|proxy|redis|root|smtp|sql|user)_?pass\b"
    r"|(?:api|access|account|auth|encryption|master|private|signing|storage)[_-]?key)"
    r"(?!\w{,99}_(?i:file|path|dir)\b)"
)

_SECRET_NAME = re.compile(_WORD)

# No pattern begins by an unbounded repetition: a word of a megabyte would take it hours.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{,40}://[^\s'\"<>]*")

_WHOLE_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.*", re.DOTALL)

# user:password@, even if the password holds / ? # or @, which should be quoted: all up to the last
# @ before a proper ?key=value part. host:5432/db?... has no password.
_USERINFO = re.compile(
    r"(?P<user>://[^:/?#@]*):(?!\d*/[^@?]{,999}\?[\w.%-]+=).*@(?=[^@]*$|[^@?]*\?[\w.%-]+=)",
    re.DOTALL,
)

_IN_QUERY = re.compile(r"(?<=[?&;])(?P<key>[\w%.-]+)=(?P<value>[^&;#\s'\"]*)")

# password=geheim, PGPASSWORD="ge heim", 'password': 'geheim', with the quotes of a shell or Python.
_VALUE = r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|\\.|[^\s'"\\,;)}\]&|])+"""

#: Places of secrets in a text: an assignment, an option of a command, the header of a request,
#: curl's option for the user, -p of some commands. The key is the part before the value.
#: It is compiled when it is first used, which takes 3 ms.
_IN_WORDS = (
    r"(?s)(?P<key>" + _WORD + r"\w{,99}(?:\s*=\s*|['\"]\s*:\s*)"
    r"|--(?=\w)[\w-]{,99}" + _WORD + r"[\w-]{,99}(?:=|\s+)(?!-)"
    r"|\bset(?:env)?\s+\w{,99}" + _WORD + r"\w{,99}\s+"
    r"|(?i:passw[\w-]{,99}|[_-]" + _WORD + r"|\b" + _WORD + r"[_-][\w-]{,99}):"
    r"\s*(?=[^\s*])"
    r"|\b(?i:authorization)\s*:\s*(?:(?i:basic|bearer|digest|token)\s+)?"
    r"|\b(?i:bearer|basic)\s+(?=[\w.~+/=-]{8})"
    r"|\bsshpass\s+-p\s*|\b(?:mysql|mysqldump|mariadb)\b[^|;&\n]{,999}?\s-p(?=\S)"
    r"|\b(?:docker|podman|apptainer|singularity|helm)\b[^|;&\n]{,999}?\blogin\b"
    r"[^|;&\n]{,999}?\s-p[=\s]*"
    r"|\bcurl\b[^|;&\n]{,999}?\s(?:-[a-zA-Z]{,99}[uU]|--(?:proxy-)?user)[=\s]*['\"]?"
    r"[^\s:'\"$]+:)(?P<value>" + _VALUE + ")"
)

#: Secrets that their own form shows: tokens of services, and private keys.
_SHAPES = re.compile(
    r"\b(?:gh[opsru]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|xox[abeoprs]-[\w-]{10,}"
    r"|hf_\w{20,}|sk-[\w-]{20,}|eyJ[\w-]{8,4096}\.[\w-]{8,}\.[\w-]{5,})"
    r"|(?<=PRIVATE KEY-----)(?!\Z).*?(?=-----END|\Z)",
    re.DOTALL,
)

#: A shorter password is not searched for by itself, since it may be any word.
_MIN_KNOWN = 8

_known: set[str] = set()


def know_secret(text: str | None) -> None:
    """Register a password of this process, so that it is hidden wherever it would be shown."""
    if text and len(text) >= _MIN_KNOWN:
        _known.update({text, quote(text), quote(text, safe=""), repr(text)[1:-1]})


def know_url(url: str) -> None:
    """Register the password of a URL, quoted and unquoted."""
    options = _IN_QUERY.finditer(url)
    in_query = [match["value"] for match in options if _SECRET_NAME.search(unquote(match["key"]))]
    for password in (_password_in(url), *in_query):
        know_secret(password)
        know_secret(unquote(password))


def _password_in(url: str) -> str:
    """Return the password that a URL has before its host; empty if it has none."""
    match = _USERINFO.search(url)
    return match[0][len(match["user"]) + 1 : -1] if match else ""


def hide(text: str) -> str:
    """Hide all passwords in `text`: those of URLs, of assignments, and of this process."""
    know_secret(os.environ.get("PGPASSWORD"))
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, "***")
    return hide_password(text)


def holds_known(text: str) -> bool:
    """Return whether a text holds a password of this process."""
    know_secret(os.environ.get("PGPASSWORD"))
    return any(secret in text for secret in _known)


def holds_secret(text: str) -> bool:
    """Return whether a shell line or an option contains a password, and not only its path."""
    if holds_known(text) or _SHAPES.search(text):
        return True
    # $(cat ~/.token) and ${TOKEN} are no secrets, but say where one is.
    in_urls = filter(None, (_password_in(match[0]) for match in _URL.finditer(text)))
    values = (match["value"].lstrip("\"'") for match in re.finditer(_IN_WORDS, text))
    return any(not value.startswith(("$", "`")) for value in (*in_urls, *values))


def check_quoting(url: str) -> None:
    """Refuse a URL whose password libpq would split, and repeat parts of in its messages."""
    password = _password_in(url)
    if any(c in password for c in "/?#@ ") or re.search(r"%(?![0-9A-Fa-f]{2})", password):
        raise ConfigError(
            f"the database URL {hide_password(url)!r}: its password holds characters that a URL "
            "must quote (@ is %40, / is %2F, ? is %3F, # is %23, % is %25, a blank %20); or leave "
            "it to ~/.pgpass, which quotes only : and \\"
        )


def hide_password(text: str) -> str:
    """Hide the passwords of all database URLs and connection strings in `text`.

    >>> hide_password("postgresql://me:geheim@host/db?password=x")
    'postgresql://me:***@host/db?password=***'
    >>> hide_password("host=db password='ge heim' user=me")
    'host=db password=*** user=me'
    """
    if _WHOLE_URL.fullmatch(text) and "\n" not in text:
        return _hide_in_url(text)
    hidden = _URL.sub(lambda match: _hide_in_url(match[0]), text)
    return _SHAPES.sub("***", re.sub(_IN_WORDS, r"\g<key>***", hidden))


def _hide_in_url(url: str) -> str:
    def query(match: re.Match[str]) -> str:
        secret = _SECRET_NAME.search(unquote(match["key"]))
        return f"{match['key']}=***" if secret and match["value"] else match[0]

    return _SHAPES.sub("***", _IN_QUERY.sub(query, _USERINFO.sub(r"\g<user>:***@", url)))


def has_password(url: str) -> bool:
    """Return whether a database URL, or a connection string, contains a password."""
    return hide_password(url) != url


def hide_secret(name: str, value: object) -> str:
    """Return `value` as it is shown under `name`: hidden if one of them looks secret."""
    if value is None or value == "":
        return ""
    if _SECRET_NAME.search(name):
        return "***"
    if isinstance(value, list | tuple):
        return "; ".join(hide(str(item)) for item in value)
    return str(value).lower() if isinstance(value, bool) else hide(str(value))
