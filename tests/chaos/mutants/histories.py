"""Who did it, and when each claim began and ended."""

from __future__ import annotations

from typing import Final

from tests.chaos.mutants import Mutant

__all__ = ["HISTORIES"]

HISTORIES: Final = [
    Mutant(
        "lets any version claim where a history is full",
        "claims.sql",
        "  if _policy is not null then\n    _version :=",
        "  if _policy is not null and _is_logged is null then\n    _version :=",
        "pgtap/claim_log.sql",
    ),
    Mutant(
        "says of a sleep that is over that it was woken",
        "history.sql",
        "\n    and woken.at < coalesce(woken.until, 'infinity')",
        "",
        "pgtap/claim_log.sql",
    ),
    Mutant(
        "says of what was tried again that it was woken",
        "history.sql",
        " and lead(log.attempt) over claims = log.attempt\n",
        "\n",
        "pgtap/claim_log.sql",
    ),
    Mutant(
        "cannot repeat a suspension whose answer was lost",
        "claim_log.sql",
        "  on conflict on constraint claim_log_pkey do nothing;",
        "  ;",
        "pgtap/claim_log.sql",
    ),
    Mutant(
        "leaves the claims of a task that is gone",
        "retention.sql",
        "  delete from durable.claim_log where claim_log.queue = _queue"
        " and claim_log.task_id = any (task_ids);\n",
        "",
        "pgtap/claim_log.sql",
    ),
    Mutant(
        "lets a caller choose its role",
        "audit.sql",
        "array['identity', 'queue', 'task_id']",
        "array['identity', 'queue', 'task_id', 'user']",
        "pgtap/audit.sql",
    ),
    Mutant(
        "takes the role of the engine's owner for the caller's",
        "audit.sql",
        "coalesce(nullif(current_setting('role'), 'none'), session_user)",
        "current_user",
        "pgtap/audit.sql",
    ),
    Mutant(
        "takes what a worker says of a failure for who has ended the task",
        "history.sql",
        "    when is_cancelled then jsonb_build_object(",
        "    when true then jsonb_build_object(",
        "pgtap/audit.sql",
    ),
    Mutant(
        "lets who spawns a task say who has forked it",
        "checks.sql",
        "    _options.headers := _options.headers - 'durable:forked_from';",
        "   ",
        "pgtap/audit.sql",
    ),
    Mutant(
        "does not say who had a delay skipped",
        "retry_task.sql",
        "retried_by = by\n",
        "retried_by = null\n",
        "pgtap/audit.sql",
    ),
]
