"""durable beside itself: what must not make it slower, and what it costs.

Tasks arrive in one transaction, so that all of them are there at one moment. What a
user's autovacuum would have done by then is done by hand, and nothing else is.
"""

from __future__ import annotations
