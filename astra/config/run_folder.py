"""Create private folders and files in the run directory, and never follow links of other users.

Anybody who can write to the folder of scripts can run commands as their owner, and anybody who can
read logs sees what tasks print. So astra refuses a folder of another owner, or one that others may
write to.
"""

import errno
import os
import re
import secrets
import stat
from pathlib import Path
from typing import IO

from astra.config import settings
from astra.errors import UsageError

#: Permissions that no file or folder here ever gets, whatever the umask is.
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def check_folder(folder: Path) -> None:
    """Create a folder of the run directory, or raise why it cannot be used.

    Folders below ``[run] dir`` get the configured ``[run] mode``, 0700 by default, even if they
    existed before; the run directory itself keeps its mode if it existed.

    Raises
    ------
    UsageError
        If it cannot be written, belongs to somebody else, or others may write to it.
    """
    root = Path(settings.current().run.dir)
    try:
        _refuse_foreign_links(root)
        if is_new := not root.exists():
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_owner(root, root.stat())
        if is_new:
            _set_mode(root)
        part = root
        for name in folder.relative_to(root).parts:
            part /= name
            _private(part)
        probe = folder / f".{secrets.token_hex(8)}"
        try:
            # On a full disk, files can be created, but not filled.
            with new_file(probe) as file:
                file.write(b"astra\n")
        finally:
            probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        raise UsageError(
            f"the run directory {folder} cannot be written: {_why(error)}; "
            f"{'free space there (astra clean), or ' if is_full else ''}set [run] dir or "
            "ASTRA_RUN_DIR to a folder that the nodes share"
        ) from error


def _private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        status = folder.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise UsageError(
                f"{folder} is a link, which may lead anywhere; remove it, or set [run] dir or "
                "ASTRA_RUN_DIR to another folder"
            ) from None
        _check_owner(folder, status)
    _set_mode(folder)


def _check_owner(folder: Path, status: os.stat_result) -> None:
    instead = "or set [run] dir or ASTRA_RUN_DIR to a folder of your own"
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"the run directory {folder} is not a folder; remove it, {instead}")
    if status.st_uid != os.geteuid():
        raise UsageError(
            f"the run directory {folder} belongs to the user {status.st_uid}, not to you "
            f"({os.geteuid()}), who could change scripts before they run; "
            f"ask an administrator to give it to you, {instead}"
        )
    if status.st_mode & _OTHERS_WRITE:
        raise UsageError(
            f"others may write to the run directory {folder} (mode "
            f"{stat.S_IMODE(status.st_mode):04o}), and could change scripts before they run: "
            f"chmod go-w {folder}, {instead}"
        )


def _set_mode(folder: Path) -> None:
    mode = int(settings.current().run.mode, 8)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def _refuse_foreign_links(folder: Path) -> None:
    """Refuse links on the way to the run directory, unless the user or root owns them."""
    for part in (*reversed(folder.absolute().parents), folder.absolute()):
        if part.is_symlink() and (owner := part.lstat().st_uid) not in (0, os.geteuid()):
            raise UsageError(
                f"{part}, on the way to the run directory {folder}, is a link of the user {owner}, "
                "who could redirect it; set [run] dir or ASTRA_RUN_DIR to another folder"
            )


def new_file(path: Path) -> IO[bytes]:
    """Create a private file, which must not exist yet, and open it for writing."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def write_whole(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    """Write a file that gets its name only when all of it is on the disk.

    Raises
    ------
    UsageError
        If it cannot be written; no part of it remains then.
    """
    content = content if isinstance(content, bytes) else content.encode()
    unfinished = path.parent / f".{secrets.token_hex(8)}"
    try:
        with new_file(unfinished) as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode & ~_OTHERS_WRITE)
            os.fsync(file.fileno())
        unfinished.rename(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {_why(error)}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_output(path: Path, text: str) -> None:
    """Write a file whose name somebody gave; a device or a pipe is written into, not replaced.

    Raises
    ------
    UsageError
        If it cannot be written.
    """
    # /dev/stdout may be a link to a file.
    if Path("/dev") in path.absolute().parents or (path.exists() and not path.is_file()):
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {_why(error)}") from error
    else:
        write_whole(path, text, 0o644)


def open_to_append(path: Path) -> IO[bytes]:
    """Open a private file for appending, and create it if it is missing.

    Raises
    ------
    UsageError
        If it is a link, belongs to somebody else, or cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        link = f"{path} is a link; remove it" if path.is_symlink() else None
        raise UsageError(link or f"{path} cannot be written: {_why(error)}") from error
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UsageError(
            f"{path} does not belong to you (user {os.geteuid()}) but to the user {status.st_uid}; "
            "remove it"
        )
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "ab")


def umask_without_write() -> int:
    """Return the umask of this process, extended so that others may never write."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask | _OTHERS_WRITE


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def run_folder(name: str) -> Path:
    """Return a folder of the run directory, such as that of a plan's scripts and logs.

    A part of its name is a token that other roles of the database may have written.
    """
    return Path(settings.current().run.dir) / re.sub(r"[^\w.-]", "_", name)


def spool_folder(plan_folder: str) -> Path:
    """Return the folder where a plan's elements store results during a database outage."""
    return run_folder(plan_folder).absolute() / "spool"


_SPOOL_FILE = re.compile(r"page-(\d+)-attempt-(\d+)\.spool")


def spool_files(plan_folder: str, page: int | None = None) -> list[Path]:
    """Return the spool files of a plan, or of one of its pages, oldest attempt first."""
    numbered, folder = [], spool_folder(plan_folder)
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # the last: somebody else's
        return []
    for path in map(folder.joinpath, names):
        match = _SPOOL_FILE.fullmatch(path.name)  # other files are not astra's
        if match and page in (None, int(match[1])):
            numbered.append((int(match[2]), path))
    return [path for _, path in sorted(numbered)]
