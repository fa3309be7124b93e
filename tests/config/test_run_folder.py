"""The run directory: private, nobody else's, and never through another user's link."""

import os
import stat
from pathlib import Path

import pytest

from astra.config import settings
from astra.config.run_folder import (
    check_folder,
    open_to_append,
    spool_files,
    umask_without_write,
    write_output,
    write_whole,
)
from astra.errors import ConfigError, UsageError

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
OTHER = 65534  # nobody


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "here" / "runs"
    settings.use(settings.Config(run=settings.Run(dir=folder)))
    return folder


class TestFolders:
    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
    def test_folders_are_private_whatever_the_umask_is(self, runs: Path, umask: int) -> None:
        old = os.umask(umask)
        try:
            check_folder(runs / "plan-1" / "logs")
        finally:
            os.umask(old)
        for folder in (runs, runs / "plan-1", runs / "plan-1" / "logs"):
            assert mode(folder) == 0o700
            assert not [file for file in folder.iterdir() if file.is_file()]

    def test_a_configured_mode_is_kept(self, runs: Path) -> None:
        settings.use(settings.Config(run=settings.Run(dir=runs, mode="0750")))
        check_folder(runs / "plan-1")
        assert mode(runs) == mode(runs / "plan-1") == 0o750

    def test_an_existing_run_directory_is_made_private(self, runs: Path) -> None:
        (runs / "plan-1").mkdir(parents=True)
        runs.chmod(0o755)
        (runs / "plan-1").chmod(0o755)
        check_folder(runs / "plan-1" / "logs")
        assert mode(runs) == 0o755  # somebody's own decision
        assert mode(runs / "plan-1") == mode(runs / "plan-1" / "logs") == 0o700

    @pytest.mark.parametrize("bits", [0o770, 0o702, 0o777, 0o1777])
    @pytest.mark.parametrize("part", ["", "plan-1", "plan-1/logs"])
    def test_a_folder_that_others_may_write_is_refused(
        self, runs: Path, bits: int, part: str
    ) -> None:
        check_folder(runs / "plan-1" / "logs")
        (runs / part).chmod(bits)
        with pytest.raises(UsageError, match=rf"others may write.*{bits:04o}.*chmod go-w"):
            check_folder(runs / "plan-1" / "logs")

    @ROOT
    @pytest.mark.parametrize("part", ["", "plan-1", "plan-1/logs"])
    def test_a_folder_of_another_owner_is_refused(self, runs: Path, part: str) -> None:
        check_folder(runs / "plan-1" / "logs")
        os.chown(runs / part, OTHER, OTHER)
        with pytest.raises(UsageError, match=rf"belongs to the user {OTHER}, not to you"):
            check_folder(runs / "plan-1" / "logs")

    @pytest.mark.parametrize("part", ["plan-1", "plan-1/logs"])
    def test_links_below_the_run_directory_are_refused(
        self, runs: Path, part: str, tmp_path: Path
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(mode=0o755)
        check_folder((runs / part).parent)
        (runs / part).symlink_to(elsewhere)
        with pytest.raises(UsageError, match="is a link"):
            check_folder(runs / "plan-1" / "logs")
        assert mode(elsewhere) == 0o755 and not list(elsewhere.iterdir())

    def test_the_users_own_link_to_it_is_followed(self, runs: Path, tmp_path: Path) -> None:
        (tmp_path / "scratch").mkdir(mode=0o700)
        runs.parent.symlink_to(tmp_path / "scratch")
        check_folder(runs / "plan-1")
        assert (tmp_path / "scratch" / "runs" / "plan-1").is_dir()

    @ROOT
    def test_another_users_link_on_the_way_is_refused(self, runs: Path, tmp_path: Path) -> None:
        (tmp_path / "scratch").mkdir(mode=0o700)
        runs.parent.symlink_to(tmp_path / "scratch")
        os.lchown(runs.parent, OTHER, OTHER)
        with pytest.raises(UsageError, match=f"link of the user {OTHER}"):
            check_folder(runs / "plan-1")

    def test_a_file_in_its_place_is_named(self, runs: Path) -> None:
        runs.parent.mkdir()
        runs.write_text("")
        with pytest.raises(UsageError, match=str(runs)):
            check_folder(runs / "plan-1")

    @pytest.mark.parametrize("given", ["0777", "0770", "700x", "", "0600", 0o722, True, 3.5])
    def test_modes_that_are_refused(self, tmp_path: Path, given: object) -> None:
        with pytest.raises(ConfigError, match=r"mode.*0700"):
            settings._checked(given, "run.mode", "astra.toml")

    @pytest.mark.parametrize("given", ["0700", "700", 0o700, "0750", "0755", 0o2750])
    def test_modes_that_others_cannot_write_with_are_accepted(self, given: object) -> None:
        assert int(settings._checked(given, "run.mode", "astra.toml"), 8) & 0o022 == 0


class TestFiles:
    def test_a_file_is_replaced_whole_and_is_never_writable_by_others(self, tmp_path: Path) -> None:
        file = tmp_path / "script.sh"
        old = os.umask(0)
        try:
            write_whole(file, "one", 0o777)
            assert mode(file) == 0o755
            write_whole(file, "two", 0o700)
        finally:
            os.umask(old)
        assert (file.read_text(), mode(file)) == ("two", 0o700)
        assert list(tmp_path.iterdir()) == [file]

    def test_a_concurrent_reader_sees_a_whole_file_or_none(self, tmp_path: Path) -> None:
        file, sizes = tmp_path / "script.sh", set()
        child = os.fork()
        if not child:
            try:
                for _ in range(30):
                    write_whole(file, b"x" * 2_000_000)
            finally:
                os._exit(0)
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            sizes.add(len(file.read_bytes()) if file.exists() else 0)
        assert sizes <= {0, 2_000_000} and 2_000_000 in sizes

    def test_a_link_in_its_place_is_replaced_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "precious").write_text("precious")
        (tmp_path / "script.sh").symlink_to(tmp_path / "precious")
        write_whole(tmp_path / "script.sh", "new")
        assert (tmp_path / "precious").read_text() == "precious"
        assert not (tmp_path / "script.sh").is_symlink()

    def test_a_full_disk_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"/dev/nowhere/x.*No such file"):
            write_whole(Path("/dev/nowhere/x"), "text")
        if os.geteuid() == 0:
            os.system(f"mount -t tmpfs -o size=64k none {tmp_path} 2>/dev/null")  # noqa: S605
            try:
                if os.path.ismount(tmp_path):
                    with pytest.raises(UsageError, match=r"script.sh cannot be written: No space"):
                        write_whole(tmp_path / "script.sh", "x" * 1_000_000)
                    assert not list(tmp_path.iterdir())
            finally:
                os.system(f"umount {tmp_path} 2>/dev/null")  # noqa: S605

    def test_what_is_no_file_is_written_into_and_stays(self, tmp_path: Path) -> None:
        """A reader of the pipe gets all; the device is one of the test's own, where root makes it."""
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "link").symlink_to(tmp_path / "pipe")
        for name in ("pipe", "link"):
            reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
            write_output(tmp_path / name, "λ")
            assert os.read(reader, 9) == "λ".encode()
            os.close(reader)
        assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
        if os.geteuid() == 0:
            os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            write_output(tmp_path / "null", "text")
            assert (tmp_path / "null").is_char_device()
        with pytest.raises(UsageError, match=f"{tmp_path} cannot be written"):
            write_output(tmp_path, "text")

    def test_a_log_is_appended_to_and_private(self, tmp_path: Path) -> None:
        for text in (b"one ", b"two"):
            with open_to_append(tmp_path / "log") as file:
                file.write(text)
        assert (tmp_path / "log").read_bytes() == b"one two" and mode(tmp_path / "log") == 0o600

    def test_links_pipes_and_foreign_files_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "precious").write_text("precious")
        (tmp_path / "link").symlink_to(tmp_path / "precious")
        (tmp_path / "dangling").symlink_to(tmp_path / "made")
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "foreign").write_text("")
        if os.geteuid() == 0:
            os.chown(tmp_path / "foreign", OTHER, OTHER)
        else:
            (tmp_path / "foreign").unlink()
            (tmp_path / "foreign").mkdir()
        for name in ("link", "dangling", "pipe", "foreign"):
            with pytest.raises(UsageError, match=str(tmp_path / name)):
                open_to_append(tmp_path / name)
        assert (tmp_path / "precious").read_text() == "precious"
        assert not (tmp_path / "made").exists()

    def test_a_file_is_no_run_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("ASTRA_RUN_DIR", str(tmp_path / "file"))
        assert spool_files("plan-1-x") == []
        with pytest.raises(UsageError, match="file is not a folder; remove it, or set"):
            check_folder(tmp_path / "file" / "plan-1-x")

    def test_elements_let_nobody_else_write(self) -> None:
        old = os.umask(0o002)
        try:
            assert umask_without_write() == 0o022
            os.umask(0o077)
            assert umask_without_write() == 0o077
            assert os.umask(0o077) == 0o077
        finally:
            os.umask(old)
