"""Database URLs."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from psycopg.conninfo import conninfo_to_dict

from durable._db.conninfo import checked_conninfo

__all__ = ["with_dbname"]


def with_dbname(dsn: str, dbname: str) -> str:
    """Return the URL of another database on the same server.

    psycopg, asyncpg, SQLAlchemy and psql all interpret it in the same way.
    """
    given = conninfo_to_dict(checked_conninfo(dsn))
    parts = {name: str(value) for name, value in given.items()}
    user = quote(parts.pop("user", ""), safe="")
    if password := parts.pop("password", ""):
        user += ":" + quote(password, safe="")
    parts.pop("dbname", None)
    host, port = parts.get("host", ""), parts.get("port", "")
    address = ""
    if host and not set(host) & set("/,:"):
        address = parts.pop("host") + (f":{port}" if port else "")
        parts.pop("port", None)
    query = "?" + urlencode(parts, quote_via=quote) if parts else ""
    return f"postgresql://{user}{'@' if user else ''}{address}/{quote(dbname)}{query}"
