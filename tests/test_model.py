"""All that can happen to a small team: the protocol's model, searched exhaustively.

The model is in `tests/model`; what it covers and what it leaves out is PROTOCOL.md, section 10.
Here are the scenes that are searched, the protocols with a mistake that must be found, and the
comparison of the model's words with the real ones. A search prints how many states it has seen
(`pytest -rP`).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from model import arena, mutants, relay
from model.crew import Crew, Region, same
from model.native import Real, apply, perform
from model.ranks import Barrier, Critical, Loop, Raise, Ranks, Single, Spin
from model.scenes import Unordered, scene
from model.search import Found, Search
from model.words import BROKEN, Control, mix

from dsmfor._native.block import Block
from dsmfor._native.loops import Indices
from dsmfor._native.member import Member
from dsmfor._native.plan import Plan

CODE = (lambda: None).__code__
meet = Barrier()
claimed, ahead = Loop("dynamic", 2), Loop("dynamic", 1, nowait=True)
stolen = Loop("auto", 1)
ended = Loop("dynamic", 2, cancel=(0, 1))
left = Loop("dynamic", 2, leave=0)
lock = Critical()


def wrong(*kernels: tuple[Any, ...], diverges: bool = False) -> Region:
    return Region(kernels, wrong=True, diverges=diverges)


def look(search: Search, *, live: bool = False) -> None:
    """Search it all, and print how much that was."""
    start = time.perf_counter()
    search.run(live=live)
    seconds = time.perf_counter() - start
    print(f"{search.states} states, {search.steps} steps, {seconds:.1f} s")


# -- Wake-ups alone suffice when nobody dies ----------------------------------------------------

RIGHT: dict[str, tuple[tuple[Region, ...], dict[str, Any]]] = {
    "three ranks, two regions": ((same(3), same(3)), {}),
    "a crew of which a region takes a part": ((same(1, meet), same(2, meet)), {"ranks": 2}),
    "barriers": ((same(3, meet, meet),), {}),
    "claims": ((same(3, claimed),), {}),
    "deals": ((same(2, Loop("static", 3), Loop("static", 2, True)), same(2, claimed)), {"ring": 2}),
    "thefts": ((same(2, Loop("auto", 2), Loop("auto", 2)),), {}),
    "thefts without barrier": ((same(2, Loop("auto", 2, True), Loop("auto", 1, True)),), {}),
    "one ahead of the ring": ((same(2, ahead, ahead, ahead), same(2, ahead)), {}),
    "two ahead of three slots": ((same(2, *[ahead] * 4),), {"ring": 2}),
    "released late from a barrier": ((same(2, claimed, ahead),), {}),
    "three ranks ahead": ((same(3, ahead, ahead),), {}),
    "cancelled loops": ((same(2, ended, ended),), {}),
    "values for all": ((same(2, Single(), Single(), Single()), same(2, Single())), {}),
    "values for three": ((same(3, Single(), Single()),), {}),
    "a lock": ((same(3, lock),), {}),
    "nested locks": ((same(2, Critical((0, 1))), same(2, lock)), {}),
    "all together": (
        (same(2, claimed, lock, ahead, meet, ahead), same(2, ahead, Single())),
        {"ring": 2},
    ),
    "plain stores in any order": (
        (same(2, ahead, ahead, Loop("auto", 2)), same(2, claimed)),
        {"protocol": Unordered},
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_succeeds_in_every_interleaving_and_loses_no_wake(name: str) -> None:
    regions, how = RIGHT[name]
    look(scene(regions, **how))


# -- A program that must fail does, and the next region is none the worse ------------------------

WRONG: dict[str, tuple[tuple[Region, ...], dict[str, Any]]] = {
    "an end against a barrier": ((wrong((meet,), (), diverges=True), same(2, meet)), {}),
    "two barriers": ((wrong((Barrier(1),), (Barrier(2),), diverges=True), same(2)), {}),
    "one loop more": ((wrong((ahead,), (ahead, ahead), diverges=True), same(2, ahead)), {}),
    "a rank far ahead": (
        (wrong((ahead,) * 3, (ahead, meet, ahead), diverges=True), same(2)),
        {"timed": True},
    ),
    "one raises": ((wrong((meet,), (Raise(),)), same(2, meet)), {}),
    "one leaves a loop": ((wrong((left,), (left,)), same(2, claimed)), {}),
    "locks in a ring": (
        (Region(((Critical((0, 1)),), (Critical((1, 0)),)), late=True),),
        {"timed": True},
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_fails_in_every_interleaving(name: str) -> None:
    regions, how = WRONG[name]
    look(scene(regions, **how), live="timed" in how)


# -- Workers die at any step --------------------------------------------------------------------

DEATHS: dict[str, tuple[tuple[Region, ...], dict[str, Any]]] = {
    "any of two": ((same(2), same(2)), {"victims": (0, 1)}),
    "at a barrier": ((same(2, meet), same(2)), {"victims": (1,)}),
    "in a loop": ((same(2, claimed),), {"victims": (1,)}),
    "before and behind the ring": ((same(2, ahead, ahead, ahead),), {"victims": (1,)}),
    "with a lock": ((same(2, lock),), {"victims": (1,)}),
    "one that is idle": ((same(1), same(1), same(2)), {"ranks": 2, "victims": (1,)}),
    "idle beside a loop": ((same(1, claimed),) * 2, {"ranks": 2, "victims": (1,)}),
    "an idle one, or one of the team": ((same(1), same(2)), {"ranks": 2, "victims": (0, 1)}),
    "with the value for all": ((same(2, Single()),), {"victims": (0,)}),
}


@pytest.mark.parametrize("name", DEATHS)
def test_after_a_death_at_any_step_all_are_released_and_the_next_region_succeeds(name: str) -> None:
    regions, how = DEATHS[name]
    look(scene(regions, **how))


LOOKS: dict[str, tuple[tuple[Region, ...], dict[str, Any]]] = {
    "a worker": ((same(2, meet),), {"victims": (1,)}),
    "the warden": ((same(2, meet),), {"warden_dies": True}),
    "one that was to be killed": (
        (Region(((Spin(deaf=True),), (meet,)), late=True),),
        {"victims": (1,), "deaths": 0},
    ),
}


@pytest.mark.parametrize("name", LOOKS)
def test_timed_looks_lead_out_of_every_state_whoever_dies(name: str) -> None:
    regions, how = LOOKS[name]
    look(scene(regions, timed=True, **how), live=True)


def test_a_timeout_at_any_moment_leaves_the_crew_usable() -> None:
    look(scene((same(2, meet)._replace(late=True), same(2, meet)), timed=True), live=True)


# -- Blocks of arenas, and what workers print ----------------------------------------------------


def test_no_block_is_used_again_while_a_worker_sees_it() -> None:
    look(arena.Quarantine(2, 1).search(deaths=1))
    look(arena.Quarantine(2, 2).search())


@pytest.mark.parametrize("room", [1, 4])
@pytest.mark.parametrize("timed", [False, True])
def test_everything_that_was_printed_is_written_when_the_region_is_over(
    room: int, timed: bool
) -> None:
    look(relay.Relay(2, 2, room).search(timed=timed), live=True)


# -- Each law bites -----------------------------------------------------------------------------

SLEEP, LOST = "everybody waits for ever", "no look and no wake leads out of this"
BREAK = wrong((meet,), (Raise(),))

MUTANTS: list[tuple[type[Crew], tuple[Region, ...], dict[str, Any], str]] = [
    (mutants.PoisonBeside, (wrong((meet,), (Raise(),)),), {}, SLEEP),
    (mutants.LeftWithoutTag, (same(2), same(2)), {"timed": True}, "counts .* down"),
    (mutants.BellBeforeLaunch, (same(2),), {}, SLEEP),
    (mutants.CountKept, (same(2, meet),) * 2, {}, "fails .* without a cause"),
    (mutants.CountBeforeDone, (same(2),), {}, SLEEP),
    (mutants.SeqStored, (same(2, ahead, ahead, ahead),), {"victims": (1,)}, SLEEP),
    (mutants.SeqBeforeZeroing, (same(2, ahead, ahead),), {}, "claimed twice"),
    (mutants.SleepersCleared, (same(2, ahead, ahead, ahead),), {}, SLEEP),
    (mutants.SleepersBeforeSeq, (same(2, ahead, ahead),), {}, SLEEP),
    (mutants.StuckAtAnyBarrier, (same(2, claimed, ahead),), {}, "fails .* without a cause"),
    (mutants.StealByLoad, (same(2, Loop("auto", 2)),), {}, "claimed twice"),
    (mutants.GenBeforeCount, (same(2, meet, meet),), {}, "passes barrier 2"),
    (mutants.OneIsWoken, (same(3, meet),), {}, SLEEP),
    (
        mutants.AnySignature,
        (wrong((Barrier(1),), (Barrier(2),), diverges=True),),
        {},
        "succeeds with a program that must fail",
    ),
    (mutants.FinishUnseen, (wrong((meet,), (), diverges=True),), {}, SLEEP),
    (mutants.WakesInRow, (same(3, lock),), {}, SLEEP),
    (mutants.MarkedAreWoken, (same(2, lock),), {"victims": (1,)}, SLEEP),
    (mutants.LockByLoad, (same(2, lock),), {}, "both hold lock 0"),
    (mutants.CancelStored, (same(2, Loop("static", 2, cancel=(0, 1))),), {}, "another one"),
    (mutants.CancelReadLate, (same(2, ended),), {}, "another one"),
    (mutants.OneHalf, (same(2, Single(), Single()),), {}, "single 0: one rank reads"),
    (mutants.ObituaryFirst, (same(2), same(2)), {"victims": (1,)}, "was told before the call"),
    (mutants.BitsBeforeReason, (BREAK,), {}, "there is no reason"),
    (mutants.Impatient, (BREAK, same(2)), {}, "is prepared while ranks"),
    (mutants.EpochByItself, (same(2), same(2)), {"victims": (1,)}, SLEEP),
    (mutants.EveryDeathPoisons, (same(1),) * 2, {"ranks": 2, "victims": (1,)}, "without a cause"),
    (mutants.DeathsUncounted, (same(1), same(2)), {"ranks": 2, "victims": (1,)}, "was told before"),
    (
        mutants.DeathsReadLate,
        (wrong((Raise(),), ()), same(1), same(2)),
        {"victims": (1,)},
        "was told before",
    ),
    (mutants.AllHaveFallen, (same(1),), {"ranks": 2, "victims": (1,)}, "without a cause"),
    (mutants.WardenIsTrusted, (same(2),), {"victims": (1,)}, SLEEP),
    (
        mutants.BuriedUntold,
        (same(2), same(2)),
        {"victims": (1,)},
        "behind a cleared",
    ),
    (mutants.WhoeverHasEnded, (same(2),), {"victims": (0, 1), "deaths": 2}, SLEEP),
    (mutants.PastForgotten, (same(2), same(2)), {"victims": (1,)}, SLEEP),
    (mutants.NotOutlived, (same(2),), {"warden_dies": True, "timed": True}, "run on"),
    (mutants.NeverLooks, (same(2),), {"warden_dies": True, "timed": True}, LOST),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m[0].__name__)
def test_every_mistake_is_found(
    mutant: tuple[type[Crew], tuple[Region, ...], dict[str, Any], str],
) -> None:
    protocol, regions, how, law = mutant
    with pytest.raises(Found, match=law) as found:
        scene(regions, protocol=protocol, **how).run(live=law == LOST)
    print(f"{protocol.__doc__}\n{found.value}")
    trace = "\n".join(found.value.trace)
    assert "caller" in trace
    assert "->" in trace  # it tells what has changed


def test_every_mistaken_protocol_is_in_the_table() -> None:
    written = {
        value
        for value in vars(mutants).values()
        if isinstance(value, type) and issubclass(value, Crew) and value is not Crew
    }
    assert {mutant[0] for mutant in MUTANTS} == written


SMALLER: dict[Any, tuple[Search, str]] = {
    arena.OldAnswers: (arena.OldAnswers(2, 2).search(), "is used again"),
    arena.AnsweredLate: (arena.AnsweredLate(2, 2).search(), "is used again"),
    arena.AnyAnswer: (arena.AnyAnswer(2, 2).search(), "is used again"),
    arena.DeadLeftOut: (arena.DeadLeftOut(2, 2).search(deaths=1), "is used again"),
    relay.EmptiedFirst: (relay.EmptiedFirst(2, 2, 4).search(timed=False), "1 lines are there"),
    relay.DoneIsEnough: (relay.DoneIsEnough(2, 2, 4).search(timed=False), "0 lines are there"),
    relay.AskedOnce: (relay.AskedOnce(2, 2, 1).search(timed=False), SLEEP),
}


@pytest.mark.parametrize("mistake", SMALLER, ids=lambda m: m.__name__)
def test_mistakes_about_blocks_and_lines_are_found(mistake: Any) -> None:
    search, law = SMALLER[mistake]
    with pytest.raises(Found, match=law) as found:
        search.run()
    print(f"{mistake.__doc__}\n{found.value}")


# -- The twin is the code -----------------------------------------------------------------------

SIZE, LOCKS = 3, 2


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    return Real(Control(8, LOCKS, SIZE), tmp_path_factory.mktemp("words"))


def calls(random: Random) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Functions of control.h with arguments that lead somewhere."""
    epoch = 2
    while True:
        rank, size = random.randrange(SIZE), random.randint(1, SIZE)
        number = random.randrange(20)
        yield random.choice(
            [
                ("launch", (size, epoch, random.randint(0, 1))),
                ("mourn", (rank,)),
                ("over", ()),
                ("poison", (random.randint(1, 6), random.randrange(-1, SIZE))),
                ("repair", ()),
                ("done", (rank, random.choice([epoch, epoch, epoch - 1]))),
                ("arrive", (rank, size, random.choice([5, 5, 5, 7]))),
                ("finish", (rank, random.choice([3, 3, 4]))),
                ("stuck", (size, number)),
                ("leave", (number, size, random.random() < 0.5)),
                ("steal", (rank, number % 8, random.randint(0, 3), random.random() < 0.5)),
                ("take", (random.randrange(LOCKS), rank, random.random() < 0.5)),
                ("give", (random.randrange(LOCKS),)),
                ("knotted", (rank,)),
            ]
        )
        epoch += random.random() < 0.2


