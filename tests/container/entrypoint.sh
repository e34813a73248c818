#!/bin/sh
# Starts Postgres the way the official image does, as far as tests can tell:
# POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB are honoured on the first start,
# arguments after `postgres` go to the server, any other command runs instead.
set -eu

user=${POSTGRES_USER:-postgres}
database=${POSTGRES_DB:-$user}

case ${1:-postgres} in
  postgres) [ $# -eq 0 ] || shift ;;
  -*) ;;
  *) exec "$@" ;;
esac

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  if [ -z "${POSTGRES_PASSWORD:-}" ]; then
    echo "set POSTGRES_PASSWORD" >&2
    exit 1
  fi
  umask 077
  printf '%s\n' "$POSTGRES_PASSWORD" > /tmp/password
  initdb --pgdata="$PGDATA" --username="$user" --pwfile=/tmp/password \
    --encoding=UTF8 --no-locale --no-sync \
    --auth-local=trust --auth-host=scram-sha-256 > /dev/null
  rm /tmp/password
  echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
  # Single-user mode: nobody who asks whether the server is ready can be told yes
  # by one that only exists to make this database.
  [ "$database" = postgres ] ||
    echo "create database \"$database\"" |
    postgres --single -D "$PGDATA" postgres > /dev/null
fi

exec postgres -D "$PGDATA" -c listen_addresses='*' "$@"
