"""Addresses of databases."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from psycopg.conninfo import conninfo_to_dict

__all__ = ["with_dbname"]


def with_dbname(dsn: str, dbname: str) -> str:
    """Return the URL of another database on the same server.

    It is one that psycopg, asyncpg, SQLAlchemy and psql all read alike.
    """
    parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
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