def plausible(random: Random, word: str) -> int:
    """A value that the word could have at a bad moment."""
    name = word.rstrip("0123456789.")
    if name == "seq":
        return random.randrange(20) << 1 | (random.random() < 0.1)
    if name == "lock":
        return random.choice([0, 0, *range(4, 4 * SIZE + 4)]) | random.choice([0, 0, 2])
    if name == "waits":
        return random.randrange(LOCKS + 1)
    if name == "stopped":
        return random.choice([0, 1, 3, 5, 0xFFFFFFFF])
    if name in ("through", "done", "launch", "loops"):
        return random.randrange(1, 20)
    if name == "gen":
        return random.choice([0, 2, 4, 5])
    if name == "steal":
        return random.randrange(3) << 32 | random.randrange(3)
    if name in ("gone", "next", "sleepers", "cancel"):
        return random.randrange(SIZE)
    if name == "deaths":
        return random.randint(0, 1)
    return 0


def test_the_models_words_do_what_those_of_the_header_do(real: Real) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    random = Random(seed)
    twin = Control(8, LOCKS, SIZE)
    words: dict[str, Any] = dict(twin.words())
    words |= {f"launch{r}": 1 for r in range(SIZE)}  # repair goes by it to see who was there
    for word, value in words.items():
        real.poke(word, value)
    knot = (ctypes.c_int32 * 1024)()
    seen = ctypes.c_uint32()
    told: dict[str, set[str]] = {}
    wanted = {"arrive": 3, "finish": 2, "stuck": 2, "over": 2, "launch": 3}  # different answers

    def missed() -> list[str]:
        return [name for name, answers in wanted.items() if len(told.get(name, ())) < answers]

    for number, (name, args) in enumerate(calls(random)):
        if (number >= 6000 and not missed()) or number >= 100_000:
            break
        pokes = {random.choice(real.names) for _ in range(3)} - {"reason", "size", "base"}
        for word in pokes:
            words[word] = plausible(random, word)
            real.poke(word, words[word])
        words["used"] = LOCKS  # what the table has is names, which the twin has not
        real.poke("used", LOCKS)
        if name == "take":
            k, rank, waited = args
            if words[f"lock{k}"] in (2, 3):
                continue  # an owner of none with a waiter: give never leaves that
            theirs: Any = real.call(name, k, rank, waited, ctypes.byref(seen))
            theirs = theirs, seen.value if theirs == 0 else 0
            ours = perform(twin.take(f"lock{k}", rank, waited), words, real.width)
        elif name == "give":
            theirs = None
            real.call(name, *args)
            ours = perform(twin.give(f"lock{args[0]}"), words, real.width)
        elif name == "knotted":
            n = real.call(name, *args, knot)
            theirs = tuple(knot[:n])
            ours = perform(twin.knotted(*args), words, real.width)
        else:
            theirs = real.call(name, *args)
            ours = perform(getattr(twin, name)(*args), words, real.width)
            if name in ("poison", "repair", "done", "leave", "mourn"):
                theirs = ours = None
            if name in ("stuck", "over"):
                theirs = bool(theirs)
        assert theirs == ours, (name, args)
        assert real.words() == words, (name, args)
        told.setdefault(name, set()).add(repr(ours))
    assert missed() == []
    assert any(len(answer) > 2 for answer in told["knotted"])


