"""durable alone: what must not make it slower, and what operations cost.

Tasks arrive in one transaction, so that all of them exist at one moment. Work that a
user's autovacuum would have done by then is done explicitly, and nothing else is.
"""

from __future__ import annotations
