"""Small teams with a history: regions that are called one after the other while processes die."""

from __future__ import annotations

from functools import partial

from model.crew import Crew, Region, kill
from model.laws import ALIVE, hold
from model.operations import Load, Pick, Store
from model.ranks import Critical, Loop, Single
from model.search import Hazard, Search, View
from model.words import Steps, tag


class Unordered(Crew):
    """Plain stores are seen in any order, up to the next store that releases them."""

    def scatter(self, *stores: tuple[str, int]) -> Steps:
        while stores:
            k = yield Pick(*range(len(stores)))
            yield Store(*stores[k])
            stores = (*stores[:k], *stores[k + 1 :])

    def remake(self, i: int, size: int, stealing: bool) -> Steps:
        steals = tuple((f"steal{r}.{i}", 0) for r in range(size if stealing else 0))
        yield from self.scatter((f"gone{i}", 0), (f"next{i}", 0), (f"cancel{i}", 0), *steals)

    def prepare(self, size: int) -> Steps:
        base = yield Load("loops0")
        locks = tuple((f"lock{k}", 0) for k in range(self.locks))
        yield from self.scatter(
            ("size", size), ("base", base), ("count", 0), ("ending", 0), ("used", 0), *locks
        )
        return base


def scene(
    regions: tuple[Region, ...],
    *,
    ring: int = 1,
    ranks: int = 0,
    victims: tuple[int, ...] = (),
    deaths: int = 1,
    warden_dies: bool = False,
    timed: bool = False,
    fused: bool = True,
    protocol: type[Crew] = Crew,
) -> Search:
    """A search over all that can happen to a crew.

    Parameters
    ----------
    regions : tuple of Region
        What is called, in this order; then the caller is content.
    ring : int
        Slots for loops.
    ranks : int
        Workers; as many as the first region takes, unless given.
    victims, deaths : tuple of int, int
        Of these ranks so many may die, each at any moment, also when it has been replaced.
    warden_dies : bool
        At any moment, and all workers with it, each some time later.
    timed : bool
        Waits look by themselves now and then. Without, wake-ups alone must do, but for the
        caller's look at those that it watches, once one of them has ended.
    fused : bool
        An actor that cannot die stores and wakes in one step (PROTOCOL.md, section 10).
    """
    steps = {step for region in regions for kernel in region.kernels for step in kernel}
    loops = [step for step in steps if isinstance(step, Loop)]
    locks = {k for step in steps if isinstance(step, Critical) for k in step.names}
    ranks = ranks or len(regions[0].kernels)
    crew = protocol(ring if loops else 0, len(locks), ranks)
    crew.regions = regions
    crew.kernels = {i: region.kernels for i, region in enumerate(regions)}
    words = crew.words()
    for r in range(ranks):
        words |= {f"fate{r}": ALIVE, f"birth{r}": 1, f"launch{r}": 1, f"done{r}": 1, f"ward{r}": 1}
    words |= {"left": tag(1), "mailbox": (1, -1)}
    words |= {f"stop{r}": 0 for r in range(ranks)}

    # What no kernel here makes anybody look at: the search is much smaller without.
    unread = {"spoken", "table", "used"}
    constant: set[str] = set()
    if not victims:
        constant |= {"deaths", "mourned", "past"}  # an orphan's end is counted by nobody
    most = max(sum(isinstance(s, Loop) for s in k) for region in regions for k in region.kernels)
    waits = most * len(regions) > ring
    for r in range(ranks):
        if not waits:
            unread |= {f"stopped{r}", f"through{r}"}
        if not locks:
            constant |= {f"waits{r}"}
        if not any(loop.kind == "auto" for loop in loops):
            constant |= {f"steal{r}.{i}" for i in range(crew.ring)}
        if not loops:
            constant |= {f"loops{r}"}
        if r:
            unread |= {f"loops{r}"}
    if not loops:
        constant |= {"base"}
    for i in range(crew.ring):
        if not waits:
            constant |= {f"sleepers{i}"}
        if not any(loop.kind == "dynamic" for loop in loops):
            constant |= {f"next{i}"}
        if not any(loop.cancel for loop in loops):
            constant |= {f"cancel{i}"}
    for i in range(2):
        if not any(isinstance(step, Single) for step in steps):
            unread |= {f"half{i}"}

    search = Search(words, unread - constant, constant, timed)
    search.actor("caller", crew.caller)
    for r in range(ranks):
        search.actor(f"rank {r}", partial(crew.worker, r), fused=fused and r not in victims)
    if victims or warden_dies:
        search.actor("warden", crew.warden, fused=fused and not warden_dies)

    def may_die(rank: int, m: View) -> bool:
        return m["killed"] < deaths and m[f"fate{rank}"] == ALIVE and m["warden"]

    def warden_may(m: View) -> bool:
        return bool(m["warden"])

    def end_warden(m: View) -> None:
        m["warden"] = 0
        m.kill("warden")

    def orphan(rank: int, m: View) -> bool:
        return not m["warden"] and m[f"fate{rank}"] == ALIVE

    def die(rank: int, m: View) -> None:
        kill(m, rank)

    for r in victims:
        search.hazards.append(Hazard(f"rank {r} is killed", partial(may_die, r), partial(die, r)))
    if warden_dies:
        search.hazards.append(Hazard("the warden is killed", warden_may, end_warden))
        for r in range(ranks):
            search.hazards.append(
                Hazard(f"rank {r} follows the warden", partial(orphan, r), partial(die, r), True)
            )

    def settled(m: View) -> None:
        if not m["reason"] and not m["killed"] and m["warden"]:
            left = m["left"]
            hold(left == tag(m["epoch"]), f"all is over and left is {left:#x}")

    search.done = lambda m: m.ended("caller")

    def may_look(m: View) -> bool:
        """There is somebody to be found, or one died between `done` and its count."""
        if not m["warden"] or crew.someone_dead(m):
            return True
        return m["killed"] > 0 and all(m[f"done{r}"] == m[f"launch{r}"] for r in range(ranks))

    search.settled = settled
    if victims:
        search.looker, search.may_look = "caller", may_look
    return search