def test_hashes_agree(real: Real) -> None:
    random = Random(1)
    for _ in range(100):
        h, v = random.getrandbits(64), random.getrandbits(64)
        assert real.call("mix", h, v) == mix(h, v)


class Side:
    """A rank twice: the real one, and the twin's steps through the same loops and locks."""

    def __init__(self, block: Block, twin: Ranks, rank: int) -> None:
        self.twin = twin
        self.rank = rank
        self.member = Member(block, rank, 2)
        self.iterator: Any = None
        self.steps: Any = None
        self.number = 0

    def chunk(self, words: dict[str, Any], widths: dict[str, int]) -> int | None:
        """The twin's way to its next chunk, or to the loop's end."""
        answer = None
        while True:
            try:
                op = self.steps.send(answer)
            except StopIteration:
                return None
            if op.kind == "note" and op.f == self.twin.laws.claims:
                return int(op.args[1])
            answer = apply(op, words, widths)


def test_the_models_ranks_do_to_the_words_what_members_and_loops_do(real: Real) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    random = Random(seed)
    fd = Block.descriptor()
    block = Block(fd)
    block.repair()
    memory = mmap.mmap(fd, real.size)
    os.close(fd)
    twin = Ranks(8, LOCKS, SIZE)
    words: dict[str, Any] = dict(twin.words())
    sides = [Side(block, twin, rank) for rank in range(2)]
    hashes = {"signature", "ending"}

    def compare(what: object) -> None:
        found = real.words(memory)
        for word in real.names:
            ours = words[word]
            if word in hashes:
                assert bool(found[word]) == bool(ours), (what, word)
            else:
                assert found[word] == ours, (what, word)

    for epoch in range(2, 60):
        assert block.launch(2, epoch) == perform(twin.launch(2, epoch, 0), words, real.width) == 0
        compare("launch")
        program = [
            Loop(random.choice(["static", "dynamic", "auto"]), random.randrange(5), nowait=True)
            for _ in range(random.randrange(12))
        ]
        for side in sides:
            side.member.begin(epoch, 2)
            side.number = words["base"]
        base = words["base"]
        running = set(sides)
        while running:
            side = random.choice(sorted(running, key=lambda s: s.rank))
            at = side.number - base
            if side.steps is None and at == len(program):
                side.member.finish()
                perform(twin.run_kernel(side.rank, 2, epoch, side.number, ()), words, real.width)
                compare("finish")
                side.member.end()
                block.finish(side.rank, epoch, 0, 0)
                perform(twin.done(side.rank, epoch), words, real.width)
                compare("done")
                running.discard(side)
                continue
            if side.steps is None:
                if words[f"seq{side.number % 8}"] != side.number << 1:
                    continue  # it would wait for the other
                loop = program[at]
                n = loop.chunks * (2 if loop.kind == "auto" else 1)
                plan = Plan(loop.kind, n, 2, None if loop.kind == "auto" else 1)
                side.iterator = Indices(side.member, plan, 0, 1, at, CODE, True)  # type: ignore[arg-type]
                side.steps = twin.run_loop(side.rank, 2, side.number, 1, loop)
            theirs = next(side.iterator, None)
            ours = side.chunk(words, real.width)
            assert theirs == ours
            compare((epoch, side.rank, side.number))
            if theirs is None:
                side.iterator = side.steps = None
                side.number += 1
    memory.close()
    assert words["left"] & BROKEN == 0


