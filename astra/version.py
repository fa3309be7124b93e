"""The type of versions: the tables hold each as one number."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from astra import __version__

if TYPE_CHECKING:
    import peewee


@dataclass(frozen=True, order=True)
class Version:
    """A version of astra. Results are stored once for each row and major.minor version.

    >>> version = Version.parse("0.8.1")
    >>> version.number, version.major_minor, version.text, version.major_minor_text
    (8001, 8, '0.8.1', '0.8')
    """

    number: int  # major * 10**6 + minor * 10**3 + patch

    @classmethod
    def parse(cls, text: str) -> "Version":
        """Read a version as it is written, such as ``0.8.1``."""
        major, minor, patch = map(int, text.split("."))
        return cls(major * 10**6 + minor * 10**3 + patch)

    @classmethod
    def of_major_minor(cls, number: int) -> "Version":
        """Return the first version with a ``major_minor``."""
        return cls(number * 1000)

    @property
    def major_minor(self) -> int:
        """Return the number that columns called ``v_astra_major_minor`` hold."""
        return self.number // 1000

    @property
    def text(self) -> str:
        return f"{self.major_minor_text}.{self.number % 1000}"

    @property
    def major_minor_text(self) -> str:
        return f"{self.number // 10**6}.{self.number // 1000 % 1000}"

    def shares_results(self, column: "peewee.Field") -> "peewee.Expression":
        """Return the clause that a column of version numbers has the same major.minor version."""
        return column / 1000 == self.major_minor


#: The version of the package that is running.
CURRENT = Version.parse(__version__)
