"""A TCP proxy on loopback that can fall silent: its connections stay open, and nothing passes."""

import contextlib
import re
import select
import socket
import threading
from typing import Self


class Proxy:
    """Passes on what comes to ``port``, until :meth:`silence`; :meth:`heal` lets new ones through.

    As with a firewall that lost its memory, a connection that was silenced stays so. What a client
    sends is acknowledged all the while: its kernel sees no fault.
    """

    def __init__(self, to: int) -> None:
        self.to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._silent = threading.Event()
        self._over = threading.Event()
        self._links: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def way(self, url: str) -> str:
        """The address of a database, by way of this proxy."""
        return re.sub(r":\d+/", f":{self.port}/", url, count=1)

    def silence(self) -> int:
        """Nothing passes any more; the number of connections that were open."""
        self._silent.set()
        return sum(thread.is_alive() for thread in self._threads[1:])

    def heal(self) -> None:
        self._silent.clear()

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for link in [self._listener, *self._links]:
            link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                near, _ = self._listener.accept()
                self._links.append(near)
                thread = threading.Thread(target=self._pass_on, args=(near,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, near: socket.socket) -> None:
        """Between a client and the server, until either ends, or for ever once silence fell."""
        silent = self._silent.is_set()
        try:
            far = socket.create_connection(("127.0.0.1", self.to), timeout=5)
        except OSError:
            near.shutdown(socket.SHUT_RDWR)
            near.close()
            return
        self._links.append(far)
        other = {near: far, far: near}
        while not self._over.is_set() and not (silent := silent or self._silent.is_set()):
            for link in select.select([near, far], [], [], 0.05)[0]:
                if self._silent.is_set():
                    break
                try:
                    data = link.recv(1 << 16)
                    other[link].sendall(data)
                except OSError:
                    data = b""
                if not data:
                    for end in (near, far):
                        with contextlib.suppress(OSError):
                            end.shutdown(socket.SHUT_RDWR)
                        end.close()  # select takes no descriptor above 1,023
                    return
        # Neither end is told that the other left; what they send fills their kernels' buffers.
        self._over.wait()
