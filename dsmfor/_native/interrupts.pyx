"""Ctrl-C at chosen places alone: signal handlers of Python's wait while things are half made.

Python runs a signal handler between any two bytecodes of the main thread, and most raise. What has
been made by then and has no name yet is lost: a descriptor out of ``recvmsg``, a process that was
started, an answer whose question nobody remembers. In a finalizer what a handler raises is printed
and forgotten. Inside ``with undisturbed`` handlers of signals wait: the C level notes that the signal
came; they run at the end of the block, or where the block says that it can bear it: in `hear`, and
in `ready`, which waits.

Guarantees
----------
- Entering never raises. A handler that is due when the block begins runs at once, and what it
  raises is raised at the end, or in `hear`.
- No signal is lost, nor heard twice: each that came is tripped as Python's own C handler does.
- In threads other than the main one, where Python runs no handlers, a block does nothing.

Assumes
-------
- Handlers that are not Python's (C code's, `faulthandler`'s) and default actions are nobody's
  business here: they act at once.
- Only signals below 32 are deferred: a real-time signal with a handler that raises is not.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc

import os
import signal as signals
import sys
import threading

cdef extern from *:
    """
    #include <Python.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <time.h>

    #define DSM_SIGNALS 32

    static struct sigaction dsm_before[DSM_SIGNALS]; /* Python's, while they are deferred */
    static uint32_t dsm_deferred;                    /* signals whose action is ours now */
    static uint32_t dsm_came;                        /* signals that came meanwhile */
    static int dsm_open;                             /* a block is open */
    static void (*dsm_pythons)(int);                 /* Python's own C handler */

    /* Have Python's handler see what came, as if it came now. May be called in a handler. */
    static int dsm_trip(void)
    {
        uint32_t came = __atomic_exchange_n(&dsm_came, 0, __ATOMIC_SEQ_CST);
        for (int number = 1; number < DSM_SIGNALS; number++)
            if (came & (uint32_t)1 << number)
                PyErr_SetInterruptEx(number);
        return came != 0;
    }

    /* Another thread may be at the first line of this while the main one closes the block: then
     * either that sees the bit, or this sees that nobody will look. */
    static void dsm_note(int number)
    {
        __atomic_fetch_or(&dsm_came, (uint32_t)1 << number, __ATOMIC_SEQ_CST);
        if (!__atomic_load_n(&dsm_open, __ATOMIC_SEQ_CST))
            dsm_trip();
    }

    /* Find Python's handler: any signal of which Python says that its handler is a function. */
    static void dsm_learn(int number)
    {
        struct sigaction action;
        if (sigaction(number, NULL, &action) == 0 && !(action.sa_flags & SA_SIGINFO)
            && action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN
            && action.sa_handler != dsm_note)
            dsm_pythons = action.sa_handler;
    }

    static void dsm_defer(void)
    {
        struct sigaction action, ours;
        __atomic_store_n(&dsm_open, 1, __ATOMIC_SEQ_CST);
        if (dsm_pythons == NULL)
            return;
        for (int number = 1; number < DSM_SIGNALS; number++) {
            if (sigaction(number, NULL, &action) || action.sa_handler != dsm_pythons)
                continue;
            ours = action; /* its mask and flags: SA_ONSTACK, and SA_RESTART as the user has it */
            ours.sa_handler = dsm_note;
            dsm_before[number] = action;
            if (sigaction(number, &ours, NULL) == 0)
                dsm_deferred |= (uint32_t)1 << number;
        }
    }

    static void dsm_undefer(void)
    {
        struct sigaction action;
        for (int number = 1; number < DSM_SIGNALS; number++)
            if (dsm_deferred & (uint32_t)1 << number) {
                /* not if somebody has set another one meanwhile */
                if (sigaction(number, NULL, &action) == 0 && action.sa_handler == dsm_note)
                    sigaction(number, &dsm_before[number], NULL);
            }
        dsm_deferred = 0;
        __atomic_store_n(&dsm_open, 0, __ATOMIC_SEQ_CST);
    }

    static uint32_t dsm_heard(void) { return __atomic_load_n(&dsm_came, __ATOMIC_SEQ_CST); }

    static int dsm_raise(void *exception)
    {
        PyErr_SetObject((PyObject *)Py_TYPE((PyObject *)exception), (PyObject *)exception);
        Py_DECREF((PyObject *)exception);
        return -1;
    }

    static void dsm_block(sigset_t *before)
    {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, before);
    }

    static int64_t dsm_ms(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
    }
    """
    void dsm_learn(int number)
    void dsm_defer()
    void dsm_undefer()
    int dsm_trip()
    uint32_t dsm_heard()
    int dsm_raise(void *exception)
    int64_t dsm_ms() nogil
    ctypedef struct sigset_t:
        pass
    void dsm_block(sigset_t *before)
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *before)
    int SIG_SETMASK
    void *dsm_pythons
    int PyErr_SetInterruptEx(int number)
    int Py_AddPendingCall(int (*call)(void *), void *argument)
    int Py_MakePendingCalls() except -1
    void Py_INCREF(object)
    object PyMethod_New(object function, object instance)
    ctypedef unsigned long pthread_t
    pthread_t pthread_self() nogil

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events, revents
    int poll(pollfd *fds, unsigned long n, int timeout)
    short POLLIN

cdef pthread_t main = 0   # the thread in which Python runs handlers
cdef int depth = 0        # of blocks, in that thread
cdef object due = None    # what a handler raised that ran at the beginning of a block
cdef int64_t PATIENCE = 50  # ms between two strikes, if finalizers follow one another
cdef int64_t SLICE = 100  # ms: what a signal between the look at it and the wait can cost


def _settle():
    """Know the main thread; again in a forked child, where no block is open."""
    global main, depth, due
    if depth:
        dsm_undefer()
        dsm_trip()
    depth = 0
    due = None
    main = threading.main_thread().ident


_settle()
os.register_at_fork(after_in_child=_settle)


cdef void _learn():
    for number in range(1, 32):
        try:
            if callable(signals.getsignal(number)):
                dsm_learn(number)
                if dsm_pythons != NULL:
                    return
        except Exception:
            pass


cdef void _begin():
    global depth, due
    if pthread_self() != main:
        return
    depth += 1
    if depth > 1:
        return
    if dsm_pythons == NULL:
        _learn()
    dsm_defer()
    try:
        Py_MakePendingCalls()  # what is due already
    except BaseException as error:
        due = error


cdef bint _end():
    """Whether the outermost block has ended."""
    global depth
    if pthread_self() != main or depth == 0:
        return False
    depth -= 1
    if depth:
        return False
    dsm_undefer()
    dsm_trip()
    return True


cdef _raise_due():
    global due
    error, due = due, None
    if error is not None:
        try:
            raise error
        finally:
            del error


cdef class _Block:
    """See `undisturbed`."""

    def __enter__(self):
        _begin()

    def __exit__(self, *_):
        if _end():
            _raise_due()


undisturbed = _Block()
"""A context manager, re-entrant: handlers of signals wait."""


cdef class Undisturbed:
    """A function for whom nobody can be told of an exception: a finalizer, a callback of one.

    Called, or bound as a method and called, it runs in a block of `undisturbed`; what is due
    then is raised later, in whatever Python code runs next.
    """

    cdef object function

    def __cinit__(self, function):
        self.function = function

    def __call__(self, *args):
        global due
        _begin()
        try:
            return self.function(*args)
        finally:
            if _end() and due is not None:
                error, due = due, None
                Py_INCREF(error)
                Py_AddPendingCall(dsm_raise, <void *>error)
                del error

    def __get__(self, instance, owner):
        return self if instance is None else PyMethod_New(self, instance)


cdef class Insistent:
    """A handler that raises, whose exception Python may drop: in a finalizer, or a callback of C code.

    `handle` is the handler, `hook` the `sys.unraisablehook` that sees what is dropped. The next
    strike waits until the C code is over that called what was struck, for it may have more
    finalizers to call; a while at most, for they may be endless. Compiled: no handler runs in here.

    Parameters
    ----------
    number : int
        The signal.
    kind : type
        What is raised.
    strike : callable
        Raises it, or finds that there is no need to; without arguments.
    again : callable
        Called when it was dropped, before the next strike.
    """

    cdef int number, place
    cdef object kind, strike, again, before, below
    cdef int64_t until

    def __init__(self, int number, kind, strike, again):
        self.number, self.kind, self.strike, self.again = number, kind, strike, again
        self.before = sys.unraisablehook
        self.below = None  # the frame that called into C, and the place in it

    def handle(self, _number, frame):
        """For `signal.signal`."""
        if self.below is not None and dsm_ms() < self.until and self.inside(frame):
            PyErr_SetInterruptEx(self.number)
            return
        self.below = None
        self.strike()

    def hook(self, unraisable):
        """For `sys.unraisablehook`."""
        if type(unraisable.exc_value) is not self.kind:
            self.before(unraisable)
            return
        trace = unraisable.exc_traceback
        self.below = None if trace is None else trace.tb_frame.f_back
        if self.below is not None:
            self.place = self.below.f_lasti
        self.until = dsm_ms() + PATIENCE
        self.again()
        PyErr_SetInterruptEx(self.number)

    cdef bint inside(self, frame):
        """Whether the frame `below` still waits for the C code, and `frame` is of its callees."""
        if self.below.f_lasti != self.place:
            return False
        if frame is self.below:
            return False
        while frame is not None:
            if frame is self.below:
                return True
            frame = frame.f_back
        return False


cpdef hear():
    """Inside a block, where it can bear it: run the handlers of the signals that came.

    Raises
    ------
    BaseException
        What a handler raises.
    """
    if pthread_self() == main:
        _raise_due()
        if dsm_heard():
            dsm_trip()
    PyErr_CheckSignals()


cdef class Unsignalled:
    """A context in which no signal interrupts a system call of this thread.

    Those that come meanwhile are delivered at its end, or to another thread.
    """

    cdef sigset_t before

    def __enter__(self):
        dsm_block(&self.before)

    def __exit__(self, *_):
        pthread_sigmask(SIG_SETMASK, &self.before, NULL)


def ready(fds, double seconds, bint hearing=True):
    """The descriptors that are readable or closed, within `seconds`, or an empty set.

    Raises
    ------
    BaseException
        What a handler of a signal raises, if `hearing`.
    """
    cdef int n = len(fds), i, found
    cdef int64_t until = dsm_ms() + <int64_t>(seconds * 1000), left
    cdef pollfd *polled = <pollfd *>malloc(max(n, 1) * sizeof(pollfd))
    if polled == NULL:
        raise MemoryError
    try:
        for i in range(n):
            polled[i].fd = fds[i]
            polled[i].events = POLLIN
            polled[i].revents = 0
        while True:
            left = max(0, until - dsm_ms())
            with nogil:
                found = poll(polled, n, <int>min(left, SLICE))
            if found > 0:
                return {polled[i].fd for i in range(n) if polled[i].revents}
            if found < 0 and errno != EINTR:
                raise OSError(errno, os.strerror(errno))
            if hearing and seconds > 0:
                hear()
            if left <= 0:
                return set()
    finally:
        free(polled)
