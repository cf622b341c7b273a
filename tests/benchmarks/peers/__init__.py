"""What each contender does when it is asked: one module a contender.

Each has a function ``peer()`` whose result has the measures as its methods; a
measure takes numbers and returns one. They run in lanes, see ``benchmarks.lane``.
"""
