"""Messages between a process that trains and the one that writes its checkpoints."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Mapping
from typing import Any

_LENGTH_BYTES = 8


class Channel:
    """JSON messages over a connected socket.

    Args:
        connection: The socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends one message.

        Raises:
            OSError: The other process is gone.
        """
        content = json.dumps(message).encode()
        self._socket.sendall(len(content).to_bytes(_LENGTH_BYTES, "little") + content)

    def receive(self) -> dict[str, Any]:
        """The next message, waited for.

        Raises:
            EOFError: The other process is gone.
        """
        try:
            length = int.from_bytes(self._read(_LENGTH_BYTES), "little")
            message: dict[str, Any] = json.loads(self._read(length))
        except OSError as error:
            raise EOFError(str(error)) from error
        return message

    def has_message(self, wait_s: float = 0.0) -> bool:
        """Whether `receive` would return, or fail, at once.

        Args:
            wait_s: How long to wait for it.
        """
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(1000 * wait_s))

    def wait_for_end(self) -> None:
        """Returns when the other side is closed, whatever has been sent and not read."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        poll.poll()

    def close(self) -> None:
        """Ends the conversation; the other side notices."""
        self._socket.close()

    def _read(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            received = self._socket.recv(min(count - len(parts), 1 << 20))
            if not received:
                raise EOFError("the other process has ended")
            parts += received
        return bytes(parts)
