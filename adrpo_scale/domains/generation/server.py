"""The process that draws rollouts: obeys one trainer, and ends with it.

It runs by `process.COMMAND`, in the trainer's environment or in another one, and imports no more of
this package than its `Generator` does. Standard output belongs to the libraries; messages have a
socket of their own.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from adrpo_scale.core.parent import end_with, hear_no_stop
from adrpo_scale.domains.generation.channel import Channel, Message
from adrpo_scale.domains.generation.generator import Generator

if TYPE_CHECKING:
    from torch import Tensor


def serve(descriptor: int, parent: int) -> None:
    """Answers the messages of a socket until the other end closes it. parent: the trainer's pid."""
    # What this process starts must not hear a stop either: the trainer needs it until it has saved.
    hear_no_stop(signal.SIG_IGN)
    end_with(parent)
    channel = Channel(socket.socket(fileno=descriptor))
    server = Server(channel)
    while True:
        try:
            message = channel.receive()
        except (EOFError, OSError):
            return
        try:
            content, payload = server.answer(message)
        except Exception as error:
            traceback.print_exc()
            content, payload = {"failed": f"{type(error).__name__}: {error}", **_kind(error)}, b""
        channel.send(content, payload)


class Server:
    """One generator behind a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._generator: Generator | None = None

    def answer(self, message: Message) -> tuple[dict[str, Any], bytes]:
        """(JSON, bytes) that answer a message."""
        content = message.content
        if content["do"] == "build":
            self._generator = build(content["generator"], content["settings"])
            hear_no_stop(signal.SIG_IGN)  # libraries may have set handlers of their own
            return {"done": "build"}, b""
        if self._generator is None:
            raise RuntimeError("no generator has been built; please open an issue")
        if content["do"] == "load":
            self._generator.load(self._weights(message))
            return {"done": "load"}, b""
        if content["do"] == "rest":
            self._generator.rest()
            return {"done": "rest"}, b""
        from safetensors.torch import load, save

        made = self._generator.generate(content, load(message.payload))
        return {"done": "generate"}, save(made)

    def _weights(self, message: Message) -> Iterator[tuple[str, Tensor]]:
        """The tensors of this message and of those that follow, up to one without a file."""
        from adrpo_scale.domains.generation.weight_files import tensors_in

        while message.files:
            (file,) = message.files
            try:
                yield from tensors_in(file)
            finally:
                os.close(file)
            self._channel.send({"done": "file"})
            message = self._channel.receive()


def build(path: str, settings: dict[str, Any]) -> Generator:
    """The generator of a class, named as "module:class"."""
    module, _, name = path.partition(":")
    made: Generator = getattr(importlib.import_module(module), name)(settings)
    return made


def _kind(error: BaseException) -> dict[str, bool]:
    """What the trainer needs to know of an error whose class it does not see."""
    if "torch" not in sys.modules:
        return {}
    from adrpo_scale.core import failure

    return {"memory": failure.is_memory(error), "lost": failure.is_lost(error)}
