"""Who did it, and when each claim began and ended."""

from __future__ import annotations

from typing import Final

from tests.chaos.mutants import Mutant

__all__ = ["HISTORIES"]

HISTORIES: Final = [
    Mutant(
        "lets any version claim where a history is full",
        "claim_log.sql",
        "  _policy text := durable._version_policy(_queue);",
        "  _policy text := null;",
        "pgtap/claim_log.sql",
    ),
    Mutant(
        "says of a sleep that is over that it was woken",
        "history.sql",
        "\n      and woken.at < coalesce(woken.until, 'infinity')",
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
        "  perform durable._delete_log(_queue, task_ids);\n",
        "",
        "pgtap/claim_log.sql",
    ),
    Mutant(
        "lets a caller choose its role",
        "callers.sql",
        "array['identity', 'queue', 'task_id']",
        "array['identity', 'queue', 'task_id', 'user']",
        "pgtap/callers.sql",
    ),
    Mutant(
        "takes the role of the engine's owner for the caller's",
        "callers.sql",
        "coalesce(nullif(current_setting('role'), 'none'), session_user)",
        "current_user",
        "pgtap/callers.sql",
    ),
    Mutant(
        "takes what a worker says of a failure for who has ended the task",
        "history.sql",
        "  if is_cancelled then\n",
        "  if true then\n",
        "pgtap/callers.sql",
    ),
    Mutant(
        "lets who spawns a task say who has forked it",
        "checks.sql",
        "    _options.headers := _options.headers - 'durable:forked_from';",
        "   ",
        "pgtap/callers.sql",
    ),
    Mutant(
        "does not say who had a delay skipped",
        "retry_task.sql",
        "  perform durable._log_retry(_queue, task.task_id, task.attempt - 1, by);\n",
        "",
        "pgtap/callers.sql",
    ),
]
