"""How fast durable is, compared with similar systems and with the machine's limits.

    make bench         the quick form, in minutes
    make bench-full    the same figures with larger sizes and more rounds

Every figure is a ratio within one run: contenders alternate on the same server, each
round in a new database of its own. Numbers are only printed from the JSON that a run
wrote.
"""

from __future__ import annotations
