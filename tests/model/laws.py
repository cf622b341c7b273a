"""The laws of regions and loops, as book-keeping beside the protocol's own words.

Each method is called in one step with the operation that it is about. What it keeps is in words of
its own, which the protocol does not read.
"""

from __future__ import annotations

from model.operations import Value
from model.search import LawBroken, View
from model.words import DIVERGED, tag

ABSENT, ALIVE, DEAD = range(3)


def hold(law: object, text: str) -> None:
    if not law:
        raise LawBroken(text)


class Laws:
    """What must hold for a team of `ranks` ranks."""

    def __init__(self, ranks: int, locks: int) -> None:
        self.ranks = ranks
        self.locks = locks

    def words(self) -> dict[str, Value]:
        words: dict[str, Value] = {"ran": frozenset(), "heard": frozenset(), "news": frozenset()}
        words |= {"epoch": 0, "killed": 0, "known": ()}
        for r in range(self.ranks):
            words |= {f"busy{r}": 0, f"ended{r}": 0, f"came{r}": 0, f"acked{r}": 0}
        words |= {f"inside{k}": 0 for k in range(self.locks)}
        return words

    # -- of a rank -----------------------------------------------------------------------------

    def begins(self, m: View, rank: int, epoch: int, mailbox: int) -> None:
        hold(epoch == m["epoch"], f"rank {rank} begins region {epoch} while {m['epoch']} runs")
        hold(mailbox == epoch, f"rank {rank} of region {epoch} reads the message of {mailbox}")
        hold(m[f"ended{rank}"] < epoch, f"rank {rank} runs region {epoch} twice")
        m[f"busy{rank}"] = epoch

    def meets_break(self, m: View, rank: int) -> None:
        hold(m["reason"], f"rank {rank} is released by a broken word, and there is no reason")

    def claims(self, m: View, number: int, chunk: int) -> None:
        hold((number, chunk) not in m["ran"], f"chunk {chunk} of loop {number} is claimed twice")
        m["ran"] |= {(number, chunk)}

    def arrives(self, m: View, rank: int) -> None:
        m[f"came{rank}"] += 1

    def passes(self, m: View, rank: int, size: int) -> None:
        k = m[f"came{rank}"]
        late = [r for r in range(size) if m[f"came{r}"] < k]
        hold(not late, f"rank {rank} passes barrier {k} and ranks {late} have not come")

    def enters(self, m: View, rank: int, lock: int) -> None:
        other = m[f"inside{lock}"] - 1
        hold(other < 0, f"ranks {other} and {rank} both hold lock {lock}")
        m[f"inside{lock}"] = rank + 1

    def leaves(self, m: View, lock: int) -> None:
        m[f"inside{lock}"] = 0

    def hears(self, m: View, what: Value, value: Value) -> None:
        """Every rank must get the same value for `what`: a cancelled loop, a `single`."""
        others = [v for w, v in m["heard"] if w == what]
        hold(others in ([], [value]), f"{what}: one rank reads {others}, another one {value}")
        m["heard"] |= {(what, value)}

    def has_ended(self, m: View, rank: int, epoch: int) -> None:
        m[f"ended{rank}"] = epoch

    def acknowledges(self, m: View, rank: int) -> None:
        m[f"acked{rank}"] = m["epoch"]
        m[f"busy{rank}"] = 0

    def counts(self, m: View, rank: int, epoch: int) -> None:
        now = m["left"]
        hold(now & ~0x1FFF == tag(epoch), f"rank {rank} of region {epoch} counts {now:#x} down")

    def outlived(self, m: View, workers: tuple[bool, ...]) -> None:
        """The warden has gone, and the caller uses again what its workers could write."""
        left = [r for r, known in enumerate(workers) if known and m[f"fate{r}"] == ALIVE]
        hold(not left, f"the crew is forgotten, and ranks {left} run on")

    # -- of the caller -------------------------------------------------------------------------

    def calls(self, m: View) -> None:
        """Of whose end the caller could have heard: rank and number of the fork."""
        told = [r for r in range(self.ranks) if m[f"told{r}"]]
        m["known"] = tuple((r, m[f"born{r}"]) for r in told)

    def launched(self, m: View) -> None:
        """The region has begun, on the ranks that the caller takes for living."""
        dead = [r for r, born in m["known"] if m[f"told{r}"] and m[f"born{r}"] == born]
        hold(not dead, f"a region begins on ranks {dead}, whose end was told before the call")
        m["known"] = ()

    def posts(self, m: View, epoch: int) -> None:
        """The caller is about to write what a running region would read."""
        running = [r for r in range(self.ranks) if m[f"busy{r}"] and m[f"fate{r}"] == ALIVE]
        hold(not running, f"region {epoch} is prepared while ranks {running} run")
        m["epoch"] = epoch
        m["ran"] = m["heard"] = frozenset()
        for r in range(self.ranks):
            m[f"busy{r}"] = m[f"came{r}"] = 0
        for k in range(self.locks):
            m[f"inside{k}"] = 0

    def mended(self, m: View) -> None:
        """The caller takes the crew for clean; poison that has begun since has its reason."""
        left = [w for w in m.search.slots if w.startswith(("gen", "seq", "lock", "left", "table"))]
        broken = [w for w in left if m[w] & 1]
        hold(m["reason"] or not broken, f"{broken} are broken behind a cleared reason")

    def breaks(self, m: View) -> None:
        hold(m["reason"], "the caller finds a broken word, and there is no reason")

    def succeeds(
        self,
        m: View,
        epoch: int,
        size: int,
        loops: tuple[tuple[int, int], ...],
        *,
        wrong: bool,
    ) -> None:
        hold(not wrong, f"region {epoch} succeeds with a program that must fail")
        missing = [r for r in range(size) if m[f"ended{r}"] != epoch]
        hold(not missing, f"region {epoch} succeeds and ranks {missing} have not ended it")
        lost = [(n, k) for n, count in loops for k in range(count) if (n, k) not in m["ran"]]
        hold(not lost, f"region {epoch} succeeds and chunks {lost} (loop, chunk) did not run")

    def fails(
        self, m: View, epoch: int, size: int, reason: int, *, wrong: bool, diverges: bool
    ) -> None:
        """A right program fails only by the end of a rank that had not acknowledged."""
        missing = [r for r in range(size) if m[f"acked{r}"] != epoch]
        hold(wrong or missing, f"region {epoch} fails ({reason}) without a cause")
        hold(diverges or reason != DIVERGED, f"region {epoch}: ranks of a right program diverge")