# -- Larger teams and more deaths: `make soak` ---------------------------------------------------

SOAK: dict[str, tuple[tuple[Region, ...], dict[str, Any]]] = {
    "four ranks": ((same(4),), {}),
    "four ranks at barriers": ((same(4, meet, meet),), {}),
    "four ranks claim": ((same(4, claimed),), {}),
    "three ranks steal": ((same(3, stolen),), {}),
    "three ranks cancel": ((same(3, ended),), {}),
    "three ranks, two slots": ((same(3, ahead, ahead, ahead),), {"ring": 2}),
    "a death of three": ((same(3, meet),), {"victims": (2,)}),
    "a death of three, nothing shared": ((same(3),), {"victims": (2,)}),
    "a death with the value for all": ((same(2, Single()), same(2)), {"victims": (0,)}),
    "a death at a barrier, and a barrier": ((same(2, meet), same(2, meet)), {"victims": (1,)}),
    "a death in a loop, and a loop": ((same(2, claimed), same(2, ahead)), {"victims": (1,)}),
    "a death with stolen chunks": ((same(2, stolen),), {"victims": (1,)}),
    "a death while it cancels": ((same(2, ended),), {"victims": (1,)}),
    "a death with a lock, and a lock": ((same(2, lock), same(2, lock)), {"victims": (1,)}),
    "two deaths": ((same(2), same(2)), {"victims": (0, 1), "deaths": 2}),
    "an idle one and one of the team": (
        (same(1), same(2)),
        {"ranks": 2, "victims": (0, 1), "deaths": 2},
    ),
    "an idle one twice": ((same(1),) * 3, {"ranks": 2, "victims": (1,), "deaths": 2}),
    "two deaths of a rank, three regions": ((same(2),) * 3, {"victims": (1,), "deaths": 2}),
    "two deaths at a barrier": ((same(2, meet),) * 2, {"victims": (0, 1), "deaths": 2}),
    "a death in a loop, stores and wakes apart": (
        (same(2, claimed), same(2, ahead)),
        {"victims": (1,), "fused": False},
    ),
    "three ranks, stores and wakes apart": ((same(3, meet),), {"fused": False}),
    "the warden of three": ((same(3, meet),), {"warden_dies": True, "timed": True}),
    "a worker and the warden": (
        (same(2, meet),),
        {"victims": (1,), "warden_dies": True, "timed": True},
    ),
    "one that is idle": (
        (same(1), same(2)),
        {"ranks": 2, "victims": (1,), "timed": True},
    ),
    "a worker, and a region after": ((same(2, meet), same(2)), {"victims": (1,), "timed": True}),
    "a lock, looks": ((same(2, lock),), {"victims": (1,), "timed": True}),
    "a computing rank is stopped, or dies": (
        (Region(((Spin(),), (meet,)), late=True), same(2)),
        {"victims": (1,), "timed": True},
    ),
}


@pytest.mark.soak
@pytest.mark.parametrize("name", SOAK)
def test_larger_teams_and_more_deaths(name: str) -> None:
    regions, how = SOAK[name]
    look(scene(regions, **how), live="timed" in how)


@pytest.mark.soak
def test_blocks_and_two_deaths() -> None:
    look(arena.Quarantine(2, 2).search(deaths=2))
