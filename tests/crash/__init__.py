"""Real processes and real files under attack: SIGKILL, SIGSTOP, flipped bytes, cut files, full disks, power cuts.

Invariant of all tests here: acknowledged writes are there afterwards, definitely refused ones are not, and no write was
done twice.
"""
