"""What carries a team: ``serial`` in this process, ``process`` on persistent workers."""
