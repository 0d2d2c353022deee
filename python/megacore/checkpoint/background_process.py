"""The process that writes the checkpoints of one training process, while that one goes on.

It holds the claims on the directories, takes the messages of its training process one after the
other, and ends with it, however that ends: what it was writing then stays unpublished, and the
next run finds the directories free.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from megacore.checkpoint.channel import Channel
from megacore.checkpoint.save import SaveDirectory
from megacore.checkpoint.shared_copy import SharedMemory, described
from megacore.checkpoint.store_writers import StoreAddress, StoreWriters
from megacore.checkpoint.writers import Alone, Writers
from megacore.errors import CheckpointError

# Training is what the machine is for.
_NICENESS = 5


def serve(channel: Channel, memory: SharedMemory) -> None:
    """Writes what the training process asks for, until it closes the channel.

    Args:
        channel: To the training process.
        memory: Where it leaves its copies.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # They mean the training process, which decides what becomes of a save that has begun.
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(_NICENESS)
    ending = threading.Event()
    peers: list[StoreWriters] = []
    watch = threading.Thread(target=_end_with_trainer, args=(channel, ending, peers), daemon=True)
    watch.start()
    with ExitStack() as stack, suppress(EOFError, BrokenPipeError):
        directories: list[SaveDirectory] = []
        while True:
            message = channel.receive()
            try:
                if "open" in message:
                    writers = _writers(message["open"], ending)
                    peers += [writers] if isinstance(writers, StoreWriters) else []
                    directories = _opened(message["open"], writers, stack)
                    answer: dict[str, Any] = {"ready": True}
                else:
                    answer = {"saved": _save(message["save"], directories, memory)}
            except CheckpointError as error:
                answer = {"error": str(error)}
            channel.send(answer)


def _end_with_trainer(channel: Channel, ending: threading.Event, peers: list[StoreWriters]) -> None:
    """Ends this process when the training process is gone, in the middle of anything."""
    channel.wait_for_end()
    ending.set()
    for peer in peers:
        # Without a store nobody can be told; those who wait there notice that it is gone.
        with suppress(RuntimeError):
            peer.abandon()
    os._exit(0)


def _writers(settings: Mapping[str, Any], ending: threading.Event) -> Writers:
    if settings["store"] is None:
        return Alone()
    store = StoreAddress(**settings["store"]).connect()
    return StoreWriters(store, rank=settings["rank"], size=settings["size"], ending=ending)


def _opened(settings: Mapping[str, Any], writers: Writers, stack: ExitStack) -> list[SaveDirectory]:
    directories = []
    for path in settings["directories"]:
        directory = SaveDirectory(Path(path), wait_s=settings["wait_s"], writers=writers)
        directories.append(stack.enter_context(directory))
        if settings["start_iteration"] is not None:
            directory.refuse_newer(settings["start_iteration"])
    return directories


def _save(
    request: Mapping[str, Any], directories: Sequence[SaveDirectory], memory: SharedMemory
) -> dict[str, Any]:
    started = time.monotonic()
    description = request["content"]
    content = described(description, memory.view(description["bytes"]))
    directories[request["directory"]].write(
        content,
        overwrite_newer=request["overwrite_newer"],
        retain_last=request["retain_last"],
        retain_interval=request["retain_interval"],
    )
    return {"seconds": time.monotonic() - started, "bytes": content.num_bytes}


def main(channel_descriptor: int, memory_descriptor: int) -> None:
    """Entry of the process.

    Args:
        channel_descriptor: Of a connected socket.
        memory_descriptor: Of shared memory.
    """
    torch.set_num_threads(1)
    serve(
        Channel(socket.socket(fileno=channel_descriptor)),
        SharedMemory(memory_descriptor),
    )
