"""How fast durable is, beside its peers and beside what the machine can do at all.

    make bench         the quick form, in minutes
    make bench-full    the same figures with larger sizes and more rounds

Every figure is a ratio within one run: who is compared works on the same server, in
turns, each round in a database of its own that did not exist before. Numbers are only
ever printed from the JSON that a run wrote.
"""

from __future__ import annotations
