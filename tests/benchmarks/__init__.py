"""The figures that dsmfor promises, measured with its peers beside it in one run.

Run ``python -m tests.benchmarks`` (or ``python tests/benchmarks``) from the root of the repository.

============== ====================================================================
``__main__``   the command line
``rows``       what is measured: one function a row
``harness``    how: interleaved rounds, medians, ratios, bars
``lane``       a contender in a process of its own, asked over a pipe
``host``       the other end of that pipe
``peers/``     what each contender does when it is asked
``work``       the bodies that workers run
``timing``     the two ways to time a call
``processes``  memory and CPU time of a family of processes, from /proc
``units``      how values are written
``report``     the Markdown document
============== ====================================================================
"""
