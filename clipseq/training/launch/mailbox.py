"""What the processes of a run can still tell one another once a collective has failed."""

import contextlib
import json
import secrets
import socket
import time
from collections.abc import Iterator, Sequence

import attrs

LONGEST = 1500
"""Characters of a reason at most: it is a line or two."""


@attrs.frozen
class Address:
    """Where the mailbox of a process is, and the word that its letters carry."""

    host: str
    port: int
    word: str


@attrs.frozen
class Letter:
    """Why the process `rank` leaves; where others were lost before, `gone` says which."""

    rank: int
    reason: str
    gone: tuple[int, ...] = ()


class Mailbox:
    """A listening socket, of which the kernel does all the work.

    It takes letters while the process is busy or blocked, to be read if ever a collective fails;
    and as it is closed with the process, however that ended, whether it can be reached tells
    whether the process is there. Letters without the mailbox's own word are dropped: they come
    from strangers.

    Args:
        towards: a host of the run, such as MASTER_ADDR; the mailbox listens on the interface
            that leads there.
    """

    def __init__(self, towards: str) -> None:
        host = bound = _own_host(towards)
        if host.startswith("127.") and not towards.startswith(("127.", "localhost")):
            # A machine that knows its own name by the loopback; the others know it by that name.
            host, bound = towards, ""
        family = socket.AF_INET6 if ":" in bound else socket.AF_INET
        self._socket = socket.create_server((bound, 0), family=family, backlog=128)
        self._socket.setblocking(False)
        self.address = Address(host, self._socket.getsockname()[1], secrets.token_hex(8))

    def letters(self) -> list[Letter]:
        """The letters that have come since the last call; does not wait for any."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                sender, _ = self._socket.accept()
                with sender, contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                    found.append(self._read(sender))
        return found

    def _read(self, sender: socket.socket) -> Letter:
        sender.settimeout(1.0)
        content = b""
        while len(content) < 8 * LONGEST and (more := sender.recv(4096)):
            content += more
        letter = json.loads(content)
        if letter["word"] != self.address.word:
            raise ValueError("a stranger's letter")
        return Letter(int(letter["rank"]), str(letter["reason"]), tuple(letter["gone"]))

    def close(self) -> None:
        """From now on this process counts as gone."""
        self._socket.close()


def refused(address: Address) -> bool:
    """Whether the process of that mailbox has ended. A blocked or stopped one has not; of one
    behind a broken network nothing is known, so False."""
    try:
        with _connected(address):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


def post(letter: Letter, addresses: Sequence[Address], patience: float = 5.0) -> None:
    """Send `letter` to each mailbox that can be reached within `patience` seconds in all."""
    letter = attrs.evolve(letter, reason=letter.reason[:LONGEST])
    until = time.monotonic() + patience
    for address in addresses:
        if time.monotonic() > until:
            return
        content = json.dumps(attrs.asdict(letter) | {"word": address.word}, ensure_ascii=False)
        with contextlib.suppress(OSError), _connected(address) as receiver:
            receiver.sendall(content.encode(errors="replace"))


@contextlib.contextmanager
def _connected(address: Address) -> Iterator[socket.socket]:
    with socket.create_connection((address.host, address.port), timeout=1.0) as connection:
        yield connection


def _own_host(towards: str) -> str:
    """The address that this machine has on the way to another; nothing is sent."""
    for family, kind, protocol, _, address in socket.getaddrinfo(
        towards, 9, type=socket.SOCK_DGRAM
    ):
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    return "127.0.0.1"
