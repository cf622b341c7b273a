"""How a worker prints: its sys.stdout and sys.stderr, line by line to where the caller's go.

Either stream writes to a descriptor that it shares with the caller, or to the crew's relay, from
which the caller writes to whatever its own stream is (`_native/relay.pyx`). Which of them, and the
encoding, is told by surroundings.py; PROTOCOL.md, section 8.

Guarantees
----------
- The two objects are the same for the life of the process, whatever the caller's are: a logging
  handler that keeps one keeps what is right.
- A line is one write, and a stop signal does not cut it; a longer text is cut at the ends of lines.
- Nothing is held back but the line that has not ended; the region's end shows that too.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import socket
import stat
import sys
import threading
from fcntl import LOCK_EX, LOCK_UN, lockf
from typing import Any, NoReturn

from dsmfor._native.block import Block
from dsmfor._native.relay import MORE, PIECE, SHOW, line_buffered, show_unfinished
from dsmfor.engines.pages import Broker
from dsmfor.engines.surroundings import Stream
from dsmfor.outcome import Stop

__all__ = ["Streams"]

_LONGEST = 1 << 20  # bytes of a line that is kept whole
_AT_ONCE = 1 << 16  # bytes of whole lines in one write
_AGAIN = 20  # milliseconds after which a caller who does not empty the relay is woken again
_PASSING = (errno.ENOBUFS, errno.ENOMEM)
_NOWHERE = Stream("none", -1, "utf-8", "strict")
_NEWLINE = ord("\n")
_CONTINUES = range(0x80, 0xC0)  # bytes of UTF-8 that are not the first of their character


class Streams:
    """Both streams of a worker, and what they share.

    Parameters
    ----------
    rank : int
    block : Block
        By which the caller hears that something was sent.
    broker : Broker
        Its shield keeps a stop signal away while a line is being written.
    relay : int
        Descriptor of the sending end of the crew's relay.
    turns : int
        What `turns.turnstile` made, in the warden.
    """

    def __init__(self, rank: int, block: Block, broker: Broker, relay: int, turns: int) -> None:
        self._rank = rank
        self._block = block
        self._broker = broker
        self._relay = socket.socket(fileno=relay)
        room = self._relay.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self._piece = min(PIECE, room // 4)  # what is larger than the buffer would be refused
        self._turns = turns
        self.turn = _Turn(broker)
        self._out = _Lines(self, 0)
        self._err = _Lines(self, 1)
        self._states = _NOWHERE, _NOWHERE
        self._current: tuple[Any, Any] = (None, None)
        line_buffered()
        os.register_at_fork(after_in_child=self._in_child)

    def follow(self, out: Stream, err: Stream) -> None:
        """Print as the caller does from now on."""
        self._states = out, err
        self._current = self._out.follow(out), self._err.follow(err)
        sys.stdout, sys.stderr = self._current
        sys.__stdout__, sys.__stderr__ = self._current  # type: ignore[misc]  # Final, for others

    def rest(self) -> None:
        """The region is over: show what is unfinished, undo what the kernel did to the streams."""
        out, err = self._current
        if sys.stdout is not out or sys.stderr is not err:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None and stream is not out and stream is not err:
                    with contextlib.suppress(Exception):  # the kernel's own, and perhaps closed
                        stream.flush()
            sys.stdout = sys.stderr = stream = None
            self.follow(*self._states)  # after that: it may have closed what is below it
        elif self._out.touched or self._err.touched:
            if self._out.bent() or self._err.bent():
                self.follow(*self._states)
            with contextlib.suppress(OSError):  # as at the end of a program, nobody can be told
                self._out.show()
            with contextlib.suppress(OSError):
                self._err.show()
            self._out.touched = self._err.touched = False
        show_unfinished()

    def _in_child(self) -> None:
        """In a process that the kernel has forked: whoever held the lock is not here."""
        self.turn = _Turn(self._broker)

    def stopped(self) -> bool:
        """Whether a stop signal waits for the end of what is being written."""
        return self._broker.stopped

    # -- to a descriptor -----------------------------------------------------------------------

    def write(self, fd: int, data: bytes, pipe: bool) -> None:
        """Write lines to a descriptor of the caller's."""
        if not pipe:
            self._write(fd, data)
            return
        # It takes as much as it has room for, and then whoever comes.
        lockf(self._turns, LOCK_EX, 1)
        try:
            self._write(fd, data)
        finally:
            lockf(self._turns, LOCK_UN, 1)

    def _write(self, fd: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:  # somebody has made it non-blocking
                select.select([], [fd], [])

    # -- to the caller -------------------------------------------------------------------------

    def send(self, stream: int, data: bytes, end: int) -> None:
        """Send lines to the caller; `end` is the flag of the last message."""
        start = 0
        while True:
            stop = self._cut(data, start)
            flags = stream
            if stop == len(data):
                flags |= end
            elif data[stop - 1] != _NEWLINE:
                flags |= MORE
            head = bytes((flags, self._rank & 0xFF, self._rank >> 8))
            if not self._post(head + data[start:stop]) or stop == len(data):
                return
            if self.stopped() and not flags & MORE:
                return
            start = stop

    def _cut(self, data: bytes, start: int) -> int:
        """Where the next message ends: with a line, at least with a character."""
        end = start + self._piece
        if end >= len(data):
            return len(data)
        if (line := data.rfind(b"\n", start, end)) >= 0:
            return line + 1
        for back in range(4):
            if data[end - back] not in _CONTINUES:
                return end - back
        return end

    def _post(self, message: bytes) -> bool:
        """Send one message; False if the caller listens no more."""
        again = False
        while True:
            try:
                self._relay.send(message, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._block.speak(again)
                poll = select.poll()
                poll.register(self._relay, select.POLLOUT)
                again = not poll.poll(_AGAIN)
            except OSError as error:
                if error.errno not in _PASSING:
                    return False
                select.select([], [], [], _AGAIN / 1000)
            else:
                self._block.speak()
                return True


class _Turn:
    """Held while something is written: no other thread writes, and no stop signal cuts it."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._lock = threading.RLock()
        self._main = threading.get_ident()  # the one that hears signals

    def __enter__(self) -> None:
        if threading.get_ident() == self._main:
            self._broker.shields += 1
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()
        if threading.get_ident() == self._main:
            broker = self._broker
            broker.shields -= 1
            if broker.stopped and not broker.shields:
                broker.stopped = False
                raise Stop("the region was stopped")


class _Lines(io.BufferedIOBase):
    """What is below the text of a stream: whole lines go on, the rest waits for its end."""

    def __init__(self, streams: Streams, number: int) -> None:
        self._streams = streams
        self._number = number  # 0 or 1
        self.name = ("<stdout>", "<stderr>")[number]
        self.mode = "wb"
        self.touched = False  # since the last region
        self._state = _NOWHERE
        self._pipe = False  # several processes may mingle what they write at once
        self._tail = bytearray()
        self._shut = False
        self._text = self._wrap()

    def _wrap(self) -> io.TextIOWrapper:
        text = io.TextIOWrapper(
            self,
            encoding="utf-8",
            errors="strict",
            newline="\n",
            write_through=True,
        )
        text.mode = "w"  # type: ignore[misc]  # as the interpreter's own have it
        return text

    def follow(self, state: Stream) -> Any:
        """What is to be sys.stdout or sys.stderr."""
        self._shut = False
        with contextlib.suppress(OSError):
            self.show()
        try:
            if self._text.closed or not self._text.write_through:
                self._text.flush()
        except ValueError:  # the kernel has detached it
            self._text = self._wrap()
        except OSError:
            pass
        self._state = _NOWHERE  # the next line flushes, and nobody has asked for it
        try:
            self._text.reconfigure(encoding=state.encoding, errors=state.errors, write_through=True)
        except LookupError:  # a codec of the user's that is not known here
            self._text.reconfigure(encoding="utf-8", errors="backslashreplace", write_through=True)
        self._state = state
        self._shut = state.mode == "closed"
        self.touched = False
        if state.mode == "direct":
            kind = os.fstat(state.descriptor).st_mode
            self._pipe = stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)
        return None if state.mode == "none" else self._text

    def bent(self) -> bool:
        """Whether the kernel has closed, detached or reconfigured the stream."""
        try:
            closed = self._text.closed
        except ValueError:
            return True
        return closed != (self._state.mode == "closed") or not self._text.write_through

    def write(self, data: Any, /) -> int:
        """Take bytes; lines that have ended go on at once."""
        if self._shut:
            _refuse()
        new = bytes(data)
        with self._streams.turn:
            self.touched = True
            end = new.rfind(b"\n") + 1
            if end:
                lines, self._tail = self._tail + new[:end], bytearray(new[end:])
                self._emit(bytes(lines), 0)
            else:
                self._tail += new
            if len(self._tail) >= _LONGEST:
                self._let_go(0)
        return len(new)

    def flush(self) -> None:
        """Show the line that has not ended: somebody has asked for it."""
        self.touched = True
        if not self._shut:
            with self._streams.turn:
                self._let_go(SHOW)

    def show(self) -> None:
        """Show the line that has not ended, because the region has.

        In the relay it says that there is more, and so waits for the other workers' lines.
        """
        if self._tail:
            with self._streams.turn:
                self._let_go(MORE)

    def _let_go(self, end: int) -> None:
        lines, self._tail = self._tail, bytearray()
        if lines or end == SHOW:
            self._emit(bytes(lines), end)

    def _emit(self, data: bytes, end: int) -> None:
        streams, state = self._streams, self._state
        if state.mode == "relay":
            streams.send(self._number, data, end)
        elif state.mode == "direct":
            start = 0
            while start < len(data):
                stop = data.rfind(b"\n", start, start + _AT_ONCE) + 1
                stop = stop or data.find(b"\n", start) + 1 or len(data)
                streams.write(state.descriptor, data[start:stop], self._pipe)
                if streams.stopped():
                    return
                start = stop

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._state.mode == "direct" and os.isatty(self._state.descriptor)

    def fileno(self) -> int:
        if self._shut:
            _refuse()
        if self._state.descriptor < 0:
            raise io.UnsupportedOperation("fileno: the caller's stream has no descriptor either")
        return self._state.descriptor or self._number + 1

    def close(self) -> None:
        self.touched = True
        if not self._shut:
            self.show()
        self._shut = True

    @property
    def closed(self) -> bool:
        return self._shut


def _refuse() -> NoReturn:
    raise ValueError("I/O operation on closed file.")
